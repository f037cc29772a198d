"""Does a cell take another time in another sweep? The same verdict as within one (``verdict``), but
for three things.

* The sweeps ran at other times, so no pass of one is a pass of the other: what passes do to all
  their cells is noise (``of_single_readings``).
* Two kinds of machines are never pooled. Where hosts or versions differ each side has its own
  spread (``unpooled``); on one machine both sides tell about one spread.
* A process that both sweeps hold (``resume`` takes earlier results over) was not measured again,
  and a cell whose ``max`` was found to be another number did other work.

A gate asks whether something has become slower, by more than a threshold. A cell is ``worse`` when
the one-sided interval of its slowdown, at 95 % for all comparisons together (Bonferroni), lies
beyond it: a false alarm in one sweep of twenty at most. It is ``no worse`` when the one-sided
interval at 95 % lies within it (non-inferiority; U.S. FDA, Non-Inferiority Clinical Trials, 2016),
and anything else ``cannot tell``. A sweep is no worse when every cell is. That takes no correction:
if one of them has become slower by the threshold, it passes in one sweep of twenty at most
(intersection-union test; Berger 1982).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from bench.analysis.differences import hosts
from bench.analysis.readings import fewest_requests, least_times_s
from bench.analysis.stats import ALPHA
from bench.analysis.verdict import (
    COMPARED,
    Change,
    Levels,
    change,
    groups_with_blocks,
    logs_of,
    more_certain,
    of_single_readings,
    pooled,
    unpooled,
)
from bench.config.cell import Cell
from bench.record.result import Result
from bench.record.sweep import Spread, Sweep

Standing = Literal["no worse", "worse", "cannot tell"]
Apart = Literal["the same readings", "another size"]
GateWord = Literal["no worse", "worse", "cannot tell", "uncalibrated", "lost"] | Apart

_PROCESSES = (*range(2, 11), 12, 15, 20, 25, 30, 40, 50, 70, 100)  # that may be asked for


@dataclass(frozen=True, slots=True)
class Side:
    """A sweep as far as it can be read."""

    sweep: Sweep
    results: tuple[Result, ...]  # in the order of the grid
    damaged: Mapping[str, str] = field(default_factory=dict)  # by cell_id, why it cannot be read

    @property
    def by_cell(self) -> dict[str, Result]:
        return {result.cell_id: result for result in self.results}


@dataclass(frozen=True, slots=True)
class Noise:
    """How much processes of one cell differ on each of two sides; None: unknown."""

    then: Spread | None
    now: Spread | None
    is_shared: bool  # both tell about the same machine

    def of(self, nows: int, thens: int) -> Spread | None:
        """Of the difference between so many processes on each side."""
        if self.is_shared:
            return self.now
        if self.then is None or self.now is None:
            return None
        return unpooled(self.then, thens, self.now, nows)


@dataclass(frozen=True, slots=True)
class Retimed:
    """A cell's time in two sweeps, with what it is judged by."""

    then: Result
    now: Result
    metric: str
    early: tuple[float, ...]  # logarithms of the processes' minimum times
    late: tuple[float, ...]
    noise: Noise

    def change(self, margin: float, levels: Levels) -> Change:
        """The verdict on it."""
        noise = self.noise.of(len(self.late), len(self.early))
        return change(self.late, self.early, noise, margin, levels)


def apart(now: Result, then: Result) -> Apart | None:
    """Why the times of a cell in two sweeps are not compared; None: they are."""
    if any(replicate in then.replicates for replicate in now.replicates):
        return "the same readings"
    return None if _size(now.cell) == _size(then.cell) else "another size"


def _size(cell: Cell) -> tuple[object, object]:
    """What ``max`` may stand for."""
    return cell.batch, cell.workload.prompt_tokens


def retimed(now: Side, then: Side, cells: Collection[str]) -> list[Retimed]:
    """The times of these cells, which have a number on both sides, metric by metric."""
    early, late = then.by_cell, now.by_cell
    pairs = [(early[cell], late[cell]) for cell in cells]
    if not pairs:
        return []
    requests = fewest_requests(result for pair in pairs for result in pair)
    before, after = zip(*pairs, strict=True)
    is_one = is_one_machine(before, after)
    found = []
    for metric in COMPARED:
        rows = [
            [logs_of(least_times_s(result.measurements, requests)[metric]) for result in of_side]
            for of_side in zip(*pairs, strict=True)
        ]
        spreads = [
            of_single_readings(_in_blocks(of_side, results))
            for of_side, results in zip(rows, zip(*pairs, strict=True), strict=True)
        ]
        calibrations = [side.sweep.calibration.get(metric) for side in (then, now)]
        noise = noise_of(spreads, is_one, calibrations)
        found += [
            Retimed(first, second, metric, tuple(y_then), tuple(y_now), noise)
            for (first, second), y_then, y_now in zip(pairs, *rows, strict=True)
        ]
    return found


