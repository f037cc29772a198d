"""Has a run been reproduced? An equivalence test between what was read then and what is read now.

The readings are processes and their minimum times, as everywhere (``verdict``). sweeps/LOG.md has
by how much medians and least times of one and the same cell differed here. Where the medians alone
moved beyond the margin, a warning stands beside the verdict: other load, or a cost that only some
requests pay.

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
from dataclasses import dataclass, replace
from statistics import fmean, geometric_mean, median
from typing import Literal

from bench.analysis import verdict
from bench.analysis.differences import Difference, in_memory
from bench.analysis.readings import disturbances, fewest_requests, least_times_s, typical_times_s
from bench.analysis.stats import ALPHA
from bench.analysis.two_sweeps import Noise, is_one_machine, noise_of
from bench.analysis.verdict import COMPARED, Change, Levels, spread
from bench.record.measurement import Measurement
from bench.record.result import Outcome, Result
from bench.record.sweep import Spread

Word = Literal["reproduced", "differs", "cannot tell"]

_NOT_COMPARED = {"killed", "timeout", "failed", "skipped"}
_MOST_PROCESSES = 100
_WORDS: dict[verdict.Word, Word] = {
    "equivalent": "reproduced",
    "faster": "differs",
    "slower": "differs",
}
STEADY = 0.05  # medians of the reference kernels move by less on a quiet machine


@dataclass(frozen=True, slots=True)
class Retimed:
    """The minimum time of a cell then and now."""

    metric: str
    then_s: float  # geometric mean over the processes
    now_s: float
    medians_ratio: float  # of the processes' medians, which are what tables show
    change: Change  # of now, with the 90 % interval
    processes_needed: int | None  # of now, to tell; None: it is clear, or no number would do

    @property
    def word(self) -> Word:
        return _WORDS.get(self.change.word, "cannot tell")


@dataclass(frozen=True, slots=True)
class Exactness:
    """Numbers that must not move at all, if that is promised."""

    promised: bool
    answers: int
    other_answers: int
    windows: int  # of the divergence
    other_windows: int
    choices: int
    other_choices: int
    strided: int  # texts in overlapping windows
    other_strided: int
    is_one_sided: bool  # one side has answers or a divergence that the other lacks

    @property
    def holds(self) -> bool:
        others = (self.other_answers, self.other_windows, self.other_choices, self.other_strided)
        return not any(others)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """One cell, now against then."""

    then: Result
    now: Result
    word: Word
    changes: tuple[Retimed, ...]  # empty where a side has no number
    exactness: Exactness

    @property
    def interference(self) -> list[tuple[str, float]]:
        """Who else was on this machine's CPUs now: what, and for which share of the time."""
        return disturbances(self.now.measurements) if self.now.measurements else []


def reproductions(pairs: Sequence[tuple[Result, Result]], margin: float) -> list[Reproduction]:
    """Each pair of a result then and one now.

    Args:
        margin: two times are alike when their ratio lies within it (0.05: 5 %).
    """
    changes: list[list[Retimed]] = [[] for _ in pairs]
    measured = [i for i, (then, now) in enumerate(pairs) if then.measurements and now.measurements]
    if measured:
        both = [pairs[i] for i in measured]
        requests = fewest_requests(result for pair in both for result in pair)
        is_one = is_one_machine(*zip(*both, strict=True))
        for metric in COMPARED:
            logs = [[_logs(result, metric, requests) for result in pair] for pair in both]
            spreads = [spread(side, blocked=False) for side in zip(*logs, strict=True)]
            noise = noise_of(spreads, is_one)
            for i, (then, now) in zip(measured, logs, strict=True):
                medians = _medians_ratio(*pairs[i], metric)
                retimed = _retimed(metric, then, now, medians, noise, margin, len(measured))
                changes[i].append(retimed)
    return [
        _reproduction(then, now, tuple(of_cell))
        for (then, now), of_cell in zip(pairs, changes, strict=True)
    ]


def _retimed(
    metric: str,
    then: Sequence[float],
    now: Sequence[float],
    medians_ratio: float,
    noise: Noise,
    margin: float,
    cells: int,
) -> Retimed:
    levels = Levels(1 - ALPHA, 1 - ALPHA / (2 * cells * len(COMPARED)), 1 - ALPHA)
    change = verdict.change(now, then, noise.of(len(now), len(then)), margin, levels)

    def tells(processes: int) -> bool:
        assert noise.now is not None
        # Every cell gets as many
        more_df = noise.now.df + cells * (processes - len(now))
        grown = replace(noise, now=Spread(noise.now.deviation, more_df))
        more = grown.of(processes, len(then))
        assert more is not None
        gain = fmean(then) - fmean(now)
        return verdict.word(gain, more, processes, len(then), margin, levels) in _WORDS

    needed = None
    if noise.of(len(now), len(then)) is not None and change.word not in _WORDS:
        needed = next(filter(tells, range(len(now) + 1, _MOST_PROCESSES + 1)), None)
    times_s = math.exp(fmean(then)), math.exp(fmean(now))
    return Retimed(metric, *times_s, medians_ratio, change, needed)


