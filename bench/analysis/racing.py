"""Which configuration is the best, found with few processes: what is known after each of them.

Best-arm identification with a fixed confidence (Kaufmann and Kalyanakrishnan, Information
Complexity in Bandit Subset Selection, COLT 2013): arms are configurations, a pull is one fresh
process. Like LUCB it spends pulls on the leader and on what may still beat it, and stops when
nothing may, at the confidence asked for. Unlike it, the bounds are not Hoeffding's, which know
nothing of how alike processes are, but counts over draws of plausible true values, as ``advice``
makes them: Student's t around the mean of the logarithms of a configuration's least times, with
one spread for all configurations. That spread is pooled from what the processes read so far and a
prior (``PRIOR``), so that a single process each already drops what is twice as slow, and 5 % take a
few more.

A configuration is *good* in a draw when it keeps every limit there and none that does is better by
more than the margin; its *chance* is the share of draws. The race is decided when the likeliest
one's chance reaches the confidence, and over when nothing keeps the limits with that confidence.
Of n configurations, one whose chance is below (1 - confidence) / n runs no more. So two equal ones
both end good, and neither has to beat the other.

Two configurations are often the same thing by another name: the same kernel, or weights that are
converted as they are loaded. Draws that know nothing of that call the leader of two equal ones
beaten in half of them, however often it is right. So each other one equals the leader with a prior
probability (``TIED``), and by how far it is from it (a spike at the leader's value and a slab
around it; Mitchell and Beauchamp 1988) with one that the readings leave.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.stats import norm

from bench.analysis.advice import (
    Array,
    Goal,
    Limits,
    Plausible,
    contenders,
    good_in,
    plausible,
    scores,
)
from bench.analysis.readings import fewest_requests, least_times_s
from bench.analysis.verdict import COMPARED, pooled, spread
from bench.record.result import Result
from bench.record.sweep import Spread

# Of the logarithms of a process's least times: 3 times what two sittings of a quiet virtual machine
# found (tests/data/process_noise.json), believed as firmly as three readings
PRIOR = Spread(0.05, 3)
# How often, before anything is read: as in the spaces in which the stated chances were compared
# with how often they are right (tests/peers/choose_rates.py)
TIED = 1 / 3
_APART = 0.4  # how far others are from the leader, as a standard deviation of logarithms

State = Literal["decided", "open", "nothing fits"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is wanted, and how sure one has to be."""

    goal: Goal
    limits: Limits
    margin: float  # what counts as no difference: 0.03 for 3 %
    confidence: float  # 0.95


@dataclass(frozen=True, slots=True)
class Standing:
    """The race after some processes. Configurations by cell_id."""

    state: State
    leader: str | None  # the likeliest; None where nothing keeps the limits
    chances: Mapping[str, float]
    running: tuple[str, ...]  # those that more processes may tell apart, likeliest first
    behind: Mapping[str, float]  # how many times worse than the leader, typically


@dataclass(slots=True)
class Course:
    """How a choice goes: the policy writes it, who reports reads it."""

    question: Question
    budget_s: float
    twins: Mapping[str, str]  # by cell_id of what is searched: what confirms it
    labels: Mapping[str, str]  # of what is searched, for people
    columns: tuple[str, ...]  # what tells the configurations apart
    began_s: float = field(default_factory=time.monotonic)
    dropped: dict[str, str] = field(default_factory=dict)  # by cell_id: when and why
    floors_s: dict[str, float] = field(default_factory=dict)  # by cell_id: no step takes less
    is_cut_short: bool = False  # the budget was over before each had run once
    search: Standing | None = None
    confirmed: tuple[str, ...] = ()  # twins, of the leader first
    final: Standing | None = None  # of the twins

    def left_s(self) -> float:
        """What is left of the budget."""
        return self.budget_s - (time.monotonic() - self.began_s)


