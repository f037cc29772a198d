"""The gate: what counts as slower, and what it returns."""

from pathlib import Path

import pytest

from bench.analysis.verdict import slowdowns
from bench.commands.gate import gate
from bench.errors import StoreError
from bench.record.result import Outcome, Result
from bench.record.sweep import Spread
from bench.store.files import write_result, write_sweep
from tests import fakes

ONE, EIGHT = fakes.cell(), fakes.cell(batch=8)
THEN = [fakes.paced(ONE, 0.500, 0.502, 0.501), fakes.paced(EIGHT, 1.00, 1.01, 1.00)]


def words(now: list[Result], threshold: float = 0.05) -> list[tuple[str, str]]:
    return [
        (each.metric, each.word)
        for each in slowdowns(now, THEN, threshold, {})
        if each.label == ONE.label
    ]


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((0.501, 0.500, 0.502), "no regression"),
        ((0.520, 0.521, 0.519), "no regression"),  # slower for sure, but within 5 %
        ((0.550, 0.551, 0.552), "regression"),
        ((0.300, 0.301, 0.300), "no regression"),  # faster
        ((0.450, 0.550, 0.650), "no regression"),  # 10 % slower, by processes that differ far more
    ],
)
def test_a_regression_is_beyond_the_threshold_with_its_lower_end(
    steps: tuple[float, ...], word: str
) -> None:
    assert ("tpot_s", word) in words([fakes.paced(ONE, *steps), THEN[1]])
    assert ("ttft_s", "no regression") in words([fakes.paced(ONE, *steps), THEN[1]])


def test_the_threshold_is_the_users() -> None:
    slower = [fakes.paced(ONE, 0.520, 0.521, 0.519), THEN[1]]
    assert ("tpot_s", "regression") in words(slower, threshold=0.01)


def test_a_cell_that_has_no_number_any_more_is_a_loss() -> None:
    assert words([fakes.result(cell=ONE, outcome=Outcome("failed", "it broke")), THEN[1]]) == [
        ("outcome", "lost")
    ]


def test_a_single_process_each_takes_a_calibration() -> None:
    then, now = [fakes.paced(ONE, 0.5)], [fakes.paced(ONE, 0.6)]
    assert {each.word for each in slowdowns(now, then, 0.05, {})} == {"cannot tell"}
    calm = {"tpot_s": Spread(0.01, 7), "ttft_s": Spread(0.01, 7)}
    assert [each.word for each in slowdowns(now, then, 0.05, calm)] == [
        "regression",
        "no regression",
    ]


def folder(place: Path, results: list[Result]) -> Path:
    place.mkdir()
    write_sweep(place, fakes.sweep(*(result.cell_id for result in results), sweep_id=place.name))
    for result in results:
        write_result(place, result)
    return place


def test_the_gate_says_which_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = folder(tmp_path / "then", THEN)
    slower = folder(tmp_path / "slower", [fakes.paced(ONE, 0.550, 0.551, 0.552), THEN[1]])
    assert gate(then, then, 0.05) == 0
    assert capsys.readouterr().out == "0 regressions beyond 5% in 4 comparisons of 2 cells\n"
    assert gate(slower, then, 0.05) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{ONE.label}: TPOT takes 1.10 times as long, at least 1.0")
    assert last == "1 regressions beyond 5% in 4 comparisons of 2 cells"


def test_one_run_can_be_compared_with_a_sweep(tmp_path: Path) -> None:
    then = folder(tmp_path / "then", THEN)
    slower = folder(tmp_path / "slower", [fakes.paced(ONE, 0.550, 0.551, 0.552), THEN[1]])
    assert gate(slower / THEN[0].cell_id, then, 0.05) == 1
    assert gate(slower / THEN[1].cell_id, then, 0.05) == 0


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
    then, half = folder(tmp_path / "then", THEN), folder(tmp_path / "half", THEN)
    (half / THEN[1].cell_id / "result.json").unlink()
    assert gate(half, then, 0.05) == 1
    assert (
        f"{EIGHT.label}: had a number in the baseline; the sweep ended before"
        in capsys.readouterr().out
    )
