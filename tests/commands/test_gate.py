"""The gate: what counts as slower, and what it returns."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.analysis.two_sweeps import Side, Slowdown, overall, slowdowns
from bench.commands.gate import gate
from bench.errors import StoreError
from bench.record.result import Outcome, Result
from bench.record.sweep import Spread
from bench.store.files import write_result, write_sweep
from tests import fakes

ONE, EIGHT = fakes.cell(), fakes.cell(batch=8)
THEN = [fakes.paced(ONE, 0.500, 0.502, 0.501), fakes.paced(EIGHT, 1.00, 1.01, 1.00)]
# Both once more, as fast
ONE_AGAIN, EIGHT_AGAIN = (
    fakes.paced(ONE, 0.5005, 0.5015, 0.5012),
    fakes.paced(EIGHT, 1.002, 1.009, 1.001),
)
AGAIN = [ONE_AGAIN, EIGHT_AGAIN]
SLOWER = [fakes.paced(ONE, 0.550, 0.551, 0.552), EIGHT_AGAIN]
FAILED = fakes.result(cell=ONE, outcome=Outcome("failed", "it broke"))
CALM = {"tpot_s": Spread(0.01, 7), "ttft_s": Spread(0.01, 7)}


def side(results: list[Result], calibration: dict[str, Spread] | None = None) -> Side:
    cells = (result.cell_id for result in results)
    return Side(fakes.sweep(*cells, calibration=calibration or {}), tuple(results))


def found(now: list[Result], threshold: float = 0.05) -> list[Slowdown]:
    """Of the first cell."""
    changes = slowdowns(side(now), side(THEN), threshold)
    return [each for each in changes if each.label == ONE.label]


def words(now: list[Result], threshold: float = 0.05) -> list[tuple[str, str]]:
    return [(each.metric, each.word) for each in found(now, threshold)]


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((0.5011, 0.5001, 0.5021), "no worse"),
        ((0.520, 0.521, 0.519), "no worse"),  # slower for sure, but within 5 %
        ((0.550, 0.551, 0.552), "worse"),
        ((0.300, 0.301, 0.3005), "no worse"),  # faster
        ((0.450, 0.550, 0.650), "cannot tell"),  # 10 % slower, by processes that differ far more
        ((0.450, 0.503, 0.550), "cannot tell"),  # as fast, by such processes: it may be 5 % slower
    ],
)
def test_an_interval_beyond_the_threshold_is_worse_and_one_within_it_is_not(
    steps: tuple[float, ...], word: str
) -> None:
    assert ("tpot_s", word) in words([fakes.paced(ONE, *steps), EIGHT_AGAIN])
    assert ("ttft_s", "no worse") in words([fakes.paced(ONE, *steps), EIGHT_AGAIN])


def test_both_ends_are_one_sided_intervals_by_hand() -> None:
    """Six processes of one cell: logarithms 0, 0.02, 0.04 then, 0.1 more now; noise 0.02, df 4."""
    then, now = (fakes.paced(ONE, *(math.exp(x + by) for x in (0, 0.02, 0.04))) for by in (0, 0.1))
    step, _ = slowdowns(side([now]), side([then]), 0.05)
    error = 0.02 * math.sqrt(2 / 3)
    assert step.ratio == pytest.approx(math.exp(0.1))
    assert step.at_least == pytest.approx(math.exp(0.1 - 2.77645 * error))  # t of 0.975: 2 times
    assert step.at_most == pytest.approx(math.exp(0.1 + 2.13185 * error))  # t of 0.95
    assert step.word == "worse"


def test_what_would_tell_is_said_where_some_number_of_processes_would() -> None:
    step, prefill = found([fakes.paced(ONE, 0.450, 0.503, 0.550), EIGHT_AGAIN])
    assert step.processes_needed is not None
    assert 3 < step.processes_needed < 100
    assert prefill.processes_needed is None
    step, _ = found([fakes.paced(ONE, 0.477, 0.526, 0.577), EIGHT_AGAIN])  # at the threshold
    assert (step.word, step.processes_needed) == ("cannot tell", None)


def test_the_threshold_is_the_users() -> None:
    slower = [fakes.paced(ONE, 0.520, 0.521, 0.519), EIGHT_AGAIN]
    assert ("tpot_s", "worse") in words(slower, threshold=0.01)


def test_a_cell_that_has_no_number_any_more_is_a_loss() -> None:
    assert words([FAILED, EIGHT_AGAIN]) == [("outcome", "lost")]
    assert overall(slowdowns(side([FAILED, EIGHT_AGAIN]), side(THEN), 0.05)) == "worse"


def test_a_single_process_each_takes_a_calibration() -> None:
    then, now = [fakes.paced(ONE, 0.5)], [fakes.paced(ONE, 0.6)]
    unknown = slowdowns(side(now), side(then), 0.05)
    assert {each.word for each in unknown} == {"uncalibrated"}
    assert overall(unknown) == "cannot tell"
    for calibrated in (
        slowdowns(side(now, CALM), side(then), 0.05),
        slowdowns(side(now), side(then, CALM), 0.05),
    ):
        assert [each.word for each in calibrated] == ["worse", "no worse"]


def test_what_was_taken_over_was_not_measured_again() -> None:
    some = replace(THEN[0], replicates=(*THEN[0].replicates[:1], *ONE_AGAIN.replicates[1:]))
    for now in (THEN[0], some):
        changes = slowdowns(side([now, EIGHT_AGAIN]), side(THEN), 0.05)
        assert [each.word for each in changes] == ["the same readings", "no worse", "no worse"]
        assert overall(changes) == "cannot tell"


def test_the_verdict_is_that_of_every_cell() -> None:
    good = slowdowns(side(AGAIN), side(THEN), 0.05)
    assert overall(good) == "no worse"
    assert overall(good, damaged=True) == "cannot tell"
    assert overall(slowdowns(side(SLOWER), side(THEN), 0.05), damaged=True) == "worse"
    wide = [fakes.paced(ONE, 0.450, 0.503, 0.550), EIGHT_AGAIN]
    assert overall(slowdowns(side(wide), side(THEN), 0.05)) == "cannot tell"
    assert overall([]) == "cannot tell"


def folder(place: Path, results: list[Result]) -> Path:
    place.mkdir()
    write_sweep(place, fakes.sweep(*(result.cell_id for result in results), sweep_id=place.name))
    for result in results:
        write_result(place, result)
    return place


def test_the_gate_says_which_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then, again = folder(tmp_path / "then", THEN), folder(tmp_path / "again", AGAIN)
    slower = folder(tmp_path / "slower", SLOWER)
    assert gate(again, then, 0.05) == 0
    assert capsys.readouterr().out == (
        "no worse: of 4 times in 2 cells 0 slower by over 5% or lost, 4 not slower by that,"
        " 0 unclear\n"
    )
    assert gate(slower, then, 0.05) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{ONE.label}: TPOT takes 1.10 times as long, at least 1.0")
    assert last == (
        "worse: of 4 times in 2 cells 1 slower by over 5% or lost, 3 not slower by that, 0 unclear"
    )


def test_what_cannot_be_told_is_no_pass_and_says_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then = folder(tmp_path / "then", THEN)
    wide = folder(tmp_path / "wide", [fakes.paced(ONE, 0.455, 0.510, 0.560), EIGHT_AGAIN])
    assert gate(wide, then, 0.05) == 4
    first, *_, help_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{ONE.label}: TPOT takes 1.01 times as long, up to 1.1")
    assert re.fullmatch(r"about \d+ processes on each side .*: measure\.passes=\d+", help_)
    assert last.startswith(
        "cannot tell whether something is worse: of 4 times in 2 cells 0 slower by over 5% or lost"
    )
    once, twice = (folder(tmp_path / n, [fakes.paced(ONE, s)]) for n, s in (("1", 0.5), ("2", 0.6)))
    assert gate(twice, once, 0.05) == 4
    assert "2 comparisons: one process on each side" in capsys.readouterr().out
    assert gate(then, then, 0.05) == 4
    assert "2 cells: the baseline's own readings" in capsys.readouterr().out


def test_one_run_can_be_compared_with_a_sweep(tmp_path: Path) -> None:
    then, slower = folder(tmp_path / "then", THEN), folder(tmp_path / "slower", SLOWER)
    assert gate(slower / THEN[0].cell_id, then, 0.05) == 1
    assert gate(slower / THEN[1].cell_id, then, 0.05) == 0
    assert gate(slower, then / THEN[1].cell_id, 0.05) == 0


def test_another_machine_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = folder(tmp_path / "then", THEN)
    elsewhere = folder(
        tmp_path / "elsewhere", [fakes.paced(ONE, 0.5, 0.5, 0.51, host=fakes.host(cpus=4))]
    )
    gate(elsewhere, then, 0.05)
    assert "different machines or versions: usable CPUs: 2 then, 4 now" in capsys.readouterr().out


def test_nothing_in_common_is_a_mistake(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", THEN[:1]), folder(tmp_path / "other", THEN[1:])
    with pytest.raises(StoreError, match="nothing to compare"):
        gate(one, other, 0.05)


def test_cells_that_a_sweep_did_not_come_to_are_a_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then, half = folder(tmp_path / "then", THEN), folder(tmp_path / "half", AGAIN)
    (half / THEN[1].cell_id / "result.json").unlink()
    assert gate(half, then, 0.05) == 1
    assert f"{EIGHT.label}: had a number in the baseline and has none" in capsys.readouterr().out


def test_a_damaged_result_is_neither_a_loss_nor_a_pass(tmp_path: Path) -> None:
    then, bad = folder(tmp_path / "then", THEN), folder(tmp_path / "bad", AGAIN)
    (bad / THEN[1].cell_id / "result.json").write_text("{")
    assert gate(bad, then, 0.05) == 4
    assert gate(then, bad, 0.05) == 4
