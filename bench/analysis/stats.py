"""Uncertainty: from readings to intervals, and when it is enough.

Times are compared as ratios, so everything is computed on logarithms: a mean of logarithms is a
geometric mean, and an interval of it is an interval of ratios. Three rules, each from a simulation
or a theorem:

* Looking at the data and stopping as soon as it looks narrow enough makes intervals that hold 76 %
  of the time instead of 95 % (simulated). So there are few looks, at doubling numbers of repeats,
  and each takes its share of the 5 % (Bonferroni).
* An outlier has a high modified z-score (Iglewicz and Hoaglin 1993): 0.6745 x distance from the
  median / median absolute deviation, is above 3.5. It is counted and named, never dropped: it was
  measured.
* A quantile is claimed only from so many readings that the largest of them lies above it with 95 %
  probability (1 - q^n >= 0.95): 59 for the 95th percentile, 299 for the 99th.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

ALPHA = 0.05  # how often an interval may miss, all looks or all comparisons together
_FIRST_LOOK = 5
_OUTLIER_SCORE = 3.5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval and how many readings are behind it."""

    value: float
    low: float
    high: float
    n: int


@functools.cache
def t_quantile(probability: float, df: float) -> float:
    """The value that Student's t with ``df`` degrees of freedom stays below so often."""
    # What scipy.stats.t.ppf calls; scipy.stats itself takes 1.3 s to import, this 0.3 s
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def geometric_interval(values: Sequence[float], level: float) -> Estimate:
    """The geometric mean of positive readings with its t interval; from a single one the interval
    is unbounded."""
    logs = [math.log(value) for value in values]
    centre, n = fmean(logs), len(logs)
    if n == 1:
        return Estimate(values[0], 0.0, math.inf, 1)
    half = t_quantile((1 + level) / 2, n - 1) * float(np.std(logs, ddof=1)) / math.sqrt(n)
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def mean_interval(values: Sequence[float], level: float) -> Estimate:
    """The mean of readings of any sign with its t interval; from a single one the interval is
    unbounded."""
    centre, n = fmean(values), len(values)
    if n == 1:
        return Estimate(centre, -math.inf, math.inf, 1)
    half = t_quantile((1 + level) / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def share_interval(count: int, n: int, level: float) -> Estimate:
    """A share of ``n`` independent items with its exact interval (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv  # as above

    tail = (1 - level) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return Estimate(count / n, low, high, n)


def expected_least(values: Sequence[float], count: int) -> float:
    """The least of ``count`` of these readings, on average over every choice of so many.

    The least of many readings is lower than that of few, so only leasts of equal numbers can be
    compared; this makes use of all readings all the same. The i-th smallest (from 0) of n is the
    least in comb(n - 1 - i, count - 1) of comb(n, count) choices.
    """
    ordered, n = sorted(values), len(values)
    last = n - count  # a larger one is the least of no choice
    weights = [math.comb(n - 1 - i, count - 1) for i in range(last + 1)]
    whole = math.comb(n, count)
    return sum(v * (w / whole) for v, w in zip(ordered[: last + 1], weights, strict=True))


def median_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Two of the readings between which their median lies, and at this level that of all that could
    have been read; the least and the largest where the readings are too few for the level.

    As many readings lie below the true median as a coin shows heads (David and Nagaraja, Order
    Statistics, section 7.1).
    """
    ordered, n = sorted(values), len(values)
    outside = 0.0  # probability that the true median lies below the k-th smallest
    k = 0
    while outside + math.comb(n, k) / 2**n <= (1 - level) / 2:
        outside += math.comb(n, k) / 2**n
        k += 1
    first = max(0, k - 1)
    return ordered[first], ordered[n - 1 - first]


def looks(repeats: int) -> tuple[int, ...]:
    """The numbers of repeats after which to look whether it is enough: doubling from 5, the last is
    ``repeats``."""
    before = itertools.takewhile(
        lambda n: n < repeats, (_FIRST_LOOK * 2**i for i in itertools.count())
    )
    return (*before, repeats)


def look_level(repeats: int) -> float:
    """The level of the interval at each of the ``looks``."""
    return 1 - ALPHA / len(looks(repeats))


def is_narrow(values: Sequence[float], target: float, level: float) -> bool:
    """Whether the geometric mean is known to within ``target`` (0.02: two percent) at this
    level."""
    if len(values) < 2:
        return False
    mean = geometric_interval(values, level)
    return mean.high / mean.value <= 1 + target


def outliers(values: Sequence[float]) -> list[int]:
    """Indices of readings that lie far from the others, on the scale of logarithms."""
    logs = [math.log(value) for value in values]
    centre = median(logs)
    deviation = median(abs(log - centre) for log in logs)
    if deviation == 0:
        return []
    scores = [0.6745 * abs(log - centre) / deviation for log in logs]
    return [i for i, score in enumerate(scores) if score > _OUTLIER_SCORE]


def readings_needed(quantile: float) -> int:
    """How many readings a quantile takes."""
    return math.ceil(math.log(ALPHA) / math.log(quantile))


def sureness(chance: float) -> str:
    """A chance in words: counted draws never make it certain."""
    return "over 99%" if chance > 0.99 else f"{chance:.0%}"
