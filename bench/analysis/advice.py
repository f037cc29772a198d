"""Which configuration to take, under limits and for a goal, and how sure that is.

Over the draws of ``plausible``: a cell is *good* in a draw when it keeps every limit there and no
cell that does is better by more than the margin. The cell that is good most often is recommended,
if that is often enough (80 %); otherwise the answer is that the data does not tell, with the cells
that are still in question. What binds are the limits that exclude cells which would be better.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.analysis.plausible import Array, Plausible

Goal = Literal["throughput", "ttft", "tpot", "memory"]
Word = Literal["recommended", "not enough data", "nothing fits", "nothing measured"]

SURE = 0.8
_IN_QUESTION = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What a configuration must keep; None: no limit."""

    max_memory_bytes: float | None = None
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    max_kl_nats: float | None = None
    min_output_tok_s: float | None = None


@dataclass(frozen=True, slots=True)
class Excluded:
    """A cell that would be better, and the limits that it breaks."""

    cell_id: str
    breaks: tuple[str, ...]  # fields of Limits


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer. Probabilities are over the draws."""

    word: Word
    goal: Goal
    best: str | None  # cell_id
    probability: float  # that no other is better by more than the margin, limits kept
    # Cell_ids that may be the best, likeliest first; the best among them
    in_question: tuple[str, ...]
    better_but_excluded: tuple[Excluded, ...]  # best first
    is_assumed: bool  # the spread between processes was assumed


def advise(
    known: Plausible, limits: Limits, goal: Goal, margin: float, one_row_only: bool = False
) -> Advice:
    """The best cell for a goal under limits.

    Args:
        margin: what counts as no difference (0.03: 3 %).
        one_row_only: leave out what was measured with more than one sequence at a time.
    """
    if one_row_only:
        known = known.only([result.cell.batch == 1 for result in known.results])
    if not known.results:
        return Advice("nothing measured", goal, None, 0.0, (), (), known.is_assumed)
    score = _score(known, goal)  # (cells, draws), higher is better, on logarithms
    keeps = _keeps(known, limits)
    contending = np.where(keeps, score, -np.inf)
    best = contending.max(axis=0)
    good = ((contending >= best - math.log1p(margin)) & np.isfinite(contending)).mean(axis=1)
    typical = np.median(score, axis=1)
    chosen = max(range(len(good)), key=lambda i: (round(float(good[i]), 2), typical[i]))
    order = sorted(range(len(good)), key=lambda i: (-good[i], -typical[i]))
    ids = [result.cell_id for result in known.results]
    if np.isfinite(best).mean() < _IN_QUESTION:
        everything = _excluded(known, limits, typical, -math.inf)
        return Advice("nothing fits", goal, None, 0.0, (), everything, known.is_assumed)
    word: Word = "recommended" if good[chosen] >= SURE else "not enough data"
    least = min(_IN_QUESTION, float(good[chosen]))  # of many alike each is seldom the best
    in_question = tuple(ids[i] for i in order if good[i] >= least)
    excluded = _excluded(known, limits, typical, typical[chosen] + math.log1p(margin))
    return Advice(
        word, goal, ids[chosen], float(good[chosen]), in_question, excluded, known.is_assumed
    )


def _score(known: Plausible, goal: Goal) -> Array:
    if goal == "throughput":
        return np.log(known.output_tok_s)
    if goal == "memory":
        return -np.log(np.where(np.isnan(known.memory_bytes), np.inf, known.memory_bytes))
    return -np.log(known.ttft_s if goal == "ttft" else known.tpot_s)


def _checks(
    known: Plausible, limits: Limits
) -> dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"]:
    """For each limit that is set, whether a draw keeps it; what was not read keeps none. Shapes:
    (cells, draws)."""
    upper = (
        ("max_memory_bytes", known.memory_bytes),
        ("max_ttft_s", known.ttft_s),
        ("max_tpot_s", known.tpot_s),
        ("max_kl_nats", known.kl_nats),
    )
    found = {
        name: values <= limit
        for name, values in upper
        if (limit := getattr(limits, name)) is not None
    }
    if limits.min_output_tok_s is not None:
        found["min_output_tok_s"] = known.output_tok_s >= limits.min_output_tok_s
    return found


def _keeps(known: Plausible, limits: Limits) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
    everything = np.ones(known.ttft_s.shape, dtype=np.bool_)
    for kept in _checks(known, limits).values():
        everything &= kept
    return everything


def _excluded(
    known: Plausible, limits: Limits, typical: Array, better_than: float
) -> tuple[Excluded, ...]:
    """Cells that would score more and mostly break a limit."""
    checks = _checks(known, limits)
    found = []
    for i in sorted(range(len(typical)), key=lambda i: -typical[i]):
        breaks = tuple(name for name, kept in checks.items() if kept[i].mean() < 0.5)
        if breaks and typical[i] > better_than:
            found.append(Excluded(known.results[i].cell_id, breaks))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class UseCase:
    """A kind of use as a goal, and which cells come into question for it."""

    name: str
    goal: Goal
    one_row_only: bool  # a single user at a time: batch 1
    what: str


USE_CASES: tuple[UseCase, ...] = (
    UseCase("single-user chat", "tpot", True, "one request at a time, shortest time per token"),
    UseCase(
        "batch processing", "throughput", False, "most tokens per second, latency does not matter"
    ),
    UseCase("edge device", "memory", False, "least memory"),
    UseCase("real-time API", "ttft", False, "shortest time to first token"),
)