def is_one_machine(then: Sequence[Result], now: Sequence[Result]) -> bool:
    """Whether both sides tell about the same noise: same hardware, same versions, same nodes."""
    return not hosts(then[0].host, now[0].host) and nodes(then) == nodes(now)


def nodes(results: Iterable[Result]) -> set[str]:
    """Of a cluster; none where the sweep's own machine has measured."""
    origins = [each.origin for result in results for each in result.replicates]
    return {origin.node for origin in origins if origin is not None}


def _in_blocks(
    rows: Sequence[Sequence[float]], results: Sequence[Result]
) -> list[list[Sequence[float]]]:
    """The rows of these results by groups whose passes are blocks."""
    row_of = {result.cell_id: row for result, row in zip(results, rows, strict=True)}
    return [[row_of[cell] for cell in group] for group in groups_with_blocks(results)]


def noise_of(
    spreads: Sequence[Spread | None],
    is_one: bool,
    calibrations: Sequence[Spread | None] = (None, None),
) -> Noise:
    """The noise of two sides, from what each has read and, where it has not, from its calibration.

    Args:
        is_one: both sides are of one machine.
    """
    if not is_one:
        then, now = (
            own or calibration for own, calibration in zip(spreads, calibrations, strict=True)
        )
        return Noise(then, now, False)
    then, now = spreads
    both = pooled(then, now) if now is not None else then
    shared = both or more_certain(*calibrations)
    return Noise(shared, shared, True)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A cell in one metric, now against an earlier sweep: how many times as long it takes. Without
    a ratio where no time was compared."""

    label: str
    metric: str
    word: GateWord
    ratio: float | None = None
    at_least: float | None = None  # at 95 % for all comparisons together; None: noise unknown
    at_most: float | None = None  # at 95 % for this one
    processes_needed: int | None = None  # on each side, to tell; None: no number would do


def slowdowns(now: Side, then: Side, threshold: float) -> list[Slowdown]:
    """Every cell that had a number and was asked for again, metric by metric. Cells are matched by
    ``cell_id``, so only equal configurations are compared.

    Args:
        threshold: largest slowdown to accept (0.05: 5 %).
    """
    late = now.by_cell
    had = {result.cell_id: result for result in then.results if result.measurements}
    lost = [
        had[cell].cell.label
        for cell in had
        if (cell in late and not late[cell].measurements)
        or (cell in now.sweep.cells and cell not in late and cell not in now.damaged)
    ]
    both = [cell for cell in had if cell in late and late[cell].measurements]
    reasons = {cell: apart(late[cell], had[cell]) for cell in both}
    again = [cell for cell, reason in reasons.items() if reason is None]
    found = [Slowdown(label, "outcome", "lost") for label in lost]
    found += [
        Slowdown(late[cell].cell.label, "outcome", reason)
        for cell, reason in reasons.items()
        if reason is not None
    ]
    comparisons = len(again) * len(COMPARED)
    return found + [_slowdown(each, threshold, comparisons) for each in retimed(now, then, again)]


def overall(changes: Sequence[Slowdown], damaged: bool = False) -> Standing:
    """Of a whole sweep.

    Args:
        damaged: a result of either side cannot be read.
    """
    words = {each.word for each in changes}
    if words & {"worse", "lost"}:
        return "worse"
    return "cannot tell" if damaged or words != {"no worse"} else "no worse"


def _slowdown(of: Retimed, threshold: float, comparisons: int) -> Slowdown:
    label = of.now.cell.label
    nows, thens = len(of.late), len(of.early)
    ratio = math.exp(fmean(of.late) - fmean(of.early))
    noise = of.noise.of(nows, thens)
    if noise is None:
        return Slowdown(label, of.metric, "uncalibrated", ratio)
    word, at_least, at_most = _judged(of, nows, thens, threshold, comparisons)
    needed = None
    if word == "cannot tell":
        more = (n for n in _PROCESSES if n > max(nows, thens))
        words = ((n, _judged(of, n, n, threshold, comparisons)[0]) for n in more)
        needed = next((n for n, would_be in words if would_be != "cannot tell"), None)
    return Slowdown(label, of.metric, word, ratio, at_least, at_most, needed)


def _judged(
    of: Retimed, nows: int, thens: int, threshold: float, comparisons: int
) -> tuple[GateWord, float, float]:
    """The word, and the ends of both one-sided intervals, if so many processes read the same."""
    noise = of.noise.of(nows, thens)
    assert noise is not None
    late, early = ([fmean(logs)] * n for logs, n in ((of.late, nows), (of.early, thens)))
    surely = 1 - ALPHA / comparisons
    alarm = change(late, early, noise, threshold, Levels(surely, surely, surely))
    each = Levels(1 - ALPHA, 1 - ALPHA, 1 - ALPHA)
    _, at_least, _ = alarm.slowdown
    _, _, at_most = change(late, early, noise, threshold, each).slowdown
    assert at_least is not None
    assert at_most is not None
    word: GateWord = "cannot tell"
    if alarm.word == "slower":
        word = "worse"
    elif at_most < 1 + threshold:
        word = "no worse"
    return word, at_least, at_most
