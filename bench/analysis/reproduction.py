"""Has a run been reproduced? An equivalence test between what was read then and what is read now.

The readings are processes, as everywhere (``verdict``), but of a process not the median request is
taken but what is left when nobody interferes: its quickest prefill, and the quickest decode step at
each position. The cells of one sweep are disturbed alike; then and now are not. Neighbours on the
same hardware only ever add time, in bursts of seconds, and the kernel counts none of it: the least
of many times is the robust estimate of what the program itself takes (Chen and Revels, Robust
benchmarking in noisy environments, arXiv 1608.04295). sweeps/LOG.md has by how much medians and
least times of one and the same cell differed here. Where the medians have moved beyond the margin,
that is said beside the verdict: something that the quickest steps do not meet would show there.

y is the logarithm of such a time of a process. What differs between processes of one side is noise,
pooled over both sides and all cells, without blocks. The change is uncertain by t x s x
sqrt(1/n_then + 1/n_now).

* ``reproduced``: the 90 % interval of every change lies inside the margin (two one-sided tests,
  Schuirmann 1987).
* ``differs``: an interval that holds for all changes together at 95 % (Bonferroni) lies outside it.
* ``cannot tell``: anything else; then the number of processes is given that would have told, the
  readings being as they are. Where the original has too few of its own, no number does. A cell that
  was killed, ran out of time, failed or was skipped on one side was not compared; a number where
  there was none, or none where there was one, differs.

Answers and divergence are compared to the last digit where the same machine, versions and threads
promise that: on a CPU; if one side lacks them, whether they are reproduced cannot be told. CUDA
kernels promise it to nobody (torch, Reproducibility), and other versions round otherwise.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, median
from typing import Literal

from bench.analysis.comparison import COMPARED
from bench.analysis.differences import Difference, in_memory
from bench.analysis.readings import disturbances, process_times_s, quickest_times_s
from bench.analysis.stats import ALPHA, t_quantile
from bench.analysis.verdict import Spread, spread
from bench.record.measurement import Measurement
from bench.record.result import Outcome, Result

Word = Literal["reproduced", "differs", "cannot tell"]

_NOT_COMPARED = {"killed", "timeout", "failed", "skipped"}
_MOST_PROCESSES = 100
STEADY = 0.05  # medians of the reference kernels move by less on a quiet machine


@dataclass(frozen=True, slots=True)
class Change:
    """How many times as long it takes now, undisturbed. ``low``, ``high``: 90 %; None where the
    noise is not known."""

    metric: str
    then_s: float  # geometric mean over the processes
    now_s: float
    ratio: float
    medians_ratio: float  # of the processes' medians, which are what tables show
    low: float | None
    high: float | None
    word: Word
    processes_needed: int | None  # of now, to tell; None where it is told, or where no number would


@dataclass(frozen=True, slots=True)
class Exactness:
    """Numbers that must not move at all, if that is promised."""

    promised: bool
    answers: int
    other_answers: int
    windows: int  # of the divergence
    other_windows: int
    is_one_sided: bool  # one side has answers or a divergence that the other lacks

    @property
    def holds(self) -> bool:
        return self.other_answers == self.other_windows == 0


@dataclass(frozen=True, slots=True)
class Reproduction:
    """One cell, now against then."""

    then: Result
    now: Result
    word: Word
    changes: tuple[Change, ...]  # empty where a side has no number
    exactness: Exactness

    @property
    def contamination(self) -> list[tuple[str, float]]:
        """Who else was on this machine's CPUs now: what, and for which share of the time."""
        return disturbances(self.now.measurements) if self.now.measurements else []


def reproductions(pairs: Sequence[tuple[Result, Result]], margin: float) -> list[Reproduction]:
    """Each pair of a result then and one now.

    Args:
        margin: two times are alike when their ratio lies within it (0.05: 5 %).
    """
    changes: list[list[Change]] = [[] for _ in pairs]
    measured = [i for i, (then, now) in enumerate(pairs) if then.measurements and now.measurements]
    for metric in COMPARED:
        logs = {i: (_logs(pairs[i][0], metric), _logs(pairs[i][1], metric)) for i in measured}
        noise = spread([row for both in logs.values() for row in both], blocked=False)
        for i in measured:
            medians = _medians_ratio(*pairs[i], metric)
            changes[i].append(_change(metric, *logs[i], medians, noise, margin, len(measured)))
    return [
        _reproduction(then, now, tuple(found))
        for (then, now), found in zip(pairs, changes, strict=True)
    ]


def overall(found: Sequence[Reproduction]) -> Word:
    """Of a whole sweep: every cell has to be reproduced."""
    words = {each.word for each in found}
    return (
        "differs"
        if "differs" in words
        else "cannot tell"
        if "cannot tell" in words
        else "reproduced"
    )


def kernel_change(then: Result, now: Result) -> float | None:
    """How many times as long the reference kernels take now: of the one that moved most; None
    without a number."""
    if not then.measurements or not now.measurements:
        return None
    early, late = _kernels(then.measurements), _kernels(now.measurements)
    ratios = [now_s / then_s for then_s, now_s in zip(early, late, strict=True)]
    return max(ratios, key=lambda ratio: abs(math.log(ratio)))


