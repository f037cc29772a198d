"""Does a cell take another time than its baseline? A verdict with an interval, from independent
processes.

The unit is the process, not the request: two processes of one cell differ from each other (memory
layout, CPU placement, neighbours), and an interval from within one process calls two identical
cells different in 47 % of sweeps (simulated). So the whole grid runs R times, each time in another
order and every cell in a fresh process. With y the logarithm of a process's minimum time
(``readings.least_times_s``), each pass is a block: what is left of y after its cell's and its
block's mean is noise, pooled over all cells, with (C - 1)(R - 1) degrees of freedom (randomized
complete block design, Montgomery, Design and Analysis of Experiments, ch. 4). On a cluster the
cells that are compared with each other go through their passes together, each pass on one node:
they have blocks of their own, and the noise of all such groups is pooled. Where passes are no
blocks (some came from another sweep, or were lost) only the cells' means are taken out. The
difference of two
cells is uncertain by t x s x sqrt(1/Ra + 1/Rb), where t takes all comparisons of the table together
(Bonferroni). One process a cell has no noise to estimate, and few have little; then a calibration
of this host stands in: the spread of one cell over several processes.

One interval and one margin give the word, whatever is asked: all of the interval beyond the margin
is ``faster`` or ``slower``; excluding 1 but touching the margin ``different``, of unclear size; an
interval for two one-sided tests all inside the margin ``equivalent`` (Schuirmann 1987); anything
else ``cannot tell``. Three questions differ only in their levels:

* a speedup within a sweep (``speedups``): two-sided, for all comparisons of the table together;
* two sweeps side by side and a gate (``two_sweeps``): at other times or on other machines, so
  without blocks in common;
* a reproduction (``reproduction``): equivalence at 90 %, a difference for all cells together.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean
from typing import Literal

from bench.analysis.readings import fewest_requests, least_times_s, typical_times_s
from bench.analysis.stats import ALPHA, t_quantile
from bench.record.result import Result
from bench.record.sweep import Spread

COMPARED = ("tpot_s", "ttft_s")
# On the scale of logarithms: with a single degree of freedom an interval knows no end
_UNBOUNDED = 100.0

Word = Literal["faster", "slower", "equivalent", "different", "cannot tell", "uncalibrated"]


@dataclass(frozen=True, slots=True)
class Levels:
    """How sure each part of a verdict has to be: one-sided probabilities of Student's t."""

    shown: float  # of the interval that is printed
    decisive: float  # to be beyond the margin, or not 1
    equivalent: float  # to lie inside the margin


@dataclass(frozen=True, slots=True)
class Change:
    """A cell's time beside its baseline's. ``ratio``: how many times as fast the cell is."""

    ratio: float
    low: float | None  # None: the noise between processes is unknown
    high: float | None
    word: Word
    medians_ratio: float | None = None  # the same of the processes' medians, which tables show

    @property
    def slowdown(self) -> tuple[float, float | None, float | None]:
        """How many times as long the cell takes, with the interval's low and high end."""
        low = None if self.high is None else 1 / self.high
        return 1 / self.ratio, low, None if self.low is None else 1 / self.low


def spread(logs: Sequence[Sequence[float]], blocked: bool) -> Spread | None:
    """The noise in readings of cells, one row of logarithms each; None where every cell has a
    single reading.

    Args:
        blocked: the k-th readings of all cells were taken in the same pass; the rows are of equal
            length.
    """
    return spread_of_groups([logs] if blocked else [[row] for row in logs])


def spread_of_groups(groups: Sequence[Sequence[Sequence[float]]]) -> Spread | None:
    """The noise in readings of groups of cells, each of which has blocks of its own; a cell alone
    has none. None where every cell has a single reading."""
    squares, df = 0.0, 0
    for logs in groups:
        means = [fmean(row) for row in logs]
        blocks = [fmean(column) - fmean(means) for column in zip(*logs, strict=True)]
        if len(logs) == 1:
            blocks = [0.0] * len(blocks)
        squares += sum(
            (y - mean - block) ** 2
            for row, mean in zip(logs, means, strict=True)
            for y, block in zip(row, blocks, strict=True)
        )
        df += max(1, len(logs) - 1) * (len(blocks) - 1)
    return Spread(math.sqrt(squares / df), df) if df else None


