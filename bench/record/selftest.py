"""What a self-test found: a bundle that a stranger attaches to an issue.

It holds times, sizes, versions and the last lines of logs; no prompts, no answers, and nothing by
which its sender or machine could be named.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.parse import NOT_NEGATIVE, parse
from bench.errors import ConfigError, StoreError
from bench.record.redact import anonymous
from bench.record.result import Host, Result

SCHEMA = 1

Verdict = Literal["ok", "NOT OK", "not run"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that this tool must do right on a machine, and whether it does."""

    name: str
    expected: str
    found: str  # of a check that did not run: why
    verdict: Verdict
    seconds: float = field(default=0.0, metadata=NOT_NEGATIVE)
    readings: Mapping[str, Any] = field(default_factory=dict)  # raw, in JSON types


@dataclass(frozen=True, slots=True)
class SelfTest:
    """All checks of one run, and where it ran."""

    schema: int
    version: str  # of this tool
    commit: str | None  # None outside a checkout
    changed_files: int  # of the checkout, against that commit
    date: str  # UTC, like 2026-01-31T12:00:00Z
    host: Host
    checks: tuple[Check, ...]
    cells: tuple[Mapping[str, Any], ...]  # of the sweeps: as ``cell_timings``
    warnings: tuple[str, ...]  # last lines of what the processes printed, each once

    def to_json(self) -> str:
        """The bundle as text, anonymous."""
        plain = dataclasses.asdict(self)
        host = plain.pop("host")
        # The rest is of drivers and libraries: a machine may be named like its device
        texts = {name: anonymous(host[name]) for name in ("versions", "missing", "unsupported")}
        texts["device_uuid"] = None  # of one card in the world
        return json.dumps(anonymous(plain) | {"host": host | texts}, indent=1, allow_nan=False)


def cell_timings(result: Result) -> dict[str, Any]:
    """What a bundle has of a cell: which one, how it ended, what was read and counted."""
    cell, attestation = result.cell, result.attestation
    return {
        "label": cell.label,
        "device": cell.device,
        "threads": cell.threads,
        "outcome": dataclasses.asdict(result.outcome),
        "predicted_bytes": result.predicted_bytes,
        "replicates": [dataclasses.asdict(replicate) for replicate in result.replicates],
        "attestation": None if attestation is None else dataclasses.asdict(attestation),
    }


def from_json(text: str | bytes, where: str) -> SelfTest:
    """The bundle in ``text``; ``where`` names it in messages.

    Raises:
        StoreError: when it is none, or of another schema.
    """
    wants = "want a file that `doctor --selftest --bundle` wrote"
    try:
        mapping: Any = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: not JSON ({error}); {wants}") from error
    if not isinstance(mapping, dict) or not {"checks", "host", "schema"} <= mapping.keys():
        raise StoreError(f"{where}: no bundle of a self-test; {wants}")
    if mapping["schema"] != SCHEMA:
        raise StoreError(
            f"{where}: written in schema {mapping['schema']}, this version reads {SCHEMA}; read it"
            " with the version that wrote it"
        )
    try:
        return parse(SelfTest, mapping)
    except ConfigError as error:
        raise StoreError(f"{where}: damaged ({error.problems[0]}); {wants}") from error
