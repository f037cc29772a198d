"""The policy of ``choose``: which processes run, on spaces whose truth is known; and the command on
the scripted engine."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.analysis.advice import Goal, Limits
from bench.analysis.choice_score import score
from bench.analysis.metrics import derive
from bench.analysis.racing import Course, Question, simplest
from bench.commands import run_command
from bench.commands.choose import Asked, choose, space
from bench.config.cell import Cell
from bench.config.settings import Config
from bench.driver.policy import Job, Records
from bench.driver.process import run_isolated
from bench.driver.race import arm_of, course_of, race, twin_of
from bench.driver.sweep import run_sweep
from bench.driver.worker import PhaseTimes, begin, take
from bench.errors import CellFailure
from bench.paths import ROOT
from bench.record.measurement import Measurement, Repeat
from bench.record.result import Findings
from bench.store.files import read_choice, read_results
from tests import fakes
from tests.scripted import scripted, settings

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
) -> tuple[Course, Records, list[Job]]:
    """A whole race in this process, its readings by these functions."""
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
    records = Records({r.cell_id: r for r in results}, {"transformers": host}, {})
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


def asked(goal: Goal = "tpot", limits: Limits | None = None, is_json: bool = False) -> Asked:
    return Asked(("engine=scripted",), Question(goal, limits or Limits(), 0.03, 0.95), 600, is_json)


def configs(tmp_path: Path, script: str, *quants: str, **changes: Any) -> list[Config]:
    return [
        Config(
            scripted(script, quant=fakes.group("quant", quant), quality=NO_QUALITY, **changes),
            settings(tmp_path),
        )
        for quant in quants
    ]


def test_the_command_searches_confirms_and_says_what_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))
    script = "nf4: ttft 1.0 steps 0.25; int8: then oom; ttft 1.0 steps 0.5"
    space = configs(tmp_path, script, "bf16", "nf4", "int8")
    code = choose(asked(), space, run_isolated)
    out = capsys.readouterr().out
    assert code == 0, out
    assert "use quant=nf4 (over 99 % sure" in out
    assert "quant=int8: out of memory, says the script" in out
    assert "quant=bf16: after 1 process each, 2.00 times the leader's" in out
    assert "python -m bench quant=nf4 engine=scripted measure=standard" in out
    (folder,) = (tmp_path / "sweeps").iterdir()
    answer = (folder / "choice.txt").read_text()
    assert answer.splitlines() == out.splitlines()[: len(answer.splitlines())]
    page = (folder / "report.html").read_text()
    assert "use quant=nf4 (over 99 % sure" in page
    assert "not enough data" not in page
    found = read_choice(folder)
    assert found is not None
    assert found.configurations[str(found.best)].name == "quant=nf4"
    assert len(found.configurations) == 3
    low_s, high_s = found.configurations[str(found.best)].intervals_s["tpot_s"]
    assert low_s <= 0.25 <= high_s


def test_a_later_sweep_scores_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))
    script = "nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.5"
    space = configs(tmp_path, script, "bf16", "nf4")
    assert choose(asked(), space, run_isolated) == 0
    careful = [
        replace(c, cell=replace(c.cell, measure=replace(c.cell.measure, passes=2))) for c in space
    ]
    assert run_sweep(careful, (), run_isolated, lambda *_: []) == 0
    choice, later = sorted((tmp_path / "sweeps").iterdir())
    prediction = read_choice(choice)
    assert prediction is not None
    results = list(read_results(later))
    values = {result.cell_id: derive(result) for result in results}
    found = score(prediction, results, values, {})
    assert found is not None
    assert (found.measured, found.right) == (2, 1.0)
    wrong = replace(
        prediction, best=next(k for k in prediction.configurations if k != prediction.best)
    )
    unlucky = score(wrong, results, values, {})
    assert unlucky is not None
    assert unlucky.right == 0.0
    assert score(prediction, [], {}, {}) is None
    alone = score(prediction, [r for r in results if r.cell.quant.name == "nf4"], values, {})
    assert alone is not None
    assert alone.right is None
    assert "nothing else that was in question was measured here" in str(alone)
    strict = score(replace(prediction, limits={"max_kl_nats": 0.1}), results, values, {})
    assert strict is not None
    assert (strict.right, strict.unread) == (1.0, ("max_kl_nats",))
    capsys.readouterr()
    assert run_command("compare", [str(choice), str(later)]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"the choice {choice.name} said quant=nf4, ")
    assert "by 2 of its 2 configurations here it is right, over 99 % sure" in said


def test_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))
    space = configs(tmp_path, "nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.5", "bf16", "nf4")
    assert choose(asked(is_json=True), space, run_isolated) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answer"], found["configuration"]) == ("chosen", "quant=nf4")
    assert found["chance"] > 0.95
    (low_high,) = [
        metrics["tpot_s"] for cell, metrics in found["confirmed"].items() if cell == found["best"]
    ]
    assert low_high[1] <= 0.25 <= low_high[2]


def test_without_axes_every_installed_engine_is_chosen_from() -> None:
    cells = [config.cell for config in space((), "chat")]
    engines = {cell.engine.name: cell.engine for cell in cells}
    assert {c.quant.name for c in cells if c.engine.python is None} >= {"bf16", "nf4", "int4_g64"}
    for name, quant in (("llama_cpp", "gguf_q8_0"), ("vllm", "bf16")):
        is_installed = (ROOT / ".engines" / name / "bin/python").is_file()
        assert (name in engines) is is_installed
        of_engine = {c.quant.name for c in cells if c.engine.name == name}
        assert (quant in of_engine) is is_installed
    assert {
        c.engine.name for c in (config.cell for config in space(("quant=bf16,nf4",), "chat"))
    } == {"transformers"}


def test_nothing_fits_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))
    space = configs(tmp_path, "ttft 1.0 steps 0.5", "bf16", "nf4")
    assert choose(asked(limits=Limits(max_tpot_s=0.1)), space, run_isolated) == 1
    asked_for, headline, first, *_ = capsys.readouterr().out.splitlines()
    assert asked_for == "asked for: shortest time per output token, TPOT at most 100 ms"
    assert headline == "nothing keeps these limits"
    assert first.startswith("  would be first, but: quant=")


def test_ids_of_twins_are_all_different() -> None:
    given = cells(5)
    course = course_of(given, Question("tpot", Limits(), 0.03, 0.95), 60)
    ids = list(itertools.chain.from_iterable(course.twins.items()))
    assert len(set(ids)) == 10
