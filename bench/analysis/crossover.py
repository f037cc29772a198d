"""From which batch (or prompt length) on is B faster than A?

Between two measured points at which the answer differs, the logarithm of the ratio of the two times
is taken as a straight line over the logarithm of the batch; where it is zero they are equal. Every
draw of ``plausible`` has its own crossing: their 2.5th and 97.5th percentiles are the interval, and
when fewer than 80 % of the draws cross at all the answer is ``cannot tell``. Lines fitted over the
context give crossings of the same kind (``depth.crossings``).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.advice import SURE, Array, Plausible
from bench.analysis.columns import assignments, coordinate, without_length
from bench.analysis.verdict import COMPARED

_LENGTH = {
    "batch": lambda r: r.cell.batch,
    "prompt_tokens": lambda r: r.measurements[0].prompt_tokens,
}


@dataclass(frozen=True, slots=True)
class Crossover:
    """Below ``at`` the first value is faster, above it the second."""

    metric: str  # tpot_s or ttft_s
    along: str  # batch or prompt_tokens; context, where lines were fitted
    axis: str  # of the two values, like quant
    first: str
    second: str
    at: float
    low: float
    high: float
    probability: float  # share of draws that cross between ``between``
    between: tuple[int, int]  # measured points around it; of a fit the first and the last
    where: str  # what else varies in the sweep, and is this here

    @property
    def is_sure(self) -> bool:
        return self.probability >= SURE

    @property
    def next_point(self) -> int | None:
        """What to measure next to know it better; None when there is nothing in between."""
        low, high = self.between
        if self.along == "context":
            return None
        middle = round(math.sqrt(low * high))
        return middle if low < middle < high else None


def crossovers(draws: Plausible, axis: str, columns: Sequence[str]) -> list[Crossover]:
    """Every change of order between two values of ``axis`` along batch and prompt length.

    Args:
        columns: what tells the cells apart.
    """
    changes: list[Crossover] = []
    for along, of_it in (("batch", "batch"), ("prompt_tokens", "workload")):
        others = [c for c in columns if c != axis and c.partition(".")[0] != of_it]
        # By what else the cells are: by value of the axis, by length, the row of the draws
        groups: dict[tuple[str, str], dict[str, dict[int, int]]] = {}
        for row, result in enumerate(draws.results):
            where = assignments(result.cell, others)
            rest = "" if along == "batch" else without_length(result.cell)
            values = groups.setdefault((where, rest), {})
            values.setdefault(coordinate(result.cell, axis), {})[_LENGTH[along](result)] = row
        for (where, _), values in groups.items():
            for first, second in itertools.combinations(values, 2):
                for metric in COMPARED:
                    turns = _turns(getattr(draws, metric), (first, second), values)
                    changes += [
                        Crossover(metric, along, axis, *turn, where=where) for turn in turns
                    ]
    return changes


def _turns(
    times: Array, names: tuple[str, str], rows: Mapping[str, Mapping[int, int]]
) -> Iterator[tuple[str, str, float, float, float, float, tuple[int, int]]]:
    """Who is faster below, who above, where with its interval, how sure, and the points around."""
    first, second = (rows[name] for name in names)
    lengths = sorted(set(first) & set(second))
    # Above 0: the second is faster
    gains = {x: np.log(times[first[x]] / times[second[x]]) for x in lengths}
    for low, high in itertools.pairwise(lengths):
        start, end = float(np.median(gains[low])), float(np.median(gains[high]))
        if start * end >= 0:
            continue
        turned = 1 if start < 0 else -1  # the first of the pair is the one that is faster below
        crosses = (turned * gains[low] < 0) & (turned * gains[high] > 0)
        at = _zero(low, high, gains[low][crosses], gains[high][crosses])
        if not len(at):
            continue
        below, above = names if turned == 1 else names[::-1]
        ends = np.quantile(at, [0.025, 0.975])
        middle = float(_zero(low, high, np.array([start]), np.array([end]))[0])
        share = float(crosses.mean())
        yield below, above, middle, float(ends[0]), float(ends[1]), share, (low, high)


def _zero(low: int, high: int, start: Array, end: Array) -> Array:
    """Where the line through (log low, start) and (log high, end) is 0."""
    zero: Array = np.exp(math.log(low) + math.log(high / low) * start / (start - end))
    return zero


def sentence(change: Crossover) -> str:
    """It in words."""
    verb = {"tpot_s": "decodes", "ttft_s": "prefills"}[change.metric]
    lengths = {"batch": "batch", "prompt_tokens": "prompts of", "context": "a context of"}
    length = lengths[change.along]
    unit = " tokens" if change.along != "batch" else ""
    who = f"{change.axis}={change.second} {verb} faster than {change.first} from {length}"
    start = f"{change.where}: {who}" if change.where else who
    low, high = change.between
    if not change.is_sure:
        return f"{start} {low} to {high}{unit} on, or not at all: cannot tell"
    is_far = change.along == "context" and not low <= change.at <= high
    far = f", extrapolated from {low:,} to {high:,}" if is_far else ""
    ends = f"{three_digits(change.low)} to {three_digits(change.high)}"
    text = f"{start} {three_digits(change.at)}{unit} on ({ends}{far})"
    if change.next_point is None:
        return text
    return f"{text}; {length} {change.next_point}{unit} would tell more"


def three_digits(value: float) -> str:
    """A number of tokens or rows as it is shown, like 14.2 or 3,140."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
