"""Records that grow by one process at a time, and what ends them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell, cell_id, sample_key
from bench.driver.policy import Job, Kind, Records
from bench.driver.worker import PhaseTimes, Timing, begin, grown, outcome_of, take, task_of
from bench.errors import CellFailure
from bench.record.measurement import Profile
from bench.record.result import Answers, Findings, Outcome, Result, is_timed
from tests import fakes

THRICE = fakes.cell(measure=fakes.group("measure", "quick", passes=3))
ASKED = fakes.group("quality", "samples", texts=[])
FINDINGS = Findings("0.1.2", fakes.attestation(), fakes.measurement())


def times() -> Timing:
    return PhaseTimes(lambda phase, detail: None).until_now()


def after(*endings: Any) -> Result:
    """The record of a cell of three processes that ended in these ways."""
    result = begin(THRICE, THRICE, fakes.host())
    for ending in endings:
        result = grown(result, ending, times())
    return result


def test_a_cell_is_timed_with_its_last_process() -> None:
    records = [after(*[FINDINGS] * count) for count in range(4)]
    assert [len(record.measurements) for record in records] == [0, 1, 2, 3]
    assert [is_timed(record) for record in records] == [False, False, False, True]
    assert records[3].revision == "0.1.2"


def test_a_failure_in_a_later_process_takes_the_number_and_keeps_the_readings() -> None:
    record = after(FINDINGS, CellFailure("oom", "no memory"))
    assert record.outcome == Outcome("oom", "no memory")
    assert is_timed(record)
    assert record.measurements == ()
    assert [each.measurement is None for each in record.replicates] == [False, True]


def test_what_mismatches_is_not_engaged_and_keeps_what_was_counted() -> None:
    seen = fakes.attestation(mismatches=("14 layers are Linear", "attention is eager"))
    record = after(Findings(None, seen, None))
    assert record.outcome == Outcome("not_engaged", "14 layers are Linear; attention is eager")
    assert record.attestation == seen


def test_the_attestation_is_the_first_processs() -> None:
    record = after(FINDINGS, Findings("0.1.2", fakes.attestation(weight_bytes=999), None))
    assert record.attestation == FINDINGS.attestation


def test_ctrl_c_kills_a_cell_without_a_process_and_keeps_one_with_some() -> None:
    assert after(KeyboardInterrupt()).outcome == Outcome("killed", "ended by the user")
    record = after(FINDINGS, KeyboardInterrupt())
    assert record.outcome == Outcome("ok", "1 of 3 processes: ended by the user")
    assert len(record.measurements) == 1


def test_a_failure_keeps_its_traceback() -> None:
    failure = CellFailure("failed", "it broke")
    failure.add_note("Traceback: ...")
    assert outcome_of(failure) == Outcome("failed", "it broke", "Traceback: ...")


def test_phases_last_until_the_next_one_is_announced() -> None:
    shown: list[tuple[str, str]] = []
    phases = PhaseTimes(lambda *phase: shown.append(phase))
    for phase in (("load", ""), ("measure", "1/2"), ("measure", "2/2")):
        phases.on_phase(*phase)
    assert list(phases.until_now().phases_s) == ["load", "measure"]
    assert shown == [("load", ""), ("measure", "1/2"), ("measure", "2/2")]


# What comes out of jobs that only ask


@pytest.fixture
def answered() -> Records:
    """A cell with a number, one that gives the same answers and has none, and another model."""
    cells = [fakes.cell(batch=batch, quality=ASKED) for batch in (1, 2)]
    other = fakes.cell(quant="nf4", quality=ASKED)
    results = {cell_id(cell): begin(cell, cell, fakes.host()) for cell in (*cells, other)}
    for cell in (cells[0], other):
        results[cell_id(cell)] = fakes.result(cell=cell)
    return Records(results, {}, {})


def job_of(records: Records, kind: Kind, **changes: Any) -> Job:
    key, result = next(iter(records.results.items()))
    return Job(kind, key, result.cell, **changes)


def test_answers_go_to_every_cell_of_the_sample_key_that_has_a_number(answered: Records) -> None:
    first, second, other = answered.results
    said = fakes.answers(samples=(fakes.sample(1, 2),))
    assert take(answered, job_of(answered, "quality"), said, times()) == [first]
    assert answered.results[first].samples == said.samples
    assert answered.results[other].answers is None
    timed = Job("time", second, answered.results[second].cell)
    assert take(answered, timed, FINDINGS, times()) == [second]
    assert answered.results[second].answers == said  # without being asked


def test_a_quality_job_that_fails_costs_no_number(answered: Records) -> None:
    first, *_ = answered.results
    take(answered, job_of(answered, "quality"), CellFailure("oom", "no memory"), times())
    result = answered.results[first]
    assert (result.outcome.status, len(result.measurements)) == ("ok", 1)
    assert result.answers == Answers(Outcome("oom", "no memory"))
    assert sample_key(result.cell) in answered.answers  # so nobody asks again


def test_why_nothing_was_compared_is_kept_beside_the_answers(answered: Records) -> None:
    first, *_ = answered.results
    said = fakes.answers(samples=(fakes.sample(1),))
    take(answered, job_of(answered, "quality", no_reference="too large"), said, times())
    assert answered.results[first].answers == replace(said, no_reference="too large")


def test_a_profile_that_fails_costs_no_number(
    answered: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = answered.results
    profile = Profile((), 1.5)
    take(answered, job_of(answered, "profile"), profile, times())
    assert answered.results[first].profile == profile
    take(answered, job_of(answered, "profile"), CellFailure("failed", "no trace"), times())
    assert answered.results[first].outcome == Outcome("ok")
    assert "profile: failed: no trace" in capsys.readouterr().err


def test_a_try_tells_whether_it_fits(answered: Records) -> None:
    first, *_ = answered.results
    job = job_of(answered, "try")
    for value, fits in ((None, True), (CellFailure("timeout", "too slow"), False)):
        assert take(answered, job, value, times()) == []
        assert answered.fits[first, 1] is fits


def test_a_try_that_fails_for_another_reason_is_the_cells_outcome(answered: Records) -> None:
    first, *_ = answered.results
    job = job_of(answered, "try")
    assert take(answered, job, CellFailure("failed", "no kernel"), times()) == [first]
    expected = Outcome("failed", f"a try of batch {job.cell.rows}: no kernel")
    assert answered.results[first].outcome == expected
    assert answered.fits == {}


def test_a_reference_that_cannot_be_made_is_kept_in_mind(answered: Records) -> None:
    job = job_of(answered, "reference", reference="/a/file")
    take(answered, job, CellFailure("failed", "no head"), times())
    assert answered.no_reference == {"/a/file": Outcome("failed", "no head")}


@pytest.mark.parametrize("kind", ["quality", "profile", "reference", "try"])
def test_ctrl_c_in_a_job_that_asks_changes_no_record(answered: Records, kind: Kind) -> None:
    before = dict(answered.results)
    assert take(answered, job_of(answered, kind), KeyboardInterrupt(), times()) == []
    assert (answered.results, answered.answers, answered.fits) == (before, {}, {})


# Which process a job is


@pytest.mark.parametrize(
    ("kind", "place", "arguments"),
    [
        ("time", "bench.meter.cell:measure_cell", lambda cell: (cell,)),
        ("try", "bench.meter.cell:try_cell", lambda cell: (cell,)),
        ("profile", "bench.meter.cell:profile_cell", lambda cell: (cell, "/x/trace.json.gz")),
        ("quality", "bench.meter.answers:answer_cell", lambda cell: (cell, "/file")),
    ],
)
def test_a_job_is_a_task_of_the_meter(
    kind: Kind, place: str, arguments: Callable[[Cell], tuple[Any, ...]]
) -> None:
    cell = fakes.resolved(engine={"name": "scripted", "python": "/other/python"})
    task = task_of(Job(kind, "0", cell, "/file"), fakes.host(), Path("/x"))
    assert (task.place, task.python) == (place, "/other/python")
    assert task.arguments == ("bench.engine.scripted:ENGINE", *arguments(cell))
    assert task.limits_s == cell.measure.limits_s


def test_a_reference_is_compared_with_itself_in_16_bits() -> None:
    cell = fakes.resolved(quant="fp32")
    task = task_of(Job("reference", "0", cell, "/file"), fakes.host(), Path("/x"))
    *_, floor, file = task.arguments
    assert (floor.name, file) == ("bf16", "/file")
