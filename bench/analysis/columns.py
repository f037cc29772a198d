"""Which columns tell the cells of a sweep apart, and which cell is the baseline of which.

The baseline of a cell is the cell that is equal on every other axis and has the baseline's value on
the compared one; by default that is the first value of the first axis that varies.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bench.config.cell import Cell, digest, identity
from bench.config.settings import Baseline
from bench.record.result import Result

# In the order in which one asks about them
AXES = ("quant", "attn", "decode", "engine", "model", "workload", "threads", "seed")


@dataclass(frozen=True, slots=True)
class BaselineAxes:
    """What the speedups of a sweep are relative to: ``values`` of axes, like quant=fp16."""

    values: Mapping[str, str]

    @property
    def axes(self) -> str:
        return " and ".join(self.values)

    def __str__(self) -> str:
        return " ".join(f"{axis}={value}" for axis, value in self.values.items())


def varying_columns(cells: Sequence[Cell]) -> list[str]:
    """Dotted paths of what differs between the cells: a group's name, or a field of it where equal
    names hide a difference."""
    columns: list[str] = []
    for field in dataclasses.fields(Cell) if cells else ():
        values = [getattr(cell, field.name) for cell in cells]
        if not dataclasses.is_dataclass(values[0]):
            columns += [field.name] if len({repr(value) for value in values}) > 1 else []
            continue
        if len({value.name for value in values}) > 1:
            columns.append(field.name)
        columns += [f"{field.name}.{path}" for path in _hidden_differences(values)]
    return columns


def _hidden_differences(groups: list[Any]) -> list[str]:
    names = {group.name for group in groups}
    unique = {digest(group): group for group in groups}.values()
    leaves = [(group.name, dict(_leaves(identity(group)))) for group in unique]
    paths = dict.fromkeys(path for _, fields in leaves for path in fields if path != "name")
    values = {path: {(name, digest(fields.get(path))) for name, fields in leaves} for path in paths}
    return [path for path, pairs in values.items() if len(pairs) > len(names)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else key)
    else:
        yield path, value


def is_group(column: str) -> bool:
    """Whether a column stands for a whole group, whose values have names."""
    field_type = {field.name: field.type for field in dataclasses.fields(Cell)}[column]
    return dataclasses.is_dataclass(field_type)


def coordinate(cell: Cell, column: str) -> str:
    """The cell's value in a column of ``varying_columns``, as text; "-" where it has none."""
    value: Any = cell
    for name in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(name, "-")
        else:
            value = getattr(value, name) if dataclasses.is_dataclass(value) else "-"
    return str(getattr(value, "name", value))  # a group is called by its name


def short_name(
    cell: Cell, columns: Sequence[str], before: Mapping[str, str] = MappingProxyType({})
) -> str:
    """A cell by what tells it apart, like ``nf4 batch 8``: a name says what it is, a number does
    not. ``before``: what stands before the numbers of a column, if not its name."""
    values = ((column, coordinate(cell, column)) for column in columns)
    return " ".join(
        value if value[:1].isalpha() else f"{before.get(column, f'{column} ')}{value}"
        for column, value in values
    )


def assignments(cell: Cell, columns: Sequence[str]) -> str:
    """A cell as one would type it, like ``quant=nf4 batch=8``."""
    return " ".join(f"{column}={coordinate(cell, column)}" for column in columns)


def comparable(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of one model and workload each, which are alternatives to each other, by what sets
    the groups apart."""
    varying = varying_columns([result.cell for result in results])
    columns = [c for c in varying if c.partition(".")[0] in ("model", "workload")]
    groups: dict[str, list[Result]] = {}
    for result in results:
        name = " ".join(coordinate(result.cell, column) for column in columns)
        groups.setdefault(name, []).append(result)
    return groups


def baseline_axes(cells: Sequence[Cell], baseline: Baseline) -> BaselineAxes | None:
    """What to compare with; None when no axis varies."""
    asked = {axis: str(value) for axis in AXES if (value := getattr(baseline, axis)) is not None}
    if asked:
        return BaselineAxes(asked)
    for axis in AXES:
        names = [coordinate(cell, axis) for cell in cells]
        if len(set(names)) > 1:
            return BaselineAxes({axis: names[0]})
    return None


def unknown_baseline(cells: Sequence[Cell], baseline: Baseline) -> list[str]:
    """A sentence for each value of the baseline that no cell has."""
    problems = []
    for axis in AXES:
        names = list(dict.fromkeys(coordinate(cell, axis) for cell in cells))
        value = getattr(baseline, axis)
        if value is not None and str(value) not in names:
            problems.append(
                f"baseline.{axis}={value}: no cell of this sweep has it; there are"
                f" {', '.join(names)}"
            )
    return problems


def pairs(measured: Sequence[Result], against: BaselineAxes) -> list[tuple[str, str]]:
    """The cell_id of each cell that is no baseline, with that of the one that is equal to it on
    every other axis."""
    places = [identity_without(result.cell, against.values) for result in measured]
    are_baselines = [_is_baseline(result.cell, against) for result in measured]
    baselines: dict[str, str | None] = {}
    for result, place, is_baseline in zip(measured, places, are_baselines, strict=True):
        if is_baseline:
            # Two baselines for one cell differ in something that their names hide: take neither
            baselines[place] = None if place in baselines else result.cell_id
    return [
        (result.cell_id, base)
        for result, place, is_baseline in zip(measured, places, are_baselines, strict=True)
        if not is_baseline and (base := baselines.get(place)) is not None
    ]


def _is_baseline(cell: Cell, against: BaselineAxes) -> bool:
    return all(coordinate(cell, axis) == value for axis, value in against.values.items())


def identity_without(cell: Cell, axes: Collection[str]) -> str:
    """A digest of the cell without these axes: equal for cells that differ in nothing else."""
    return digest({name: value for name, value in identity(cell).items() if name not in axes})


def without_length(cell: Cell) -> str:
    """What else a workload is than its prompt's length: times are compared along that where nothing
    else differs."""
    fields = identity(cell.workload).items()
    lengths = ("name", "prompt_tokens", "bucket")
    return digest({name: value for name, value in fields if name not in lengths})
