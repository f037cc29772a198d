"""Which columns tell the cells of a sweep apart, and how fast each is relative to its baseline.

The baseline of a cell is the cell that is equal on every other axis and has the baseline's value on
the compared one; by default that is the first value of the first axis that varies. What a speedup
is worth is decided in ``verdict``.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.analysis.readings import process_times_s
from bench.analysis.verdict import Spread, Verdict, compare
from bench.config.cell import Cell, digest, identity
from bench.config.settings import Baseline
from bench.record.result import Result

COMPARED = ("tpot_s", "ttft_s")
# What one asks about first
_ORDER = ("quant", "attn", "decode", "model", "workload", "threads", "seed")


@dataclass(frozen=True, slots=True)
class Reference:
    """What the speedups of a sweep are relative to: ``values`` of axes, like quant=fp16."""

    values: dict[str, str]

    @property
    def axes(self) -> str:
        return " and ".join(self.values)

    def __str__(self) -> str:
        return " ".join(f"{axis}={value}" for axis, value in self.values.items())


def varying_columns(cells: Sequence[Cell]) -> list[str]:
    """Dotted paths of what differs between the cells: a group's name, or a field where equal names
    hide a difference."""
    columns: list[str] = []
    for field in dataclasses.fields(Cell) if cells else ():
        values = [getattr(cell, field.name) for cell in cells]
        if not dataclasses.is_dataclass(values[0]):
            if len({repr(value) for value in values}) > 1:
                columns.append(field.name)
            continue
        if len({value.name for value in values}) > 1:
            columns.append(field.name)
        columns += [f"{field.name}.{name}" for name in _hidden_differences(values)]
    return columns


def _hidden_differences(values: list[Any]) -> list[str]:
    found = []
    for field in dataclasses.fields(values[0]):
        if field.name == "name" or not field.metadata.get("identity", True):
            continue
        pairs = {(value.name, digest(getattr(value, field.name))) for value in values}
        if len(pairs) > len({value.name for value in values}):
            found.append(field.name)
    return found


def is_group(column: str) -> bool:
    """Whether a column stands for a whole group, whose values have names."""
    field_type = {field.name: field.type for field in dataclasses.fields(Cell)}[column]
    return dataclasses.is_dataclass(field_type)


def coordinate(cell: Cell, column: str) -> str:
    """The cell's value in a column of ``varying_columns``, as text."""
    value: Any = cell
    for name in column.split("."):
        value = getattr(value, name)
    return str(getattr(value, "name", value))  # a group is called by its name


def comparable(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results that are alternatives to each other, by what sets the groups apart: another model or
    workload is none."""
    columns = [
        c
        for c in varying_columns([r.cell for r in results])
        if c.partition(".")[0] in ("model", "workload")
    ]
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(
            " ".join(coordinate(result.cell, column) for column in columns), []
        ).append(result)
    return found


def reference(cells: Sequence[Cell], baseline: Baseline) -> Reference | None:
    """What to compare with; None when no axis varies."""
    asked = {axis: str(value) for axis in _ORDER if (value := getattr(baseline, axis)) is not None}
    if asked:
        return Reference(asked)
    for axis in _ORDER:
        names = [coordinate(cell, axis) for cell in cells]
        if len(set(names)) > 1:
            return Reference({axis: names[0]})
    return None


def unknown_baseline(cells: Sequence[Cell], baseline: Baseline) -> list[str]:
    """A sentence for each value of the baseline that no cell has."""
    problems = []
    for axis in _ORDER:
        names = list(dict.fromkeys(coordinate(cell, axis) for cell in cells))
        value = getattr(baseline, axis)
        if value is not None and str(value) not in names:
            problems.append(
                f"baseline.{axis}={value}: no cell of this sweep has it; there are"
                f" {', '.join(names)}"
            )
    return problems


def verdicts(
    results: Sequence[Result],
    against: Reference | None,
    margin: float,
    calibration: Mapping[str, Spread],
) -> dict[str, dict[str, Verdict]]:
    """How TTFT and TPOT of each cell compare with its baseline's: metric, then cell_id. Cells
    without a pair are left out.

    Args:
        calibration: by metric, the spread between processes that was found on this host; for sweeps
            of a single pass.
    """
    measured = {result.cell_id: result for result in results if result.measurements}
    compared = pairs(list(measured.values()), against) if against is not None else []
    if not compared:
        return {}
    times = {cell: process_times_s(result.measurements) for cell, result in measured.items()}
    passes = {len(result.measurements) for result in measured.values()}
    blocked = len(passes) == 1 and all(result.reused_from is None for result in measured.values())
    return {
        metric: compare(
            {cell: [math.log(value) for value in each[metric]] for cell, each in times.items()},
            compared,
            blocked=blocked,
            margin=margin,
            comparisons=len(compared) * len(COMPARED),
            calibration=calibration.get(metric),
        )
        for metric in COMPARED
    }


def pairs(measured: Sequence[Result], against: Reference) -> list[tuple[str, str]]:
    """Each cell that is no baseline, with the one that is equal to it on every other axis."""
    baselines: dict[str, str | None] = {}
    for result in measured:
        if _is_baseline(result.cell, against):
            place = identity_without(result.cell, against.values)
            # Two baselines for one cell differ in something that their names hide: neither is the
            # one.
            baselines[place] = None if place in baselines else result.cell_id
    found = []
    for result in measured:
        base = baselines.get(identity_without(result.cell, against.values))
        if base is not None and not _is_baseline(result.cell, against):
            found.append((result.cell_id, base))
    return found


def _is_baseline(cell: Cell, against: Reference) -> bool:
    return all(coordinate(cell, axis) == value for axis, value in against.values.items())


def identity_without(cell: Cell, axes: Collection[str]) -> str:
    """A digest of the cell without these axes: equal for cells that differ in nothing else."""
    return digest({name: value for name, value in identity(cell).items() if name not in axes})
