"""Which columns tell the cells of a sweep apart, and how fast each is relative to its baseline.

The baseline of a cell is the cell that is equal on every other axis and has the baseline's value on the compared one;
by default that is the first value of the first axis that varies. A speedup here is a ratio of two medians, each from
one process: it says nothing about its own uncertainty yet.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.analysis.metrics import derive
from bench.result import Result
from bench.spec import Baseline, Cell, digest, identity

_ORDER = ("quant", "attn", "decode", "model", "workload")  # what one asks about first


@dataclass(frozen=True, slots=True)
class Reference:
    """What the speedups of a sweep are relative to: ``values`` of axes, like quant=fp16."""

    values: dict[str, str]

    def __str__(self) -> str:
        return " ".join(f"{axis}={value}" for axis, value in self.values.items())


def varying_columns(cells: Sequence[Cell]) -> list[str]:
    """Dotted paths of what differs between the cells: a group's name, or a field where equal names hide a difference."""
    columns = []
    for field in dataclasses.fields(Cell):
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


def coordinate(cell: Cell, column: str) -> str:
    """The cell's value in a column of ``varying_columns``, as text."""
    value: Any = cell
    for name in column.split("."):
        value = getattr(value, name)
    return str(getattr(value, "name", value))  # a group is called by its name


def reference(cells: Sequence[Cell], baseline: Baseline) -> Reference | None:
    """What to compare with; None when no axis varies."""
    asked = {axis: value for axis in _ORDER if (value := getattr(baseline, axis)) is not None}
    if asked:
        return Reference(asked)
    for axis in _ORDER:
        names = [getattr(cell, axis).name for cell in cells]
        if len(set(names)) > 1:
            return Reference({axis: names[0]})
    return None


def unknown_baseline(cells: Sequence[Cell], baseline: Baseline) -> list[str]:
    """A sentence for each value of the baseline that no cell has."""
    problems = []
    for axis in _ORDER:
        names = list(dict.fromkeys(getattr(cell, axis).name for cell in cells))
        value = getattr(baseline, axis)
        if value is not None and value not in names:
            problems.append(f"baseline.{axis}={value}: no cell of this sweep has it; there are {', '.join(names)}")
    return problems


def speedups(results: Sequence[Result], against: Reference | None) -> dict[str, float]:
    """Decode throughput relative to the baseline's, by cell_id; cells without such a pair are left out."""
    if against is None:
        return {}
    rates = {result.cell_id: derive(result).get("decode_tok_s") for result in results}
    baselines: dict[str, float | None] = {}
    for result in results:
        if all(getattr(result.cell, axis).name == value for axis, value in against.values.items()):
            place = _elsewhere(result.cell, against)
            # Two baselines for one cell differ in something that their names hide: neither is the one.
            baselines[place] = None if place in baselines else rates[result.cell_id]
    found = {}
    for result in results:
        rate, base = rates[result.cell_id], baselines.get(_elsewhere(result.cell, against))
        if rate is not None and base is not None:
            found[result.cell_id] = rate / base
    return found


def _elsewhere(cell: Cell, against: Reference) -> str:
    """The cell without the compared axes: equal for a cell and its baseline."""
    rest = {name: value for name, value in identity(cell).items() if name not in against.values}
    return digest(rest)
