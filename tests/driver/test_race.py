"""The policy of ``choose``: which processes run, on spaces whose truth is known; and the command on
the scripted engine."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.analysis.advice import Goal, Limits
from bench.analysis.racing import Course, Question, simplest
from bench.config.cell import Cell
from bench.driver.policy import Job, Records, described_as
from bench.driver.race import arm_of, course_of, race, twin_of
from bench.driver.worker import PhaseTimes, begin, take
from bench.errors import CellFailure
from bench.record.measurement import Measurement, Repeat
from bench.record.result import Findings
from tests import fakes

QUIET = 0.012  # of logarithms of least times, between processes of a quiet machine
NO_QUALITY = fakes.group("quality", "none")


def cells(count: int, **changes: Any) -> list[Cell]:
    return [fakes.resolved(quality=NO_QUALITY, seed=seed, **changes) for seed in range(count)]


def reading(step_s: float) -> Measurement:
    steady = Repeat(10 * step_s, (step_s,) * 3, 13 * step_s)
    return fakes.measurement(repeats=(steady, steady))


def play(
    given: Sequence[Cell],
    step_s: Callable[[Cell], float],
    *,
    goal: Goal = "tpot",
    limits: Limits | None = None,
    confidence: float = 0.95,
    budget_s: float = 1e6,
    kl_nats: Callable[[Cell], float] = lambda _: 0.0,
    fails: Callable[[Cell], bool] = lambda _: False,
    weights: Callable[[Cell], int] | None = None,
) -> tuple[Course, Records, list[Job]]:
    """A whole race in this process, its readings by these functions. ``weights``: bytes that are
    known before it; else nothing is predicted."""
    question = Question(goal, limits or Limits(), 0.03, confidence)
    course = course_of(given, question, budget_s)
    host = fakes.host()
    results = [
        replace(
            begin(cell, cell, host), peaks=fakes.result().peaks, attestation=fakes.attestation()
        )
        for arm in map(arm_of, given)
        for cell in (arm, twin_of(arm))
    ]
    matrix = fakes.description().matrices[-1]
    described = {
        described_as(result.cell): fakes.description(
            matrices=(replace(matrix, count=1, stored_bytes=weights(result.cell)),)
        )
        for result in results
        if weights is not None
    }
    records = Records({r.cell_id: r for r in results}, {"transformers": host}, described)
    jobs = []
    for job in race(records, course):
        jobs.append(job)
        value: Any = Findings(None, fakes.attestation(), reading(step_s(job.cell)))
        if job.kind == "reference":
            value = CellFailure("failed", "none is made here")
        elif job.kind == "quality":
            value = fakes.answers(divergence=fakes.spread_divergence(kl_nats(job.cell)))
        elif fails(job.cell):
            value = CellFailure("failed", "it fell")
        take(records, job, value, PhaseTimes(lambda *_: None).until_now())
    return course, records, jobs


def noisy(true_s: Sequence[float], given: Sequence[Cell], seed: int, noise: float = QUIET) -> Any:
    generator = np.random.default_rng(seed)
    at = {cell.seed: s for cell, s in zip(given, true_s, strict=True)}
    return lambda cell: at[cell.seed] * float(np.exp(noise * generator.standard_normal()))


def processes(jobs: Sequence[Job], of: str) -> int:
    return sum(job.kind == "time" and job.cell_id == of for job in jobs)


def test_what_is_far_behind_gets_one_process_and_the_near_ones_more() -> None:
    given = cells(6)
    course, _, jobs = play(given, noisy((1.0, 1.08, 1.1, 1.12, 2.0, 3.0), given, 1))
    arms = list(course.twins)
    assert [processes(jobs, arm) for arm in arms[4:]] == [1, 1]
    assert processes(jobs, arms[0]) == processes(jobs, arms[1]) > 1
    assert set(arms[4:]) <= set(course.dropped)
    assert course.dropped[arms[5]] == "after 1 process each"
    assert course.search is not None
    assert course.search.leader == arms[0]
    assert course.confirmed[0] == course.twins[arms[0]]
    assert course.twins[arms[5]] not in course.confirmed
    assert course.final is not None
    assert (course.final.state, course.final.leader) == ("decided", course.twins[arms[0]])


def test_each_of_two_equal_ones_is_good_and_the_simpler_is_taken() -> None:
    given = cells(2)
    course, records, jobs = play(given, noisy((1.0, 1.0), given, 2))
    assert course.final is not None
    assert course.final.state == "decided"
    assert min(course.final.chances.values()) > 0.9
    assert len(jobs) < 20
    plain, packed = (
        replace(records.results[twin], attestation=fakes.attestation(is_quantized=is_quantized))
        for twin, is_quantized in zip(course.confirmed, (False, True), strict=True)
    )
    assert simplest([packed, plain]) is plain
    half = replace(
        packed,
        attestation=fakes.attestation(
            is_quantized=True, weight_bytes=2 * fakes.attestation().weight_bytes
        ),
    )
    assert simplest([packed, half]) is half  # half of its layers are as they were


def test_what_loses_too_much_is_asked_once_and_leaves_the_race() -> None:
    fast, exact = (
        fakes.resolved(quant=quant, quality=fakes.group("quality", "samples"))
        for quant in ("nf4", "bf16")
    )
    course, _, jobs = play(
        [fast, exact],
        lambda cell: 1.0 if cell.quant.name == "nf4" else 2.0,
        limits=Limits(max_kl_nats=0.1),
        kl_nats=lambda cell: 0.3 if cell.quant.name == "nf4" else 0.001,
    )
    asked = [job.cell.quant.name for job in jobs if job.kind == "quality"]
    assert sorted(asked) == ["bf16", "nf4"]
    of_nf4, of_bf16 = course.twins
    assert course.search is not None
    assert course.search.leader == of_bf16
    assert course.search.chances[of_nf4] < 0.01
    assert course.confirmed == (course.twins[of_bf16],)


def test_a_limit_inside_the_interval_gets_more_processes() -> None:
    given = cells(2)
    limit = Limits(max_tpot_s=1.0)
    far, _, few = play(given, noisy((0.5, 1.4), given, 4), limits=limit)
    near, _, more = play(given, noisy((0.985, 1.4), given, 4), limits=limit)
    assert far.final is not None
    assert far.final.state == "decided"
    assert near.search is not None
    first = next(iter(near.twins))
    assert processes(more, near.twins[first]) > processes(few, next(iter(far.twins.values())))


def test_nothing_that_keeps_the_limits_is_no_answer() -> None:
    given = cells(3)
    course, _, jobs = play(given, noisy((1.0, 1.1, 1.2), given, 5), limits=Limits(max_tpot_s=0.2))
    assert course.search is not None
    assert (course.search.state, course.search.leader) == ("nothing fits", None)
    assert len(jobs) == 3


def test_a_budget_that_is_over_ends_the_search_with_what_is_known() -> None:
    given = cells(3)
    course, _, jobs = play(given, noisy((1.0, 1.1, 1.2), given, 6), budget_s=1e-9)
    assert course.search is not None
    searched = [job for job in jobs if job.cell_id in course.twins]
    assert len(searched) == 1
    assert course.is_cut_short
    never = [why for why in course.dropped.values() if "budget" in why]
    assert never == ["did not run: the budget was over"] * 2


def test_what_cannot_be_fast_enough_or_fit_never_runs() -> None:
    given = [fakes.resolved(quality=NO_QUALITY, quant=quant) for quant in ("nf4", "bf16")]
    read_bytes_s = fakes.result().peaks.read_bytes_s  # type: ignore[union-attr]

    def weights(cell: Cell) -> int:
        return int(read_bytes_s * (0.1 if cell.quant.name == "nf4" else 3.0))  # seconds of reading

    by_speed, _, jobs = play(given, lambda _: 0.2, weights=weights)
    nf4, bf16 = by_speed.twins
    assert by_speed.floors_s == pytest.approx({nf4: 0.1, bf16: 3.0}, rel=0.01)
    (why,) = by_speed.dropped.values()
    assert why == (
        "before it ran: reading its weights takes 3000.0 ms a step, quant=nf4 needs 200.0 ms in all"
    )
    assert {job.cell.quant.name for job in jobs} == {"nf4"}
    tight = Limits(max_memory_bytes=read_bytes_s)
    by_memory, _, jobs = play(given, lambda _: 0.2, goal="memory", limits=tight, weights=weights)
    assert by_memory.dropped[bf16].startswith("before it ran: weights and cache alone take ")
    assert {job.cell.quant.name for job in jobs} == {"nf4"}
    slow, _, jobs = play(given, lambda _: 0.2, limits=Limits(max_tpot_s=0.5), weights=weights)
    assert slow.dropped[bf16] == "before it ran: reading its weights alone takes 1500.0 ms a step"
    assert {job.cell.quant.name for job in jobs} == {"nf4"}


def test_what_fails_is_dropped_with_its_reason_and_ends_nothing() -> None:
    given = cells(2)
    course, _, _ = play(given, noisy((1.0, 2.0), given, 7), fails=lambda cell: cell.seed == 0)
    first, second = course.twins
    assert course.dropped[first] == "it fell"
    assert course.search is not None
    assert course.search.leader == second


def test_twins_read_other_prompts() -> None:
    of = fakes.resolved(workload=fakes.group("workload", "quick"))
    assert twin_of(of).workload.text == "alice"
    assert twin_of(twin_of(of)).workload.text == "prose"
    own = fakes.resolved(workload={"name": "own", "prompt": "why?", "new_tokens": 4})
    assert twin_of(own).workload == own.workload
    assert twin_of(own) != own


@pytest.mark.parametrize("noise", [QUIET, 0.03])
def test_the_answer_is_within_the_margin_of_the_best(noise: float) -> None:
    """A few spaces; the many are in test_choose_rates."""
    right, spent, grid = 0, [], 0
    generator = np.random.default_rng(8)
    for seed in range(40):
        given = cells(6)
        true_s = [float(np.exp(0.4 * x)) for x in generator.standard_normal(6)]
        course, _, jobs = play(given, noisy(true_s, given, seed, noise))
        grid = 3 * len(given)
        spent.append(len(jobs))
        assert course.final is not None
        assert course.final.leader is not None
        index = list(course.twins.values()).index(course.final.leader)
        right += true_s[index] <= 1.03 * min(true_s)
    assert right >= 37
    assert np.median(spent) < grid


def test_ids_of_twins_are_all_different() -> None:
    given = cells(5)
    course = course_of(given, Question("tpot", Limits(), 0.03, 0.95), 60)
    ids = list(itertools.chain.from_iterable(course.twins.items()))
    assert len(set(ids)) == 10
