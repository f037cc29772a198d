"""What others have published about configurations that a sweep has measured too, and what of it can
be compared.

Hardware, versions and protocols differ, so a published number is no yardstick for ours. The ratio
to a baseline is: both sides have the same model without quantization, in 16 bits or else in fp32,
at the same batch. How many times the baseline's number a configuration has, there and here, is what
gets put side by side.
"""

import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.columns import BaselineAxes, pairs
from bench.record.result import Result

# Better ones first; for a quantized row one of a group may stand for the other
_BASELINES = (("fp16", "bf16"), ("fp32",))
_DEFAULT_ATTN = "sdpa"  # transformers' default


@dataclass(frozen=True, slots=True)
class Row:
    """One published configuration. Names are those of conf/, numbers have the keys and SI units of
    ``METRICS``."""

    hardware: str
    model: str
    quant: str
    attn: str  # empty: the library's default
    batch: int
    prompt_tokens: int | None  # None: not published
    new_tokens: int | None
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Publication:
    """All rows from one source."""

    source: str
    protocol: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A configuration that both sides have, each with its own baseline."""

    there: Row
    there_baseline: Row
    here: Result
    here_baseline: Result


@dataclass(frozen=True, slots=True)
class Compared:
    """A number on both sides; each ratio is to the baseline on the same side."""

    key: str
    there: float
    there_ratio: float
    here: float
    here_ratio: float


def read(text: str) -> Publication:
    """A file of sweeps/published: comments with source and protocol, then a table in which an empty
    field is unknown."""
    lines = text.splitlines()
    table = csv.DictReader(line for line in lines if not line.startswith("#"))
    return Publication(
        _about(lines, "Source"), _about(lines, "Protocol"), tuple(_row(fields) for fields in table)
    )


def _about(lines: Sequence[str], about: str) -> str:
    start = f"# {about}: "
    return next(line.removeprefix(start) for line in lines if line.startswith(start))


def _row(fields: Mapping[str, str]) -> Row:
    place = {field.name for field in dataclasses.fields(Row)}
    return Row(
        hardware=fields["hardware"],
        model=fields["model"],
        quant=fields["quant"],
        attn=fields["attn"],
        batch=int(fields["batch"]),
        prompt_tokens=_count(fields["prompt_tokens"]),
        new_tokens=_count(fields["new_tokens"]),
        values={key: float(text) for key, text in fields.items() if key not in place and text},
    )


def _count(text: str) -> int | None:
    return int(text) if text else None


def matches(results: Sequence[Result], publication: Publication) -> list[Match]:
    """Every published row with each result of its model, quantization, batch and, where it names
    one, attention."""
    measured = [result for result in results if result.measurements]
    return [
        match for row in publication.rows for match in _matches(row, publication.rows, measured)
    ]


def _matches(row: Row, rows: Sequence[Row], measured: Sequence[Result]) -> list[Match]:
    """With the first baseline that both sides have; without a common one there is nothing to
    compare."""
    alike = {
        r.cell_id: r
        for r in measured
        if (r.cell.model.name, r.cell.batch) == (row.model, row.batch)
    }
    for baseline, quant in _baselines(row, rows):
        against = BaselineAxes({"quant": quant} | ({"attn": _DEFAULT_ATTN} if row.attn else {}))
        matched = [
            Match(row, baseline, alike[cell], alike[base])
            for cell, base in pairs(list(alike.values()), against)
            if alike[cell].cell.quant.name == row.quant
            and row.attn in ("", alike[cell].cell.attn.name)
        ]
        if matched:
            return matched
    return []


def _baselines(row: Row, rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """The published baselines of a row, each with the quantizations that it may be compared with
    here; the best first."""
    for quants in _BASELINES:
        for other in rows:
            if other.quant in quants and not other.attn and _place(other) == _place(row):
                if other == row:
                    # A baseline is compared with better ones only: else each pair of them would
                    # come twice
                    return
                stand_ins = [quant for quant in quants if quant != other.quant and not row.attn]
                yield from ((other, quant) for quant in [other.quant, *stand_ins])


def _place(row: Row) -> tuple[str | int | None, ...]:
    return row.hardware, row.model, row.batch, row.prompt_tokens, row.new_tokens


def compared(
    match: Match, keys: Sequence[str], values: Mapping[str, Mapping[str, float]]
) -> list[Compared]:
    """Those of ``keys`` that all four have, in this order. ``values``: derived, by cell_id."""
    there, there_base = match.there.values, match.there_baseline.values
    here, here_base = values[match.here.cell_id], values[match.here_baseline.cell_id]
    four = (there, there_base, here, here_base)
    return [
        Compared(
            key, there[key], there[key] / there_base[key], here[key], here[key] / here_base[key]
        )
        for key in keys
        if all(key in numbers for numbers in four)
    ]