def overall(cells: Sequence[Reproduction]) -> Word:
    """Of a whole sweep: every cell has to be reproduced."""
    words = {cell.word for cell in cells}
    order: tuple[Word, ...] = ("differs", "cannot tell")
    return next((word for word in order if word in words), "reproduced")


def kernel_change(then: Result, now: Result) -> float | None:
    """How many times as long the reference kernels take now: of the one that moved most; None
    without a number."""
    if not then.measurements or not now.measurements:
        return None
    early, late = _kernels(then.measurements), _kernels(now.measurements)
    ratios = [now_s / then_s for then_s, now_s in zip(early, late, strict=True)]
    return max(ratios, key=lambda ratio: abs(math.log(ratio)))


def likeliest_reason(cell: Reproduction, elsewhere: Sequence[Difference]) -> str:
    """Why a cell differs, as far as what is recorded can tell.

    Args:
        elsewhere: differences of machine and code, what could matter most first.
    """
    then, now = cell.then.outcome, cell.now.outcome
    if then.status != now.status:
        return f"it was {_ended(then)} and is {_ended(now)}"
    decisive = [
        difference
        for difference in (*in_memory(cell.then, cell.now), *elsewhere)
        if difference.is_decisive
    ]
    if decisive:
        return str(decisive[0])
    if all(change.word != "differs" for change in cell.changes):
        return "nothing that is recorded explains another answer"
    if cell.interference:
        what, share = max(cell.interference, key=lambda disturbance: disturbance[1])
        return f"{what} ({share:.0%})"
    kernels = kernel_change(cell.then, cell.now)
    if kernels is not None and abs(math.log(kernels)) > math.log1p(STEADY):
        return (
            f"this machine itself: its reference kernels take {kernels:.2f} times as long as then"
        )
    if elsewhere:
        return str(elsewhere[0])
    return (
        "nothing that is recorded differs; then heat, neighbours or the layout of memory are left"
    )


def _ended(outcome: Outcome) -> str:
    return outcome.status if outcome.reason is None else f"{outcome.status} ({outcome.reason})"


def _reproduction(then: Result, now: Result, changes: tuple[Retimed, ...]) -> Reproduction:
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


def _exactness(then: Result, now: Result) -> Exactness:
    early, late = then.divergence, now.divergence
    same_reference = early is not None and late is not None and early.reference == late.reference
    windows = (
        list(zip(early.windows, late.windows, strict=False))
        if early and late and same_reference
        else []
    )
    answers = list(zip(then.samples, now.samples, strict=False))
    is_withheld = not then.samples and not then.cell.quality.store_prompts  # as MLflow has it
    return Exactness(
        promised=then.cell.device == now.cell.device == "cpu"
        and _computing(then) == _computing(now),
        answers=len(answers),
        other_answers=sum(one.tokens != other.tokens for one, other in answers),
        windows=len(windows),
        other_windows=sum(one != other for one, other in windows),
        choices=len(then.choices),
        other_choices=_others(then.choices, now.choices),
        strided=len(then.strided),
        other_strided=_others(then.strided, now.strided),
        is_one_sided=(len(then.samples) != len(now.samples) and not is_withheld)
        or (early != late and not same_reference)
        or len(then.choices) != len(now.choices)
        or len(then.strided) != len(now.strided),
    )


def _others(then: Sequence[object], now: Sequence[object]) -> int:
    return sum(one != other for one, other in zip(then, now, strict=False))


def _computing(result: Result) -> tuple[object, ...]:
    """What has to be equal for equal numbers; threads are part of the cell."""
    host = result.host
    return host.cpu_name, host.versions, result.revision, result.cell.threads


def _logs(result: Result, metric: str, requests: int) -> list[float]:
    return [math.log(seconds) for seconds in least_times_s(result.measurements, requests)[metric]]


def _medians_ratio(then: Result, now: Result, metric: str) -> float:
    late, early = (typical_times_s(result.measurements)[metric] for result in (now, then))
    return geometric_mean(late) / geometric_mean(early)


def _kernels(measured: Sequence[Measurement]) -> list[float]:
    """The reference kernels' times, each the median over the processes."""
    read = [dataclasses.astuple(m.before) for m in measured if m.before is not None]
    return [median(times) for times in zip(*read, strict=True)]
