"""Files on disk: whole or not there, in the order of the grid, and refused by name when they are
not ours."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.config.settings import Baseline, Tracking
from bench.errors import StoreError
from bench.record.depth import Fit, Growth
from bench.record.result import Outcome, Result
from bench.record.sweep import Spread, Sweep
from bench.store.files import (
    cell_folder,
    library_warnings,
    new_folder,
    read_growths,
    read_results,
    read_sweep,
    write_growths,
    write_result,
    write_sweep,
)
from tests import fakes

ONE, TWO, THREE = (fakes.result(cell=fakes.cell(batch=batch)) for batch in (1, 2, 3))


def sweep(*cells: str) -> Sweep:
    return Sweep(
        sweep_id="2026-01-31_12-00-00",
        started_at=1_750_000_000.5,
        overrides=("-m", "batch=1,2,3"),
        tracking=Tracking("none", False, "tests"),
        baseline=Baseline(quant="fp16"),
        margin=0.03,
        calibration={"tpot_s": Spread(0.01, 7)},
        cells=cells,
        provenance=fakes.provenance(),
    )


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_sweeps_begun_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path) for _ in range(5)]
    assert len(set(folders)) == 5
    assert {folder.parent for folder in folders} == {tmp_path / "sweeps"}
    assert [folder for folder in folders if not folder.is_dir()] == []


def test_sweeps_sort_by_the_time_they_began(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path) for _ in range(3)]
    assert folders == sorted(folders)


def test_the_folder_of_a_cell_is_made_once(tmp_path: Path) -> None:
    place = cell_folder(tmp_path, "0123456789ab")
    (place / "log.txt").write_text("a")
    assert cell_folder(tmp_path, "0123456789ab") == place == tmp_path / "0123456789ab"
    assert names(place) == ["log.txt"]


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep("a", "b"))
    assert read_sweep(tmp_path) == sweep("a", "b")


def test_a_sweep_outside_a_checkout_is_read_as_it_was_written(tmp_path: Path) -> None:
    installed = replace(sweep(), provenance=fakes.provenance(commit=None, lock=None, changed=()))
    write_sweep(tmp_path, installed)
    assert read_sweep(tmp_path) == installed


def test_a_sweep_keeps_its_price_and_an_older_one_has_none(tmp_path: Path) -> None:
    write_sweep(tmp_path, replace(sweep(), price_per_hour=2.5))
    assert read_sweep(tmp_path).price_per_hour == 2.5
    file = tmp_path / "sweep.json"
    without = json.loads(file.read_text()) | {"price_per_hour": -1}
    file.write_text(json.dumps(without))
    with pytest.raises(StoreError, match="price_per_hour=-1: want a number or null, above 0"):
        read_sweep(tmp_path)
    del without["price_per_hour"]
    file.write_text(json.dumps(without))
    assert read_sweep(tmp_path).price_per_hour is None


@pytest.mark.parametrize("order", [[ONE, TWO, THREE], [THREE, TWO, ONE]])
def test_results_come_in_the_order_of_the_grid(tmp_path: Path, order: list[Result]) -> None:
    write_sweep(tmp_path, sweep(*(result.cell_id for result in order)))
    for result in (ONE, TWO, THREE):
        write_result(tmp_path, result)
    assert list(read_results(tmp_path)) == order


def test_cells_that_have_not_ended_are_left_out(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id, TWO.cell_id))
    cell_folder(tmp_path, ONE.cell_id)
    write_result(tmp_path, TWO)
    assert list(read_results(tmp_path)) == [TWO]


def test_writing_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    write_result(tmp_path, ONE)
    assert names(tmp_path) == sorted([ONE.cell_id, "sweep.json"])
    assert names(tmp_path / ONE.cell_id) == ["result.json"]


def test_a_result_replaces_an_older_one_of_its_cell(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    write_result(tmp_path, ONE)
    again = replace(ONE, started_at=99.0)
    write_result(tmp_path, again)
    assert list(read_results(tmp_path)) == [again]


@contextmanager
def full_disk(room_bytes: int) -> Iterator[None]:
    """No file can grow beyond ``room_bytes``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_the_old_result_whole(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    write_result(tmp_path, ONE)
    with (
        full_disk(100),
        pytest.raises(StoreError, match=r"result.json: cannot be written \(File too large\)"),
    ):
        write_result(tmp_path, replace(ONE, started_at=99.0))
    assert list(read_results(tmp_path)) == [ONE]


def test_a_disk_that_fills_up_leaves_no_half_of_a_first_result(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    with (
        full_disk(100),
        pytest.raises(StoreError, match=r"result.json: cannot be written \(File too large\)"),
    ):
        write_result(tmp_path, ONE)
    assert list(read_results(tmp_path)) == []
    write_result(tmp_path, ONE)
    assert names(tmp_path / ONE.cell_id) == ["result.json"]


def test_a_reading_that_is_no_number_leaves_the_old_result_whole(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    write_result(tmp_path, ONE)
    with pytest.raises(ValueError, match="nan"):
        write_result(tmp_path, replace(ONE, started_at=float("nan")))
    assert list(read_results(tmp_path)) == [ONE]


@pytest.mark.parametrize(
    ("missing", "what"), [("", r"no sweep\.json in it"), ("nowhere", "no such folder")]
)
def test_a_folder_that_is_no_sweeps_is_refused(tmp_path: Path, missing: str, what: str) -> None:
    with pytest.raises(
        StoreError, match=f"{what}; want the folder of a sweep, like outputs/sweeps/"
    ):
        read_sweep(tmp_path / missing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep.json: Expecting value"),
        ("{", "sweep.json: Expecting property name"),
        ("{}", "sweep.json: sweep_id: missing; want a text"),
        ("[]", "sweep.json: .*want a group with the keys sweep_id, started_at"),
    ],
)
def test_a_sweep_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        read_sweep(tmp_path)


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    file = cell_folder(tmp_path, ONE.cell_id) / "result.json"
    file.write_text(ONE.to_json()[:100])
    with pytest.raises(StoreError, match=f"^{file}: not a result file"):
        list(read_results(tmp_path))


def test_a_result_that_is_no_text_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(ONE.cell_id))
    file = cell_folder(tmp_path, ONE.cell_id) / "result.json"
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(StoreError, match=f"^{file}: "):
        list(read_results(tmp_path))


def test_what_libraries_wrote_is_kept_once(tmp_path: Path) -> None:
    failed = fakes.result(cell=fakes.cell(batch=9), outcome=Outcome("failed", "it broke"))
    write_sweep(tmp_path, sweep(ONE.cell_id, TWO.cell_id, failed.cell_id))
    for result, text in (
        (ONE, "deprecated\n\n"),
        (TWO, "deprecated\nslow kernel\n"),
        (failed, "Traceback\n"),
    ):
        write_result(tmp_path, result)
        (cell_folder(tmp_path, result.cell_id) / "log.txt").write_text(text)
    assert library_warnings(tmp_path, [ONE, TWO, failed]) == ["deprecated", "slow kernel"]


def test_only_earlier_sweeps_have_said_how_times_grow_and_the_newest_of_them_counts(
    tmp_path: Path,
) -> None:
    fit = Fit((0.5, 0.25), ((1.0, 0.0), (0.0, 1.0)), 3.0, 0.02, None, 0.01)
    folders = [tmp_path / "sweeps" / f"2026-01-31_12-00-0{i}" for i in range(4)]
    for folder in folders:
        folder.mkdir(parents=True)
    said = [
        Growth(name, folder.name, "Some CPU", (8, 16, 32), 5, fit, None)
        for folder, name in zip(folders, ("a", "a", "b", "a"), strict=True)
    ]
    for folder, growth in zip(folders, said, strict=True):
        write_growths(folder, [growth])
    assert read_growths(folders[3]) == {"a": said[1], "b": said[2]}
    assert read_growths(folders[0]) == {}


def test_a_sweep_that_says_nothing_of_depth_writes_nothing(tmp_path: Path) -> None:
    write_growths(tmp_path, [])
    assert names(tmp_path) == []
