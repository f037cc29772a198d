"""From which batch (or prompt length) on is B faster than A?

Between two measured points at which the answer differs, the logarithm of the ratio of the two times
is taken as a straight line over the logarithm of the batch; where it is zero they are equal. Every
draw of ``plausible`` has its own crossing: their 2.5th and 97.5th percentiles are the interval, and
when fewer than 80 % of the draws cross at all it cannot be told.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.advice import SURE
from bench.analysis.comparison import coordinate, varying_columns
from bench.analysis.plausible import Array, Plausible
from bench.config.cell import digest, identity
from bench.record.result import Result

_TIMES: Mapping[str, Callable[[Plausible], Array]] = {
    "tpot_s": lambda k: k.tpot_s,
    "ttft_s": lambda k: k.ttft_s,
}
_LENGTH = {
    "batch": lambda r: r.cell.batch,
    "prompt_tokens": lambda r: r.measurements[0].prompt_tokens,
}


@dataclass(frozen=True, slots=True)
class Crossover:
    """Below ``at`` the first value is faster, above it the second."""

    metric: str  # tpot_s or ttft_s
    along: str  # batch or prompt_tokens
    axis: str  # of the two values, like quant
    first: str
    second: str
    where: str  # what else varies in the sweep, and is this here
    at: float
    low: float
    high: float
    probability: float  # share of draws that cross between ``between``
    between: tuple[int, int]  # measured points around it

    @property
    def is_sure(self) -> bool:
        return self.probability >= SURE

    @property
    def next_point(self) -> int | None:
        """What to measure next to know it better; None when there is nothing in between."""
        low, high = self.between
        middle = round(math.sqrt(low * high))
        return middle if low < middle < high else None


def crossovers(known: Plausible, axis: str) -> list[Crossover]:
    """Every change of order between two values of ``axis`` along batch and prompt length."""
    found = []
    columns = varying_columns([result.cell for result in known.results])
    for along, of_it in (("batch", "batch"), ("prompt_tokens", "workload")):
        others = [
            column for column in columns if column != axis and column.partition(".")[0] != of_it
        ]
        groups: dict[tuple[str, str], dict[str, dict[int, int]]] = {}  # where, value, length -> row
        for row, result in enumerate(known.results):
            where = " ".join(f"{column}={coordinate(result.cell, column)}" for column in others)
            place = where, "" if along == "batch" else _without_length(result)
            groups.setdefault(place, {}).setdefault(coordinate(result.cell, axis), {})[
                _LENGTH[along](result)
            ] = row
        for (where, _), values in groups.items():
            for first, second in itertools.combinations(values, 2):
                for metric, times in _TIMES.items():
                    names = (metric, along, axis, first, second, where)
                    found += _along(times(known), values[first], values[second], names)
    return found


def _without_length(result: Result) -> str:
    """What else a workload is: prompts are compared along their length where nothing else
    differs."""
    kept = {
        name: value
        for name, value in identity(result.cell.workload).items()
        if name not in ("name", "prompt_tokens")
    }
    return digest(kept)


def _along(
    times: Array,
    first: Mapping[int, int],
    second: Mapping[int, int],
    names: tuple[str, str, str, str, str, str],
) -> list[Crossover]:
    metric, along, axis, a, b, where = names
    lengths = sorted(set(first) & set(second))
    # Above 0: the second is faster
    gains = {x: np.log(times[first[x]] / times[second[x]]) for x in lengths}
    found = []
    for low, high in itertools.pairwise(lengths):
        start, end = float(np.median(gains[low])), float(np.median(gains[high]))
        if start * end >= 0:
            continue
        turned = 1 if start < 0 else -1  # the first of the pair is the one that is faster below
        crosses = (turned * gains[low] < 0) & (turned * gains[high] > 0)
        at = _zero(low, high, gains[low][crosses], gains[high][crosses])
        if not len(at):
            continue
        below, above = (a, b) if turned == 1 else (b, a)
        ends = np.quantile(at, [0.025, 0.975])
        middle = float(_zero(low, high, np.array([start]), np.array([end]))[0])
        share = float(crosses.mean())
        found.append(
            Crossover(
                metric,
                along,
                axis,
                below,
                above,
                where,
                middle,
                float(ends[0]),
                float(ends[1]),
                share,
                (low, high),
            )
        )
    return found


def _zero(low: int, high: int, start: Array, end: Array) -> Array:
    """Where the line through (log low, start) and (log high, end) is 0."""
    zero: Array = np.exp(math.log(low) + math.log(high / low) * start / (start - end))
    return zero


def sentences(found: Sequence[Crossover]) -> list[str]:
    """One for each, in words."""
    names = {
        "tpot_s": "decodes",
        "ttft_s": "prefills",
        "batch": "batch",
        "prompt_tokens": "prompts of",
    }
    said = []
    for each in found:
        unit = " tokens" if each.along == "prompt_tokens" else ""
        what = (
            f"{each.axis}={each.second} {names[each.metric]} faster than {each.first} from"
            f" {names[each.along]} "
        )
        start = f"{each.where}: {what}" if each.where else what
        if not each.is_sure:
            said.append(
                f"{start}{each.between[0]} to {each.between[1]}{unit} on, or not at all: cannot"
                " tell"
            )
            continue
        text = f"{start}{each.at:.3g}{unit} on ({each.low:.3g} to {each.high:.3g})"
        more = f"{names[each.along]} {each.next_point}{unit} would tell more"
        said.append(text if each.next_point is None else f"{text}; {more}")
    return said