def likeliest_reason(found: Reproduction, elsewhere: Sequence[Difference]) -> str:
    """Why a cell differs, as far as what is recorded can tell.

    Args:
        elsewhere: differences of machine and code, what could matter most first.
    """
    then, now = found.then.outcome, found.now.outcome
    if then.status != now.status:
        return f"it was {_said(then)} and is {_said(now)}"
    decisive = [
        each for each in (*in_memory(found.then, found.now), *elsewhere) if each.is_decisive
    ]
    if decisive:
        return str(decisive[0])
    if all(change.word != "differs" for change in found.changes):
        return "nothing that is recorded explains another answer"
    if found.contamination:
        what, share = max(found.contamination, key=lambda each: each[1])
        return f"{what} ({share:.0%})"
    kernels = kernel_change(found.then, found.now)
    if kernels is not None and abs(math.log(kernels)) > math.log1p(STEADY):
        return (
            f"this machine itself: its reference kernels take {kernels:.2f} times as long as then"
        )
    if elsewhere:
        return str(elsewhere[0])
    return (
        "nothing that is recorded differs; then heat, neighbours or the layout of memory are left"
    )


def _said(outcome: Outcome) -> str:
    return outcome.status if outcome.reason is None else f"{outcome.status} ({outcome.reason})"


def _reproduction(then: Result, now: Result, changes: tuple[Change, ...]) -> Reproduction:
    exactness = _exactness(then, now)
    statuses = {then.outcome.status, now.outcome.status}
    words = {change.word for change in changes}
    word: Word = "reproduced"
    if len(statuses) > 1:
        word = "cannot tell" if statuses & _NOT_COMPARED else "differs"
    elif "differs" in words or (exactness.promised and not exactness.holds):
        word = "differs"
    elif "cannot tell" in words or exactness.is_one_sided:
        word = "cannot tell"
    return Reproduction(then, now, word, changes, exactness)


def _change(
    metric: str,
    early: Sequence[float],
    late: Sequence[float],
    medians: float,
    noise: Spread | None,
    margin: float,
    cells: int,
) -> Change:
    change = fmean(late) - fmean(early)
    times = math.exp(fmean(early)), math.exp(fmean(late))
    if noise is None:
        return Change(metric, *times, math.exp(change), medians, None, None, "cannot tell", None)
    narrow = _half(noise, len(early), len(late), 1 - ALPHA)
    word = _word(change, noise, len(early), len(late), margin, cells)
    needed = None
    if word == "cannot tell":
        more = range(len(late) + 1, _MOST_PROCESSES + 1)
        needed = next(
            (n for n in more if _told(change, noise, len(early), n, len(late), margin, cells)), None
        )
    low, high = math.exp(change - narrow), math.exp(change + narrow)
    return Change(metric, *times, math.exp(change), medians, low, high, word, needed)


def _told(
    change: float, noise: Spread, early: int, late: int, had: int, margin: float, cells: int
) -> bool:
    more = Spread(noise.deviation, noise.df + cells * (late - had))  # every cell gets as many
    return _word(change, more, early, late, margin, cells) != "cannot tell"


def _word(change: float, noise: Spread, early: int, late: int, margin: float, cells: int) -> Word:
    if abs(change) + _half(noise, early, late, 1 - ALPHA) < math.log1p(margin):
        return "reproduced"
    if abs(change) - _half(
        noise, early, late, 1 - ALPHA / (2 * cells * len(COMPARED))
    ) > math.log1p(margin):
        return "differs"
    return "cannot tell"


def _half(noise: Spread, early: int, late: int, probability: float) -> float:
    return noise.deviation * math.sqrt(1 / early + 1 / late) * t_quantile(probability, noise.df)


def _exactness(then: Result, now: Result) -> Exactness:
    early, late = then.divergence, now.divergence
    same_reference = early is not None and late is not None and early.reference == late.reference
    windows = (
        list(zip(early.windows, late.windows, strict=False))
        if early and late and same_reference
        else []
    )
    answers = list(zip(then.samples, now.samples, strict=False))
    return Exactness(
        promised=then.cell.device == now.cell.device == "cpu"
        and _computing(then) == _computing(now),
        answers=len(answers),
        other_answers=sum(one.tokens != other.tokens for one, other in answers),
        windows=len(windows),
        other_windows=sum(one != other for one, other in windows),
        is_one_sided=len(then.samples) != len(now.samples)
        or (early != late and not same_reference),
    )


def _computing(result: Result) -> tuple[object, ...]:
    """What has to be equal for equal numbers; threads are part of the cell."""
    host = result.host
    return host.cpu_name, host.versions, result.revision, result.cell.threads


def _logs(result: Result, metric: str) -> list[float]:
    return [math.log(value) for value in quickest_times_s(result.measurements)[metric]]


def _medians_ratio(then: Result, now: Result, metric: str) -> float:
    late, early = (process_times_s(result.measurements)[metric] for result in (now, then))
    return geometric_mean(late) / geometric_mean(early)


def _kernels(measured: Sequence[Measurement]) -> list[float]:
    """The reference kernels' times, each the median over the processes."""
    return [
        median(times)
        for times in zip(*(dataclasses.astuple(m.before) for m in measured), strict=True)
    ]
