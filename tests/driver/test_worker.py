"""Records that grow by one process at a time, and what ends them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.driver import worker as attempt
from bench.driver.policy import schedule
from bench.errors import CellFailure, Interrupted
from bench.record.afterwards import Afterwards
from bench.record.result import Findings, Outcome, Pass, Result, is_complete
from bench.store.files import find_earlier, last_wall_s, write_result, write_sweep
from tests import fakes

THRICE = fakes.cell(measure=fakes.group("measure", "quick", passes=3))
FOUND = Findings("0.1.2", fakes.attestation(), fakes.measurement())
NO_MEASUREMENT = Pass(1_750_000_000.0, 1.0, {}, None)


def begun() -> Result:
    return attempt.begin(THRICE, fakes.host(), "now")


def after(record: Result, ending: Any, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The record after a process that returns or raises ``ending``."""

    def run_isolated(*_: Any) -> Findings:
        if isinstance(ending, BaseException):
            raise ending
        assert isinstance(ending, Findings)
        return ending

    monkeypatch.setattr(attempt.isolate, "run_isolated", run_isolated)
    grown, interrupted = attempt.run_pass(
        record, Afterwards(), Path("/dev/null"), lambda phase, detail: None
    )
    assert interrupted is isinstance(ending, KeyboardInterrupt)
    return grown


def test_a_cell_is_complete_with_its_last_process(monkeypatch: pytest.MonkeyPatch) -> None:
    record = begun()
    for done in range(1, 4):
        assert not is_complete(record)
        record = after(record, FOUND, monkeypatch)
        assert len(record.measurements) == done
    assert is_complete(record)
    assert record.revision == "0.1.2"


def test_a_failure_in_a_later_process_takes_the_number_and_keeps_the_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = after(after(begun(), FOUND, monkeypatch), CellFailure("oom", "no memory"), monkeypatch)
    assert record.outcome == Outcome("oom", "no memory")
    assert is_complete(record)
    assert record.measurements == ()
    assert [each.measurement is None for each in record.passes] == [False, True]


def test_what_is_not_engaged_keeps_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Findings(None, fakes.attestation(), None)
    record = after(begun(), CellFailure("not_engaged", "14 layers are Linear", seen), monkeypatch)
    assert record.outcome.status == "not_engaged"
    assert record.attestation == fakes.attestation()


def test_a_process_that_ends_after_its_last_timed_request_has_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = after(begun(), CellFailure("failed", "no samples", FOUND), monkeypatch)
    assert record.outcome.status == "ok"
    assert record.outcome.reason == "ended after its last timed request: failed: no samples"
    assert len(record.measurements) == 1


def test_ctrl_c_kills_a_cell_without_a_process_and_keeps_one_with_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert after(begun(), Interrupted(None), monkeypatch).outcome.status == "killed"
    record = after(after(begun(), FOUND, monkeypatch), Interrupted(None), monkeypatch)
    assert record.outcome == Outcome("ok", "1 of 3 processes: ended by the user")
    assert len(record.measurements) == 1


def test_ctrl_c_after_the_last_timed_request_keeps_what_was_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = after(begun(), Interrupted(FOUND), monkeypatch)
    assert (record.outcome, len(record.measurements)) == (Outcome("ok"), 1)


def test_every_pass_holds_every_cell_in_an_order_of_its_own() -> None:
    cells = [
        fakes.cell(batch=batch, measure=fakes.group("measure", "quick", passes=3))
        for batch in range(1, 9)
    ]
    records = [attempt.begin(cell, fakes.host(), "now") for cell in cells]
    jobs = schedule(records)
    passes = [jobs[i : i + 8] for i in range(0, 24, 8)]
    assert [sorted(each) for each in passes] == [sorted(record.cell_id for record in records)] * 3
    assert len({tuple(each) for each in passes}) == 3
    assert schedule(records) == jobs
    reseeded = [replace(record, cell=replace(record.cell, seed=1)) for record in records]
    assert schedule(reseeded) != jobs