def of_single_readings(groups: Sequence[Sequence[Sequence[float]]]) -> Spread | None:
    """The noise of readings that are compared with those of another sweep, where passes do not
    cancel; None where every cell has a single reading.

    What all cells of a pass share is part of that noise, and there are only as many passes as there
    are: the sum of both parts has Satterthwaite's degrees of freedom. Counting every reading of
    every cell as independent raises false alarms where passes differ.

    Args:
        groups: as of ``spread_of_groups``.
    """
    whole = spread([row for group in groups for row in group], blocked=False)
    within = spread_of_groups(groups)
    if whole is None or within is None or not whole.deviation or within.df == whole.df:
        return whole
    total, rest = (noise.deviation**2 * noise.df for noise in (whole, within))
    shared = max(0.0, total - rest)
    df = total**2 / (shared**2 / (whole.df - within.df) + rest**2 / within.df)
    return Spread(whole.deviation, df)


def unpooled(then: Spread, thens: int, now: Spread, nows: int) -> Spread:
    """The noise of a difference between two machines: each side's own, with Satterthwaite's degrees
    of freedom (Welch 1947), as the one spread that makes the same interval.

    Args:
        thens, nows: processes on each side.
    """
    early, late = then.deviation**2 / thens, now.deviation**2 / nows
    if not early + late:
        return Spread(0.0, min(then.df, now.df))
    df = (early + late) ** 2 / (early**2 / then.df + late**2 / now.df)
    return Spread(math.sqrt((early + late) / (1 / thens + 1 / nows)), df)


def more_certain(own: Spread | None, calibration: Spread | None) -> Spread | None:
    """The sweep's own noise or the host's, whichever has more degrees of freedom."""
    spreads = [noise for noise in (own, calibration) if noise is not None]
    return max(spreads, key=lambda noise: noise.df, default=None)


def pooled(own: Spread | None, prior: Spread) -> Spread:
    """The noise found so far together with what was believed before, each by its degrees of
    freedom (the posterior of a variance under a scaled inverse chi-squared prior; Gelman et al.,
    Bayesian Data Analysis, section 2.6)."""
    if own is None:
        return prior
    df = own.df + prior.df
    variance = (own.df * own.deviation**2 + prior.df * prior.deviation**2) / df
    return Spread(math.sqrt(variance), df)


def change(
    cell: Sequence[float],
    base: Sequence[float],
    noise: Spread | None,
    margin: float,
    levels: Levels,
) -> Change:
    """The verdict on a cell and its baseline.

    Args:
        cell, base: logarithms of times, one a process.
        margin: relative difference that counts as none (0.03: 3 %).
    """
    gain = fmean(base) - fmean(cell)  # times: less is faster
    if noise is None:
        return Change(math.exp(gain), None, None, "uncalibrated")
    half = _half(noise, len(cell), len(base), levels.shown)
    low, high = (
        math.exp(max(-_UNBOUNDED, min(_UNBOUNDED, end))) for end in (gain - half, gain + half)
    )
    return Change(
        math.exp(gain), low, high, word(gain, noise, len(cell), len(base), margin, levels)
    )


def word(gain: float, noise: Spread, cell: int, base: int, margin: float, levels: Levels) -> Word:
    """What a gain, a difference of logarithms, is called with so many processes on each side."""
    limit = math.log1p(margin)
    if abs(gain) + _half(noise, cell, base, levels.equivalent) < limit:
        return "equivalent"
    half = _half(noise, cell, base, levels.decisive)
    if abs(gain) - half > limit:
        return "faster" if gain > 0 else "slower"
    return "different" if abs(gain) > half else "cannot tell"


