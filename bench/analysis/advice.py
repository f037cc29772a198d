"""Which configuration to take, under limits and for a goal, and how sure that is.

Questions like "which is the best of twenty under three limits, and how sure is that?" have no
formula; draws of plausible true values answer them by counting. Times are drawn on logarithms,
around the mean over a cell's processes, by Student's t with the spread between processes
(``verdict``): the sweep's own where it has several passes, else the host's calibration, else an
assumption, which the answer then names. Energy is drawn like a time. Divergence is drawn around
its mean over windows; what cannot be told from the noise floor counts as none, so that no limit
parts two such cells. Memory is exact on a GPU and a resident set on a CPU.

A cell is *good* in a draw when it keeps every limit there and no cell that does is better by more
than the margin. The cell that is good most often is recommended, if that is often enough (80 %);
otherwise the answer is that the data does not tell, with the cells that are still in question. What
binds are the limits that exclude cells which would be better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np

from bench.analysis.divergence import estimates, is_at_floor
from bench.analysis.metrics import peak_memory_bytes
from bench.analysis.readings import (
    Process,
    fewest_requests,
    j_per_output_tok_net,
    least_times_s,
)
from bench.analysis.stats import ALPHA, t_quantile
from bench.analysis.verdict import more_certain, spread
from bench.record.measurement import Divergence
from bench.record.result import Result
from bench.record.sweep import Spread

Goal = Literal["throughput", "ttft", "tpot", "memory", "cost", "energy"]
UseName = Literal["chat", "batch", "edge", "battery", "api", "cost"]
Answered = Literal["recommended", "not enough data", "nothing fits", "nothing measured"]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

SURE = 0.8
_IN_QUESTION = 0.05
# Of the table of use cases; where it is from: a judgement, so it is said and can be changed
USUAL_KL_NATS = 0.1

DRAWS = 2000
# The resident set keeps freed memory or not: int8's differs by up to a third between sweeps
_RESIDENT_DEVIATION = 0.1
# 3 to 7 times what was found between processes of one machine (tests/data/process_noise.json)
ASSUMED = Spread(0.05, 30)

Array = np.ndarray[Any, np.dtype[np.float64]]
_DRAWN = ("ttft_s", "tpot_s", "output_tok_s", "kl_nats", "memory_bytes", "j_per_output_tok")


@dataclass(frozen=True, slots=True)
class Plausible:
    """Draws of every cell that has a number. Shapes: (cells, DRAWS); nan where nothing was read."""

    results: tuple[Result, ...]
    ttft_s: Array
    tpot_s: Array
    output_tok_s: Array
    kl_nats: Array
    memory_bytes: Array
    j_per_output_tok: Array  # without idle power
    is_assumed: bool  # the spread of times between processes was not measured
    is_energy_assumed: bool  # that of energy, which no calibration has

    def only(self, wanted: Sequence[bool]) -> "Plausible":
        """The same draws of some of the cells."""
        kept = np.array(wanted, dtype=np.bool_)
        results = [result for result, keep in zip(self.results, wanted, strict=True) if keep]
        drawn = {name: getattr(self, name)[kept] for name in _DRAWN}
        return replace(self, results=tuple(results), **drawn)


def plausible(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    calibration: Mapping[str, Spread],
) -> Plausible:
    """The same draws for the same results. ``values``: derived, by cell_id."""
    measured = tuple(result for result in results if result.measurements)
    generator = np.random.default_rng(0)
    times: dict[str, Array] = {}
    assumed = False
    requests = fewest_requests(measured) if measured else 1
    for metric in ("ttft_s", "tpot_s"):
        logs = [
            [math.log(s) for s in least_times_s(result.measurements, requests)[metric]]
            for result in measured
        ]
        own = spread(logs, blocked=False) if logs else None
        measured_noise = more_certain(own, calibration.get(metric)) if logs else None
        assumed = assumed or measured_noise is None
        times[metric] = _drawn(logs, measured_noise or ASSUMED, generator)
    # Cells that differ in batch alone share one reading, and so its draws
    divergences = {
        divergence: _kl_nats(divergence, generator)
        for divergence in dict.fromkeys(result.divergence for result in measured)
    }
    tokens = _column([result.cell.rows * result.cell.workload.new_tokens for result in measured])
    steps = _column([result.cell.workload.new_tokens - 1 for result in measured])
    memory = [_memory_bytes(result, values[result.cell_id], generator) for result in measured]
    joules = [_logs_of_energy(result) for result in measured]
    noise_of_energy = spread(read, blocked=False) if (read := list(filter(None, joules))) else None
    return Plausible(
        results=measured,
        ttft_s=times["ttft_s"],
        tpot_s=times["tpot_s"],
        output_tok_s=tokens / (times["ttft_s"] + steps * times["tpot_s"]),
        kl_nats=_rows([divergences[result.divergence] for result in measured]),
        memory_bytes=_rows(memory),
        j_per_output_tok=_drawn(joules, noise_of_energy or ASSUMED, generator),
        is_assumed=assumed,
        is_energy_assumed=noise_of_energy is None,
    )


def has_energy(draws: Plausible) -> bool:
    """Whether the energy of any cell was read."""
    return bool(np.isfinite(draws.j_per_output_tok).any())


def _drawn(logs: Sequence[Sequence[float]], noise: Spread, generator: np.random.Generator) -> Array:
    """Around the mean of each row of logarithms; nan for a row without any."""
    centres = _column([fmean(row) if row else math.nan for row in logs])
    errors = _column([noise.deviation / math.sqrt(len(row) or 1) for row in logs])
    drawn: Array = np.exp(centres + errors * generator.standard_t(noise.df, (len(logs), DRAWS)))
    return drawn


def _logs_of_energy(result: Result) -> list[float]:
    """Of the processes that read it; one that drew less than when idle read something else."""
    if result.attestation is None:
        return []
    processes = [Process(result, m, result.attestation) for m in result.measurements]
    read = [j for p in processes if (j := j_per_output_tok_net(p)) is not None]
    return [math.log(j) for j in read if j > 0]


def _column(values: Sequence[float]) -> Array:
    return np.array(values)[:, None]


def _rows(draws: Sequence[Array]) -> Array:
    return np.array(draws).reshape(len(draws), DRAWS)


def _kl_nats(divergence: Divergence | None, generator: np.random.Generator) -> Array:
    if divergence is None:
        return np.full(DRAWS, np.nan)
    if is_at_floor(divergence):
        return np.zeros(DRAWS)
    mean = estimates(divergence)["kl_nats"]
    if mean.n == 1:
        return np.full(DRAWS, mean.value)
    error = (mean.high - mean.value) / t_quantile(1 - ALPHA / 2, mean.n - 1)
    return mean.value + error * generator.standard_t(mean.n - 1, DRAWS)


def _memory_bytes(
    result: Result, values: Mapping[str, float], generator: np.random.Generator
) -> Array:
    is_exact = result.cell.device == "cuda"
    deviation = 0.0 if is_exact else _RESIDENT_DEVIATION / math.sqrt(len(result.measurements))
    drawn: Array = np.exp(deviation * generator.standard_normal(DRAWS))
    return peak_memory_bytes(result, values) * drawn


@dataclass(frozen=True, slots=True)
class Limits:
    """What a configuration must keep; None: no limit."""

    max_memory_bytes: float | None = None
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    max_kl_nats: float | None = None
    min_output_tok_s: float | None = None

    def set_ones(self) -> dict[str, float]:
        """Those that are not None, by the name of the field."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Excluded:
    """A cell that would be better, and the limits that it breaks."""

    cell_id: str
    breaks: tuple[str, ...]  # fields of Limits


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer. Probabilities are over the draws."""

    word: Answered
    goal: Goal
    best: str | None  # cell_id
    probability: float  # that no other is better by more than the margin, limits kept
    # Cell_ids that may be the best, likeliest first; the best among them
    in_question: tuple[str, ...]
    better_but_excluded: tuple[Excluded, ...]  # best first
    is_assumed: bool  # the spread between processes was assumed


def advise(
    draws: Plausible, limits: Limits, goal: Goal, margin: float, one_row_only: bool = False
) -> Advice:
    """The best cell for a goal under limits.

    Args:
        margin: what counts as no difference (0.03: 3 %).
        one_row_only: leave out what was measured with more than one sequence at a time.
    """
    if one_row_only:
        draws = draws.only([result.cell.batch == 1 for result in draws.results])
    if not draws.results:
        return Advice("nothing measured", goal, None, 0.0, (), (), draws.is_assumed)
    is_assumed = draws.is_energy_assumed if goal == "energy" else draws.is_assumed
    score = scores(draws, goal)
    kept = _kept(draws, limits)
    contending = contenders(draws, limits, goal)
    best = contending.max(axis=0)
    good = good_in(contending, margin).mean(axis=1)
    typical = np.median(score, axis=1)
    if np.isfinite(best).mean() < _IN_QUESTION:
        everything = _excluded(draws, kept, typical, -math.inf)
        return Advice("nothing fits", goal, None, 0.0, (), everything, is_assumed)
    chosen = max(range(len(good)), key=lambda i: (round(float(good[i]), 2), typical[i]))
    sure = float(good[chosen])
    least = min(_IN_QUESTION, sure)  # of many alike each is seldom the best
    order = sorted(range(len(good)), key=lambda i: (-good[i], -typical[i]))
    ids = [result.cell_id for result in draws.results]
    return Advice(
        word="recommended" if sure >= SURE else "not enough data",
        goal=goal,
        best=ids[chosen],
        probability=sure,
        in_question=tuple(ids[i] for i in order if good[i] >= least),
        better_but_excluded=_excluded(draws, kept, typical, typical[chosen] + math.log1p(margin)),
        is_assumed=is_assumed,
    )


def contenders(draws: Plausible, limits: Limits, goal: Goal) -> Array:
    """The scores of what keeps every limit, -inf for what does not. Shapes: (cells, DRAWS)."""
    score = scores(draws, goal)
    kept = _kept(draws, limits).values()
    keeps_all = np.logical_and.reduce([np.ones(score.shape, dtype=np.bool_), *kept])
    return np.where(keeps_all, score, -np.inf)


def good_in(contending: Array, margin: float) -> Flags:
    """In which draws a cell keeps the limits and no other that does is better by more than the
    margin. Shapes: (cells, DRAWS)."""
    good: Flags = contending >= contending.max(axis=0) - math.log1p(margin)
    return good & np.isfinite(contending)


def scores(draws: Plausible, goal: Goal) -> Array:
    """On logarithms, higher is better. Shapes: (cells, DRAWS)."""
    if goal == "throughput":
        return np.log(draws.output_tok_s)
    if goal == "cost":  # whatever the hour costs, the most tokens of it
        return np.log(_column([result.cell.rows for result in draws.results]) / draws.tpot_s)
    if goal in ("memory", "energy"):
        read = draws.memory_bytes if goal == "memory" else draws.j_per_output_tok
        return -np.log(np.where(np.isnan(read), np.inf, read))
    return -np.log(draws.ttft_s if goal == "ttft" else draws.tpot_s)


def _kept(draws: Plausible, limits: Limits) -> dict[str, Flags]:
    """For each limit that is set, whether a draw keeps it; what was not read keeps none. Shapes:
    (cells, draws)."""
    kept = {}
    for name, limit in limits.set_ones().items():
        side, _, reading = name.partition("_")
        values = getattr(draws, reading)
        kept[name] = values <= limit if side == "max" else values >= limit
    return kept


def _excluded(
    draws: Plausible, kept: dict[str, Flags], typical: Array, better_than: float
) -> tuple[Excluded, ...]:
    """Cells that would score more and mostly break a limit."""
    excluded = []
    for i in sorted(range(len(typical)), key=lambda i: -typical[i]):
        breaks = tuple(name for name, keeps in kept.items() if keeps[i].mean() < 0.5)
        if breaks and typical[i] > better_than:
            excluded.append(Excluded(draws.results[i].cell_id, breaks))
    return tuple(excluded)


@dataclass(frozen=True, slots=True)
class UseCase:
    """A kind of use as a goal, and which cells come into question for it."""

    name: UseName
    goal: Goal
    one_row_only: bool  # a single user at a time: batch 1
    what: str


USE_CASES: dict[UseName, UseCase] = {
    case.name: case
    for case in (
        UseCase("chat", "tpot", True, "one request at a time, shortest time per token"),
        UseCase("batch", "throughput", False, "most tokens per second, latency does not matter"),
        UseCase("edge", "memory", False, "least memory"),
        UseCase("battery", "energy", False, "least energy per output token"),
        UseCase("api", "ttft", False, "shortest time to first token"),
        UseCase("cost", "cost", False, "least cost per output token"),
    )
}


def usual_advice(draws: Plausible, margin: float) -> list[tuple[UseCase, Limits, Advice]]:
    """The usual questions, each answered within the usual divergence where any was read; that
    about energy where any was read. Cost is a matter of throughput, and asked for apart."""
    has_quality = any(result.divergence is not None for result in draws.results)
    limits = Limits(max_kl_nats=USUAL_KL_NATS if has_quality else None)
    return [
        (case, limits, advise(draws, limits, case.goal, margin, case.one_row_only))
        for case in USE_CASES.values()
        if case.name != "cost" and (case.name != "battery" or has_energy(draws))
    ]