def test_what_is_done_is_not_scheduled() -> None:
    done = replace(begun(), passes=(fakes.process(),) * 3)
    partly = replace(
        attempt.begin(replace(THRICE, batch=2), fakes.host(), "now"), passes=(fakes.process(),) * 2
    )
    skipped = attempt.begin(
        replace(THRICE, batch=4), fakes.host(), "now", Outcome("skipped", "because")
    )
    assert schedule([done, partly, skipped]) == [partly.cell_id]


def earlier(outputs: Path, name: str, result: Result) -> None:
    place = outputs / "sweeps" / name
    place.mkdir(parents=True)
    write_sweep(place, fakes.sweep(result.cell_id, sweep_id=name))
    write_result(place, replace(result, sweep_id=name))


def taken(outputs: Path, result: Result) -> Result | None:
    return find_earlier(outputs, result.cell_id, result.resume_key)


def test_the_newest_result_of_the_same_cell_is_taken(tmp_path: Path) -> None:
    result = fakes.result()
    assert taken(tmp_path, result) is None
    earlier(tmp_path, "2026-01-01_00-00-00", result)
    earlier(tmp_path, "2026-01-02_00-00-00", replace(result, started_at=7.0))
    found = taken(tmp_path, result)
    assert found is not None
    assert (found.reused_from, found.started_at) == ("2026-01-02_00-00-00", 7.0)
    assert taken(tmp_path, replace(result, resume_key="another")) is None


def test_a_result_that_was_taken_itself_names_the_sweep_that_measured_it(tmp_path: Path) -> None:
    earlier(tmp_path, "2026-01-02_00-00-00", fakes.result(reused_from="2026-01-01_00-00-00"))
    found = taken(tmp_path, fakes.result())
    assert found is not None
    assert found.reused_from == "2026-01-01_00-00-00"


@pytest.mark.parametrize(
    ("status", "is_taken"),
    [
        ("oom", True),
        ("failed", False),
        ("timeout", False),
        ("killed", False),
        ("skipped", False),
        ("not_engaged", False),
    ],
)
def test_only_what_would_come_out_the_same_is_taken(
    tmp_path: Path, status: Any, is_taken: bool
) -> None:
    result = replace(fakes.result(outcome=Outcome(status, "because")), passes=(NO_MEASUREMENT,))
    earlier(tmp_path, "2026-01-01_00-00-00", result)
    assert (taken(tmp_path, result) is not None) is is_taken


def test_processes_of_an_interrupted_cell_are_taken_without_the_interrupted_one(
    tmp_path: Path,
) -> None:
    cut = replace(
        begun(), outcome=Outcome("ok", "1 of 3 processes"), passes=(fakes.process(), NO_MEASUREMENT)
    )
    earlier(tmp_path, "2026-01-01_00-00-00", cut)
    found = taken(tmp_path, cut)
    assert found is not None
    assert (len(found.passes), found.outcome) == (1, Outcome("ok"))
    assert not is_complete(found)


def test_a_damaged_result_is_passed_over(tmp_path: Path) -> None:
    earlier(tmp_path, "2026-01-01_00-00-00", fakes.result())
    earlier(tmp_path, "2026-01-02_00-00-00", fakes.result())
    file = tmp_path / "sweeps" / "2026-01-02_00-00-00" / fakes.result().cell_id / "result.json"
    file.write_text(file.read_text()[:99])
    found = taken(tmp_path, fakes.result())
    assert found is not None
    assert found.reused_from == "2026-01-01_00-00-00"


def test_how_long_a_cell_took_is_known_from_this_machine_only(tmp_path: Path) -> None:
    result = fakes.result()
    earlier(
        tmp_path, "2026-01-01_00-00-00", replace(result, passes=(fakes.process(), fakes.process()))
    )
    assert last_wall_s(tmp_path, result.cell_id, result.host) == 12.5
    assert last_wall_s(tmp_path, result.cell_id, fakes.host(cpus=64)) is None
    assert last_wall_s(tmp_path, "0" * 12, result.host) is None
