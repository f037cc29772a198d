"""What another tool, or somebody else, measured: one configuration of it as a file says it.

Nothing of it is attested here: no layer was counted, no operator seen, and its repetitions share
one process, so that no verdict can stand on them. What the file does not say is None, or named in
``unknown``; nothing is guessed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.config.parse import COUNT, NOT_NEGATIVE, parse
from bench.errors import ConfigError, StoreError
from bench.record.redact import redacted


@dataclass(frozen=True, slots=True)
class Foreign:
    """One configuration. Names are those of conf/ where the file's mean the same, and else the
    file's own."""

    file: str  # its name, with the folder's that it lay in
    digest: str  # of its content
    tool: str  # that wrote it, or measured
    protocol: str  # how that was measured, in a sentence
    version: str | None = None  # of the tool
    source: str = ""  # who published it and where, if the file says so
    hardware: str | None = None
    model: str | None = None
    engine: str | None = None
    quant: str | None = None
    attn: str | None = None
    batch: int | None = field(default=None, metadata=COUNT)
    prompt_tokens: int | None = field(default=None, metadata=NOT_NEGATIVE)
    new_tokens: int | None = field(default=None, metadata=NOT_NEGATIVE)
    settings: Mapping[str, str] = field(default_factory=dict)  # what else changes its numbers
    values: Mapping[str, float] = field(default_factory=dict)  # keys and units of ``METRICS``
    # By metric, its repetitions, all of one process
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # By item of a task, whether the answer is right
    right: Mapping[str, bool] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()  # what a reader needs and the file does not say


def to_json(configurations: Sequence[Foreign]) -> str:
    """The records as text, without what looks like a secret."""
    plain = redacted([dataclasses.asdict(each) for each in configurations])
    return json.dumps(plain, indent=1, allow_nan=False)


def from_json(text: str | bytes, where: str) -> tuple[Foreign, ...]:
    """The records in ``text``; ``where`` names it in messages.

    Raises:
        StoreError: when it is not a list of them.
    """
    try:
        given: Any = json.loads(text)
        if not isinstance(given, list):
            raise StoreError(f"{where}: want a list of imported configurations")
        return tuple(parse(Foreign, each) for each in given)
    except (ValueError, ConfigError) as error:
        raise StoreError(f"{where}: {error}") from error