def _half(noise: Spread, cell: int, base: int, probability: float) -> float:
    error = noise.deviation * math.sqrt(1 / cell + 1 / base)
    return error * t_quantile(probability, noise.df)


def compare_pairs(
    logs: Mapping[str, Sequence[float]],
    pairs: Sequence[tuple[str, str]],
    *,
    groups: Sequence[Sequence[str]],
    margin: float,
    comparisons: int,
    calibration: Spread | None = None,
) -> dict[str, Change]:
    """The verdict on each ``(cell, baseline)`` of ``pairs``, by cell.

    Args:
        logs: logarithms of times, one a process, of every cell of the sweep; more cells tell more
            about the noise.
        groups: the cells of each group whose passes are blocks (``groups_with_blocks``).
        comparisons: how many are read side by side, in all metrics together.
    """
    own = spread_of_groups([[logs[cell] for cell in group] for group in groups])
    noise = more_certain(own, calibration)
    each_side = 1 - ALPHA / (2 * comparisons)
    levels = Levels(each_side, each_side, 1 - ALPHA / comparisons)
    return {cell: change(logs[cell], logs[base], noise, margin, levels) for cell, base in pairs}


def groups_with_blocks(measured: Sequence[Result]) -> list[list[str]]:
    """cell_ids of the cells whose k-th processes ran in the same block, group by group; a cell
    whose passes are no blocks is a group of its own."""
    on_nodes = [r for r in measured if any(each.origin is not None for each in r.replicates)]
    here = [r for r in measured if r not in on_nodes]
    passes = {len(result.measurements) for result in here}
    groups: dict[Hashable, list[str]] = {}
    if len(passes) == 1 and all(result.reused_from is None for result in here):
        groups[""] = [result.cell_id for result in here]
    else:
        groups |= {result.cell_id: [result.cell_id] for result in here}
    for result in on_nodes:
        origins = tuple(each.origin for each in result.replicates)
        key = result.cell_id if None in origins or result.reused_from else origins
        groups.setdefault(key, []).append(result.cell_id)
    return list(groups.values())


def speedups(
    results: Sequence[Result],
    pairs: Sequence[tuple[str, str]],
    margin: float,
    calibration: Mapping[str, Spread],
) -> dict[str, dict[str, Change]]:
    """How TTFT and TPOT of each cell compare with its baseline's: by metric, then by cell_id. Of
    cells that a cluster has measured on different nodes it cannot tell.

    Args:
        calibration: by metric, the spread between processes that was found on this host; for sweeps
            of a single pass.
    """
    if not pairs:
        return {}
    measured = [result for result in results if result.measurements]
    requests = fewest_requests(measured)
    times = {r.cell_id: least_times_s(r.measurements, requests) for r in measured}
    groups = groups_with_blocks(measured)
    elsewhere = {r.cell_id for r in measured if any(each.origin for each in r.replicates)}
    typical = {r.cell_id: typical_times_s(r.measurements) for r in measured}
    found = {}
    for metric in COMPARED:
        changes = compare_pairs(
            {cell: logs_of(of_cell[metric]) for cell, of_cell in times.items()},
            pairs,
            groups=groups,
            margin=margin,
            comparisons=len(pairs) * len(COMPARED),
            calibration=calibration.get(metric),
        )
        means = {cell: geometric_mean(of_cell[metric]) for cell, of_cell in typical.items()}
        found[metric] = {
            cell: replace(changes[cell], medians_ratio=means[base] / means[cell])
            for cell, base in pairs
        }
        for cell, base in pairs:
            if cell in elsewhere and not any({cell, base} <= set(group) for group in groups):
                found[metric][cell] = replace(found[metric][cell], word="cannot tell")
    return found


def logs_of(times_s: Sequence[float]) -> list[float]:
    return [math.log(seconds) for seconds in times_s]
