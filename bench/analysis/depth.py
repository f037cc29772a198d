"""How a decode step grows with the context, and a prefill with the prompt: curves with intervals,
whether they fit, and where two of them cross.

A step reads the weights and does what else is the same at any length (a), and attends to each
token before it (b): ``step = a + b context``. A prefill is ``c + d n + e n^2``: attention relates
each of n tokens to each. The readings are least times (``readings.least_times_s``), one a process
and depth; the context of its steps is their mean, so that a straight line goes through it. Steps of
one process are correlated, and thousands of them say no more about the next process than one does.

Noise is relative: it is the same share of a short time and of a long one. So squares are weighted
by 1 / time^2 (Draper and Smith, Applied Regression Analysis, 3rd ed., section 9.2). The spread
between processes of the same cell, of all these cells together, is pure error (``verdict.spread``);
a sweep of a single pass takes the host's calibration. Depths that are farther off the curve than
pure error explains are a lack of fit (section 2.1, F test at 5 %). Intervals are Student's, of pure
error; with a lack of fit, or where nothing says what pure error is, of the distances from the
curve. A quotient of coefficients, as where two lines cross, has the interval of Fieller's theorem
(1954), which may have no end: then nothing is claimed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from bench.analysis.columns import coordinate, identity_without, without_length
from bench.analysis.crossover import Crossover
from bench.analysis.readings import contexts, fewest_requests, least_times_s
from bench.analysis.stats import ALPHA, Estimate, t_quantile
from bench.analysis.verdict import more_certain, spread
from bench.config.cell import digest
from bench.record.depth import Fit, Growth
from bench.record.result import Result
from bench.record.sweep import Spread

_FEWEST_DEPTHS = 3
# What a fit is about, besides the length of the prompt
_NOT_OF_TIMES = {"workload", "measure", "quality"}

Array = np.ndarray[Any, np.dtype[np.float64]]


def fitted(
    places: Sequence[float], times_s: Sequence[Sequence[float]], degree: int, noise: Spread | None
) -> Fit | None:
    """A polynomial through times; None where nothing would be left to tell how sure it is.

    Args:
        places: numbers of tokens, all different.
        times_s: at each place, one reading a process.
        noise: of logarithms of the readings at one place; None: not known.
    """
    depths, unknowns = len(places), degree + 1
    if depths < unknowns or (noise is None and depths == unknowns):
        return None
    means = np.array([fmean(each) for each in times_s])
    processes = np.array([len(each) for each in times_s])
    powers = np.vander(np.array(places) / max(places), unknowns, increasing=True)
    # Of the means: readings at one place have one weight, and their spread is pure error
    weights = np.sqrt(processes) / means
    design, read = powers * weights[:, None], means * weights
    scaled = np.linalg.lstsq(design, read, rcond=None)[0]
    off = read - design @ scaled
    left = depths - unknowns
    deviation, df, p = _noise(float(off @ off), left, noise)
    units = float(max(places)) ** -np.arange(unknowns)
    covariance = deviation**2 * np.linalg.inv(design.T @ design) * np.outer(units, units)
    return Fit(
        coefficients=tuple(map(float, scaled * units)),
        covariance=tuple(tuple(map(float, row)) for row in covariance),
        df=df,
        deviation=deviation,
        lack_of_fit_p=p,
        farthest=float(np.max(np.abs(off / np.sqrt(processes)))),
    )


def _noise(squares: float, left: int, noise: Spread | None) -> tuple[float, float, float | None]:
    """The deviation of one process with its degrees of freedom, and how often a ratio of lack of
    fit to pure error is as large by chance."""
    from scipy.special import fdtrc  # slow to import

    if noise is None:
        return math.sqrt(squares / left), left, None
    if not left:
        return noise.deviation, noise.df, None
    lack = squares / left
    pure = max(noise.deviation**2, 1e-18)  # planted times have none
    p = float(fdtrc(left, noise.df, lack / pure))
    return (math.sqrt(lack), left, p) if p < ALPHA else (noise.deviation, noise.df, p)


def is_off(fit: Fit) -> bool:
    """Whether the depths are off the curve by more than noise."""
    return fit.lack_of_fit_p is not None and fit.lack_of_fit_p < ALPHA


def coefficient(fit: Fit, power: int) -> Estimate:
    """One coefficient with its interval at 95 %."""
    half = t_quantile(1 - ALPHA / 2, fit.df) * math.sqrt(fit.covariance[power][power])
    value = fit.coefficients[power]
    return Estimate(value, value - half, value + half, 1)


def at(fit: Fit, tokens: float, processes: int | None = None) -> Estimate:
    """What the curve says of a number of tokens: of the curve itself, or, as a prediction, of the
    mean of so many processes."""
    powers = tokens ** np.arange(len(fit.coefficients))
    value = float(powers @ fit.coefficients)
    variance = float(powers @ np.array(fit.covariance) @ powers)
    if processes is not None:
        variance += (fit.deviation * value) ** 2 / processes
    half = t_quantile(1 - ALPHA / 2, fit.df) * math.sqrt(variance)
    return Estimate(value, value - half, value + half, processes or 1)


def quotient(
    above: float, below: float, covariance: Sequence[Sequence[float]], df: float
) -> Estimate | None:
    """``above / below`` with its interval at 95 % (Fieller 1954); None where that has no end,
    because ``below`` may be 0.

    Args:
        covariance: of the two, in this order.
    """
    ((v_above, shared), (_, v_below)) = covariance
    t = t_quantile(1 - ALPHA / 2, df)
    g = t * t * v_below / below**2 if below else math.inf
    if g >= 1:
        return None
    ratio = above / below
    inner = v_above - 2 * ratio * shared + ratio**2 * v_below
    inner -= (t / below) ** 2 * (v_above * v_below - shared**2)
    middle = ratio - t * t * shared / below**2
    half = t / abs(below) * math.sqrt(max(inner, 0.0))
    return Estimate(ratio, (middle - half) / (1 - g), (middle + half) / (1 - g), 1)


def even_tokens(step: Fit) -> Estimate | None:
    """The context at which what grows takes as long as all else in a step; None: cannot tell."""
    base, slope = step.coefficients
    return quotient(base, slope, step.covariance, step.df)


def crossing_tokens(first: Fit, second: Fit) -> Estimate | None:
    """The context at which two configurations' steps take equally long; None: cannot tell, or
    nowhere."""
    base, slope = np.subtract(second.coefficients, first.coefficients)
    # Of (second's base - first's) / (first's slope - second's)
    both = np.add(first.covariance, second.covariance) * np.array([[1, -1], [-1, 1]])
    at_tokens = quotient(float(base), -float(slope), both.tolist(), min(first.df, second.df))
    return at_tokens if at_tokens is not None and at_tokens.low > 0 else None


@dataclass(frozen=True, slots=True)
class Configuration:
    """Cells that differ in the length of their prompt alone, shortest first, and how they grow."""

    results: tuple[Result, ...]
    contexts: tuple[float, ...]  # mean of each cell's decode steps, tokens
    step_s: tuple[tuple[float, ...], ...]  # of each cell, one a process
    prefill_s: tuple[tuple[float, ...], ...]
    growth: Growth

    def named(self, columns: Sequence[str]) -> dict[str, str]:
        """Its values in those columns that its cells agree on."""
        values = {c: [coordinate(r.cell, c) for r in self.results] for c in columns}
        return {column: of[0] for column, of in values.items() if len(set(of)) == 1}


def configuration_of(result: Result) -> str:
    """Equal for cells that differ in nothing but the length of their prompt and in how carefully
    they are measured."""
    rest = identity_without(result.cell, _NOT_OF_TIMES)
    return digest([rest, without_length(result.cell)])


def configurations(
    results: Sequence[Result], calibration: Mapping[str, Spread]
) -> list[Configuration]:
    """All that were measured at three lengths of prompt or more. ``calibration``: by metric."""
    groups: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        if result.measurements:
            place = identity_without(result.cell, {"workload"}), without_length(result.cell)
            groups.setdefault(place, {}).setdefault(result.measurements[0].prompt_tokens, result)
    deep = [group for group in groups.values() if len(group) >= _FEWEST_DEPTHS]
    if not deep:
        return []
    requests = fewest_requests(result for group in deep for result in group.values())
    times = {
        result.cell_id: least_times_s(result.measurements, requests)
        for group in deep
        for result in group.values()
    }
    noise = {}
    for metric in ("tpot_s", "ttft_s"):
        logs = [[math.log(s) for s in of_cell[metric]] for of_cell in times.values()]
        noise[metric] = more_certain(spread(logs, blocked=False), calibration.get(metric))
    grown = (_configuration(group, times, requests, noise) for group in deep)
    return [each for each in grown if each is not None]


def _configuration(
    group: Mapping[int, Result],
    times: Mapping[str, Mapping[str, Sequence[float]]],
    requests: int,
    noise: Mapping[str, Spread | None],
) -> Configuration | None:
    lengths = sorted(group)
    results = tuple(group[length] for length in lengths)
    means = tuple(contexts(result, result.measurements[0])[0] for result in results)
    step_s, prefill_s = (
        tuple(tuple(times[result.cell_id][metric]) for result in results)
        for metric in ("tpot_s", "ttft_s")
    )
    step = fitted(means, step_s, 1, noise["tpot_s"])
    if step is None:
        return None
    growth = Growth(
        configuration=configuration_of(results[0]),
        sweep_id=results[0].sweep_id,
        device_name=results[0].host.device_name,
        prompt_tokens=tuple(lengths),
        requests=requests,
        step=step,
        prefill=fitted(lengths, prefill_s, 2, noise["ttft_s"]),
    )
    return Configuration(results, means, step_s, prefill_s, growth)


def crossings(
    deep: Sequence[Configuration], axis: str, columns: Sequence[str]
) -> Iterator[Crossover]:
    """Where the lines of two values of ``axis`` cross, as far as that can be told. ``columns``:
    what tells the cells apart."""
    by_rest: dict[str, list[Configuration]] = {}
    for each in deep:
        rest = {k: v for k, v in each.named(columns).items() if k != axis}
        where = " ".join(f"{column}={value}" for column, value in rest.items())
        by_rest.setdefault(where, []).append(each)
    for where, alike in by_rest.items():
        for i, one in enumerate(alike):
            for other in alike[i + 1 :]:
                tokens = crossing_tokens(one.growth.step, other.growth.step)
                if tokens is None:
                    continue
                slopes = [each.growth.step.coefficients[1] for each in (one, other)]
                pair = (one, other) if slopes[0] > slopes[1] else (other, one)
                first, second = (coordinate(each.results[0].cell, axis) for each in pair)
                ends = [end for each in (one, other) for end in each.contexts]
                yield Crossover(
                    *("tpot_s", "context", axis, first, second),
                    *(tokens.value, tokens.low, tokens.high),
                    probability=1 - ALPHA,
                    between=(round(min(ends)), round(max(ends))),
                    where=where,
                )
