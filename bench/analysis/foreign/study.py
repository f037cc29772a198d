"""Figures of a study as a table: CSV in our names, keys and SI units, as ``sweeps/published`` has
them.

Comments at the top say where the figures are from (``# Source: ``) and how they were measured
(``# Protocol: ``). A field that is empty is unknown.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.analysis.foreign.file import File
from bench.analysis.metrics import METRIC
from bench.config.parse import COUNT, POSITIVE, within
from bench.record.foreign import Foreign

_SOURCE, _PROTOCOL = "# Source: ", "# Protocol: "
_PLACE = ("hardware", "model", "quant", "attn", "batch", "prompt_tokens", "new_tokens")
_COUNTS = ("batch", "prompt_tokens", "new_tokens")


@dataclass(frozen=True, slots=True)
class _Row:
    hardware: str
    model: str
    quant: str
    batch: int = field(metadata=COUNT)
    values: Mapping[str, float] = field(metadata=within(each=POSITIVE))
    attn: str | None = None
    prompt_tokens: int | None = field(default=None, metadata=COUNT)
    new_tokens: int | None = field(default=None, metadata=COUNT)


def is_it(text: str) -> bool:
    """Whether this is such a table."""
    return any(line.startswith(_SOURCE) for line in text.splitlines())


def read(file: File) -> list[Foreign]:
    """Each row as a configuration.

    Raises:
        ConfigError: when a comment or column is missing, or is none of ours.
    """
    lines = file.text.splitlines()
    source, protocol = (_about(file, lines, start) for start in (_SOURCE, _PROTOCOL))
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    wrong = [name for name in table.fieldnames or () if name not in (*_PLACE, *METRIC)]
    missing = [name for name in _PLACE if name not in (table.fieldnames or ())]
    if wrong or missing:
        what = f"no column {missing[0]}" if missing else f"{wrong[0]}: no metric of ours"
        raise file.refused(
            f"{what}; want {', '.join(_PLACE)} and keys of bench/analysis/metrics.py"
        )
    return [_configuration(file, source, protocol, fields) for fields in table]


def _about(file: File, lines: Sequence[str], start: str) -> str:
    found = next((line.removeprefix(start) for line in lines if line.startswith(start)), None)
    if found is None:
        raise file.refused(f"no line that begins with {start.strip()}")
    return found


def _configuration(
    file: File, source: str, protocol: str, fields: Mapping[str, str | None]
) -> Foreign:
    given = {name: text for name, text in fields.items() if text}
    numbers = {name: _number(given[name]) for name in given if name in (*METRIC, *_COUNTS)}
    place = {name: numbers.get(name, given[name]) for name in _PLACE if name in given}
    values = {name: number for name, number in numbers.items() if name not in _COUNTS}
    row = file.fields(_Row, {**place, "values": values}, "a table of figures")
    return Foreign(
        file=file.name,
        digest=file.digest,
        tool="a study",
        protocol=protocol,
        source=source,
        hardware=row.hardware,
        model=row.model,
        quant=row.quant,
        attn=row.attn,
        batch=row.batch,
        prompt_tokens=row.prompt_tokens,
        new_tokens=row.new_tokens,
        values=row.values,
        unknown=("spread of the repetitions",),
    )


def _number(text: str) -> int | float | str:
    """A text that is no number stays one, for the message about it."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text
