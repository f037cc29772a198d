"""Two or more sweeps side by side: what differs between them, then every cell that several of them
have.

A cell is compared with the first sweep that has a number for it, mostly the first one given. Times
are judged as everywhere, with intervals for all of them together (``two_sweeps``). Memory is
compared as it is. Divergence and perplexity were read on the same windows of text, so their
differences are paired, window by window; equal windows are equal.

Ratios are of configurations only where nothing else differs. What is *decisive* (another device,
other libraries, other measuring code, something else in memory) stands before them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import geometric_mean, median
from typing import Literal

from bench.analysis.columns import coordinate, varying_columns
from bench.analysis.differences import Difference, differences, in_memory
from bench.analysis.divergence import is_at_floor
from bench.analysis.metrics import derive, peak_memory_bytes
from bench.analysis.readings import typical_times_s
from bench.analysis.reproduction import STEADY, kernel_change
from bench.analysis.stats import ALPHA, Estimate, mean_interval
from bench.analysis.two_sweeps import Apart, Side, Slowdown, apart, retimed, slowdowns
from bench.analysis.verdict import COMPARED, Change, Levels
from bench.config.cell import Cell
from bench.record.measurement import Window
from bench.record.result import Result

QUALITIES = ("kl_nats", "perplexity")
MEMORY = "memory_bytes"
_USUAL_COLUMNS = ("model", "quant", "batch")  # where nothing varies
_LARGEST_LOG = 700.0  # exp of more is no float

QualityWord = Literal["equal", "higher", "lower", "cannot tell", "at the noise floor"]


@dataclass(frozen=True, slots=True)
class Shift:
    """What a quality moved by: a difference of divergences, or a ratio of perplexities."""

    value: Estimate
    word: QualityWord


@dataclass(frozen=True, slots=True)
class Against:
    """A cell of one sweep against the same of an earlier one."""

    base: int  # which of the sweeps it is compared with
    apart: Apart | None  # why times are not compared; of another size, memory neither
    times: Mapping[str, Change]  # by metric
    memory: float | None  # times as much
    quality: Mapping[str, Shift]  # by metric; empty where windows or references are others


@dataclass(frozen=True, slots=True)
class Row:
    """One cell in every sweep. None, or empty, where a sweep does not have it."""

    results: tuple[Result | None, ...]
    values: tuple[Mapping[str, float], ...]  # of each sweep; ``MEMORY`` among them
    against: tuple[Against | None, ...]  # None for the first that has a number

    @property
    def any_result(self) -> Result:
        return next(result for result in self.results if result is not None)


@dataclass(frozen=True)
class SideBySide:
    """Several sweeps, compared."""

    sides: tuple[Side, ...]
    margin: float
    columns: tuple[str, ...]  # what tells the cells apart
    rows: tuple[Row, ...]  # cells that two or more have, damaged ones too
    alone: tuple[tuple[str, ...], ...]  # of each sweep, labels of the cells that no other has
    apart: tuple[str, ...]  # in what those differ that have one label in two sweeps

    @cached_property
    def elsewhere(self) -> list[list[Difference]]:
        """What is different from the first sweep in each of them, what could matter most first."""
        return [_elsewhere(self.sides[0], side) for side in self.sides]

    @cached_property
    def within(self) -> list[list[tuple[Difference, int]]]:
        """How equal cells did not run as in the first sweep: resolved otherwise on this host, or
        otherwise in memory; with the number of cells."""
        return [self._within(index) for index in range(len(self.sides))]

    @cached_property
    def verdicts(self) -> list[list[Slowdown]]:
        """What a gate with this margin finds in each sweep against the first; nothing for that."""
        first, *later = self.sides
        return [[], *(slowdowns(side, first, self.margin) for side in later)]

    def kernels(self, index: int) -> float | None:
        """How many times as long the reference kernels take as in the first sweep, typically; None
        where they moved by less than they do anyway."""
        moved = [
            change
            for row in self.rows
            if (then := row.results[0]) and (now := row.results[index])
            if (change := kernel_change(then, now)) is not None
        ]
        if not moved or abs(math.log(median(moved))) < math.log1p(STEADY):
            return None
        return median(moved)

    def _within(self, index: int) -> list[tuple[Difference, int]]:
        found: dict[str, list[Difference]] = {}
        for row in self.rows:
            then, now = row.results[0], row.results[index]
            if index and then is not None and now is not None:
                for difference in (*_resolved(then, now), *in_memory(then, now)):
                    found.setdefault(difference.what, []).append(difference)
        return [(_in_one(of), len(of)) for of in found.values()]


def _in_one(differences: Sequence[Difference]) -> Difference:
    """Of several cells, which need not have the same values."""
    first, unique = differences[0], set(differences)
    if len(unique) == 1:
        return first
    return replace(first, then=f"{first.then} and others", now=f"{first.now} and others")


def _elsewhere(first: Side, side: Side) -> list[Difference]:
    if side is first or not first.results or not side.results:
        return []
    hosts = first.results[0].host, side.results[0].host
    return differences(*hosts, first.sweep.provenance, side.sweep.provenance)


def _resolved(then: Result, now: Result) -> list[Difference]:
    """What ``auto`` and ``max`` became, where that is not the same."""
    return [
        Difference(column, coordinate(then.cell, column), coordinate(now.cell, column), True)
        for column in varying_columns([then.cell, now.cell])
    ]


def side_by_side(sides: Sequence[Side], margin: float) -> SideBySide:
    """Compare sweeps with the first of them.

    Args:
        margin: relative difference of times that counts as none (0.03: 3 %).
    """
    of_sides = [side.by_cell for side in sides]
    order = list(dict.fromkeys(cell for results in of_sides for cell in results))
    cells = {cell: tuple(results.get(cell) for results in of_sides) for cell in order}
    had = {
        cell: sum(cell in r or cell in s.damaged for r, s in zip(of_sides, sides, strict=True))
        for cell in order
    }
    shared = {cell: each for cell, each in cells.items() if had[cell] > 1}
    matches = [match for each in shared.values() for match in _matches(each)]
    times = _times(sides, matches, margin)
    read_twice = len(QUALITIES) * sum(_read_the_same(match) for match in matches)
    level = 1 - ALPHA / max(1, read_twice)
    rows = tuple(_row(each, times, level) for each in shared.values())
    alone = [
        tuple(result.cell.label for cell, result in results.items() if cell not in shared)
        for results in of_sides
    ]
    columns = tuple(varying_columns([row.any_result.asked for row in rows])) or _USUAL_COLUMNS
    apart = _apart([result for each in cells.values() for result in each], set(shared))
    return SideBySide(tuple(sides), margin, columns, rows, tuple(alone), apart)


def _apart(results: Sequence[Result | None], shared: set[str]) -> tuple[str, ...]:
    """In what those of one label differ of which one at least is of one sweep alone."""
    labels: dict[str, dict[str, Cell]] = {}
    for result in results:
        if result is not None:
            labels.setdefault(result.cell.label, {})[result.cell_id] = result.asked
    mixed = [cells for cells in labels.values() if not shared.issuperset(cells)]
    return tuple(dict.fromkeys(c for of in mixed for c in varying_columns(list(of.values()))))


@dataclass(frozen=True, slots=True)
class _Match:
    """A cell with a number, and the same in the first sweep that has one."""

    base: int
    then: Result
    index: int
    now: Result

    @property
    def apart(self) -> Apart | None:
        return apart(self.now, self.then)


def _matches(results: Sequence[Result | None]) -> list[_Match]:
    numbered = [(i, r) for i, r in enumerate(results) if r is not None and r.measurements]
    return [_Match(*numbered[0], *later) for later in numbered[1:]] if numbered else []


def _times(
    sides: Sequence[Side], matches: Sequence[_Match], margin: float
) -> dict[tuple[str, int], dict[str, Change]]:
    """Verdicts on times, by cell_id and sweep, then by metric, for all of them together."""
    again = [match for match in matches if match.apart is None]
    comparisons = len(COMPARED) * len(again)
    found: dict[tuple[str, int], dict[str, Change]] = {}
    for base, index in dict.fromkeys((match.base, match.index) for match in again):
        each_side = 1 - ALPHA / (2 * comparisons)
        levels = Levels(each_side, each_side, 1 - ALPHA / comparisons)
        asked = [m.now.cell_id for m in again if (m.base, m.index) == (base, index)]
        for timed in retimed(sides[index], sides[base], asked):
            early, late = (
                geometric_mean(typical_times_s(result.measurements)[timed.metric])
                for result in (timed.then, timed.now)
            )
            change = replace(timed.change(margin, levels), medians_ratio=early / late)
            found.setdefault((timed.now.cell_id, index), {})[timed.metric] = change
    return found


def _row(
    results: tuple[Result | None, ...],
    times: Mapping[tuple[str, int], Mapping[str, Change]],
    level: float,
) -> Row:
    values = tuple({} if result is None else _values(result) for result in results)
    against: list[Against | None] = [None] * len(results)
    for match in _matches(results):
        early, late = (values[i].get(MEMORY) for i in (match.base, match.index))
        is_other_work = match.apart == "another size"
        against[match.index] = Against(
            match.base,
            match.apart,
            times.get((match.now.cell_id, match.index), {}),
            None if early is None or late is None or is_other_work else late / early,
            _shifts(match, level),
        )
    return Row(results, values, tuple(against))


def _values(result: Result) -> dict[str, float]:
    values = derive(result)
    memory = peak_memory_bytes(result, values)
    return values if math.isnan(memory) else values | {MEMORY: memory}


def _read_the_same(match: _Match) -> bool:
    """Whether both sides read the same windows of text."""
    early, late = match.then.divergence, match.now.divergence
    if early is None or late is None:
        return False
    texts = [[(w.text, w.bytes, w.tokens) for w in each.windows] for each in (early, late)]
    return texts[0] == texts[1]


def _shifts(match: _Match, level: float) -> dict[str, Shift]:
    early, late = match.then.divergence, match.now.divergence
    if early is None or late is None or not _read_the_same(match):
        return {}
    windows = list(zip(early.windows, late.windows, strict=True))
    found = {"perplexity": _in_ratio(_shift(windows, lambda w: w.nll_nats, level))}
    if early.reference == late.reference:
        shift = _shift(windows, lambda w: w.kl_nats, level)
        if shift.word != "equal" and is_at_floor(early) and is_at_floor(late):
            shift = replace(shift, word="at the noise floor")
        found["kl_nats"] = shift
    return found


def _shift(
    windows: Sequence[tuple[Window, Window]], value: Callable[[Window], float], level: float
) -> Shift:
    moved = [value(now) - value(then) for then, now in windows]
    found = mean_interval(moved, level)
    if not any(moved):
        return Shift(found, "equal")
    if found.low <= 0 <= found.high:
        return Shift(found, "cannot tell")
    return Shift(found, "higher" if found.value > 0 else "lower")


def _in_ratio(shift: Shift) -> Shift:
    ends = (shift.value.value, shift.value.low, shift.value.high)
    value, low, high = (math.exp(end) if end < _LARGEST_LOG else math.inf for end in ends)
    return Shift(Estimate(value, low, high, shift.value.n), shift.word)
