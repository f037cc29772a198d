"""Is one cell faster than another? A verdict with an interval, from independent processes.

The unit is the process, not the request: two processes of one cell differ from each other (memory
layout, CPU placement, neighbours), and an interval from within one process calls two identical
cells different in 47 % of sweeps (simulated). So the whole grid runs R times, each time in another
order and every cell in a fresh process. With y the logarithm of a process's median time, each pass
is a block: what is left of y after its cell's and its block's mean is noise, pooled over all cells,
with (C - 1)(R - 1) degrees of freedom (randomized complete block design, Montgomery, Design and
Analysis of Experiments, ch. 4). Where passes are no blocks (some came from another sweep) only the
cells' means are taken out. The difference of two cells is uncertain by t x s x sqrt(1/Ra + 1/Rb),
where t takes all comparisons of the table together (Bonferroni). One process a cell has no noise to
estimate, and few have little; then a calibration of this host stands in: the spread of one cell
over several processes.

One interval, one margin (3 % unless said otherwise): all of it beyond the margin is ``faster`` or
``slower``; excluding 1 but touching the margin ``different``, of unclear size; the 90 % interval
all inside the margin ``equivalent`` (two one-sided tests, Schuirmann 1987); anything else ``cannot
tell``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.analysis.stats import ALPHA, t_quantile

# On the scale of logarithms: with a single degree of freedom an interval knows no end
_UNBOUNDED = 100.0

Word = Literal["faster", "slower", "equivalent", "different", "cannot tell", "uncalibrated"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How much processes of one cell differ: a standard deviation of logarithms (0.02: about 2
    %)."""

    deviation: float
    df: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many times as fast as the baseline, with an interval that holds for the whole table at
    once."""

    ratio: float
    low: float | None  # None: uncalibrated
    high: float | None
    word: Word


def spread(logs: Sequence[Sequence[float]], blocked: bool) -> Spread | None:
    """The noise in readings of cells, one row of logarithms each; None where every cell has a
    single reading.

    Args:
        blocked: the k-th readings of all cells were taken in the same pass; the rows are of equal
            length.
    """
    means = [fmean(row) for row in logs]
    if blocked and len(logs) > 1:
        overall = fmean(means)
        blocks = [fmean(column) - overall for column in zip(*logs, strict=True)]
        residuals = [
            y - mean - block
            for row, mean in zip(logs, means, strict=True)
            for y, block in zip(row, blocks, strict=True)
        ]
        df = (len(logs) - 1) * (len(blocks) - 1)
    else:
        residuals = [y - mean for row, mean in zip(logs, means, strict=True) for y in row]
        df = sum(len(row) - 1 for row in logs)
    return Spread(math.sqrt(sum(r * r for r in residuals) / df), df) if df else None


def better_known(own: Spread | None, calibration: Spread | None) -> Spread | None:
    """The sweep's own noise or the host's: few processes tell less than a calibration does. None:
    neither is known."""
    known = [each for each in (own, calibration) if each is not None]
    return max(known, key=lambda each: each.df, default=None)


def compare(
    logs: Mapping[str, Sequence[float]],
    pairs: Sequence[tuple[str, str]],
    *,
    blocked: bool,
    margin: float,
    comparisons: int,
    calibration: Spread | None = None,
) -> dict[str, Verdict]:
    """The verdict on each ``(cell, baseline)`` of ``pairs``, by cell.

    Args:
        logs: logarithms of times, one a process, of every cell of the sweep; more cells tell more
            about the noise.
        comparisons: how many are read side by side, in all metrics together.
    """
    noise = better_known(spread(list(logs.values()), blocked), calibration)
    found = {}
    for cell, base in pairs:
        gain = fmean(logs[base]) - fmean(logs[cell])  # times: less is faster
        if noise is None:
            found[cell] = Verdict(math.exp(gain), None, None, "uncalibrated")
            continue
        error = noise.deviation * math.sqrt(1 / len(logs[cell]) + 1 / len(logs[base]))
        wide = error * t_quantile(1 - ALPHA / (2 * comparisons), noise.df)
        narrow = error * t_quantile(1 - ALPHA / comparisons, noise.df)  # of the 90 % interval
        word = _word(gain, wide, narrow, math.log1p(margin))
        low, high = (
            math.exp(max(-_UNBOUNDED, min(_UNBOUNDED, gain + side))) for side in (-wide, wide)
        )
        found[cell] = Verdict(math.exp(gain), low, high, word)
    return found


def _word(gain: float, wide: float, narrow: float, margin: float) -> Word:
    if abs(gain) + narrow < margin:
        return "equivalent"
    if gain - wide > margin:
        return "faster"
    if gain + wide < -margin:
        return "slower"
    return "different" if abs(gain) > wide else "cannot tell"