def standing(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    question: Question,
    unasked: frozenset[str],
) -> Standing:
    """Who leads, and who may still win.

    Args:
        results: those that have a number.
        values: derived, by cell_id.
        unasked: cell_ids whose quality is not known yet: they keep its limit until it is.
    """
    draws = drawn(results, values)
    known = np.array([[r.cell_id not in unasked] for r in draws.results])
    draws = replace(draws, kl_nats=np.where(known, draws.kl_nats, 0.0))
    contending = tied(contenders(draws, question.limits, question.goal))
    good = good_in(contending, question.margin).mean(axis=1)
    ids = [result.cell_id for result in draws.results]
    chances = dict(zip(ids, map(float, good), strict=True))
    doubt = 1 - question.confidence
    if np.isfinite(contending).any(axis=0).mean() < doubt:
        return Standing("nothing fits", None, chances, (), {})
    typical = np.median(scores(draws, question.goal), axis=1)
    order = sorted(range(len(ids)), key=lambda i: (-round(chances[ids[i]], 2), -typical[i]))
    leader = order[0]
    running = tuple(ids[i] for i in order if chances[ids[i]] >= doubt / len(ids))
    return Standing(
        state="decided" if chances[ids[leader]] >= question.confidence else "open",
        leader=ids[leader],
        chances=chances,
        running=running,
        behind={ids[i]: math.exp(float(typical[leader] - typical[i])) for i in range(len(ids))},
    )


def tied(contending: Array) -> Array:
    """The scores with those that may well equal the leader's put in its place, in as many draws as
    that is likely. Shapes: (cells, DRAWS)."""
    leader = int(np.argmax(np.median(contending, axis=1)))
    chance = np.random.default_rng(0)
    found = contending.copy()
    for index, scores_of in enumerate(contending):
        both = np.isfinite(scores_of) & np.isfinite(contending[leader])
        apart = scores_of[both] - contending[leader][both]
        if index == leader or not apart.size or not (sd := float(apart.std())):
            continue
        far = float(apart.mean())
        spike = TIED * norm.pdf(far, scale=sd)
        slab = (1 - TIED) * norm.pdf(far, scale=math.hypot(sd, _APART))
        ties = both & (chance.random(len(both)) < spike / (spike + slab))
        found[index][ties] = contending[leader][ties]
    return found


def drawn(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
) -> Plausible:
    """Draws whose spread of times is what was read and believed, together."""
    requests = fewest_requests(results)
    times = [least_times_s(result.measurements, requests) for result in results]
    noise = {
        metric: pooled(
            spread([[math.log(s) for s in of_cell[metric]] for of_cell in times], blocked=False),
            PRIOR,
        )
        for metric in COMPARED
    }
    return plausible(results, values, noise)


def missed(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    question: Question,
    confirmed: frozenset[str],
) -> float:
    """The chance that what was left out of the confirmation holds something better, by more than
    the margin, than all that was in it."""
    draws = drawn(results, values)
    contending = contenders(draws, question.limits, question.goal)
    inside = np.array([result.cell_id in confirmed for result in draws.results])
    if inside.all():
        return 0.0
    best_in, best_out = contending[inside].max(axis=0), contending[~inside].max(axis=0)
    better = best_out > best_in + math.log1p(question.margin)
    return float(better.mean())


@dataclass(frozen=True, slots=True)
class Range:
    """A plausible value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def ranges(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, Range]]:
    """TTFT, TPOT and throughput of each, by cell_id and metric."""
    draws = drawn(results, values)
    found: dict[str, dict[str, Range]] = {result.cell_id: {} for result in draws.results}
    for metric in ("ttft_s", "tpot_s", "output_tok_s"):
        ends = np.quantile(getattr(draws, metric), (0.5, 0.025, 0.975), axis=1).T
        for result, (middle, low, high) in zip(draws.results, ends, strict=True):
            found[result.cell_id][metric] = Range(float(middle), float(low), float(high))
    return found


def simplest(results: Sequence[Result]) -> Result:
    """Of equivalent configurations the one that asks least of a person: no engine of its own, no
    quantization or that of fewest layers and bits, the plain loop; the first of those alike."""

    def effort(result: Result) -> tuple[bool, float, bool]:
        cell, found = result.cell, result.attestation
        quantized = 1.0  # how much less the weights take than in fp32
        if found is not None:
            bytes_a_weight = found.weight_bytes / found.logical_weights
            quantized = 1 - bytes_a_weight / 4 if found.is_quantized else 0.0
        return cell.engine.python is not None, quantized, cell.decode.strategy != "loop"

    return min(results, key=effort)
