"""A result file that was edited or damaged is refused with its name, or can be analysed: each field
in turn is absent, null, 0, negative, or of another length."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.comparison import compare
from bench.commands import run_command
from bench.errors import ConfigError, StoreError
from bench.record.result import Result, from_json
from bench.report import advice, grid, page, terminal
from bench.store.files import read_place
from tests import fakes, stores
from tests.record.test_result import FULL

Path_ = tuple[str | int, ...]
OTHER = fakes.result(cell=fakes.cell(batch=4))
ABSENT = object()


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Of everything in a record; of a list the first element stands for all."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def changed(mapping: Any, path: Path_, value: Any) -> str:
    copy = json.loads(json.dumps(mapping))
    place = copy
    for step in path[:-1]:
        place = place[step]
    if value is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(copy)


def variants(value: Any) -> Iterator[Any]:
    yield from (ABSENT, None)
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield from (0, -1, 10**9, "x")
    elif isinstance(value, list):
        yield from ([], value * 2, value[:1])
    elif isinstance(value, dict):
        yield {}
    else:
        yield ""


def at(mapping: Any, path: Path_) -> Any:
    for step in path:
        mapping = mapping[step]
    return mapping


WHOLE = json.loads(FULL.to_json())
EDITS = [
    (path, value)
    for path in places(WHOLE)
    if path[:1] not in (("asked",), ("cell",))  # the configuration's parser is tested by itself
    for value in variants(at(WHOLE, path))
]


def analysed(result: Result) -> None:
    """Everything that report, advice and the end of a sweep compute and print."""
    comparison = compare([result, OTHER], fakes.sweep(result.cell_id, OTHER.cell_id))
    terminal.as_text(comparison)
    grid.cells(comparison)
    advice.use_cases(comparison)
    page.markdown(comparison)
    page.table(comparison)


def test_each_edit_is_refused_or_can_be_analysed() -> None:
    assert len(EDITS) > 700
    refused = 0
    for path, value in EDITS:
        try:
            result = from_json(changed(WHOLE, path, value), "here")
        except StoreError as error:
            refused += str(error).startswith("here: ")
            continue
        try:
            analysed(result)
        except Exception as error:
            error.add_note(f"{path} = {value}")
            raise
    assert refused > 400


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("replicates", 0, "measurement", "repeats", 0, "ttft_s"), 0, "want a number, above 0"),
        (("replicates", 0, "measurement", "repeats", 0, "e2e_s"), -1, "want a number, above 0"),
        (("replicates", 0, "measurement", "repeats"), [], "want a list, each a group"),
        (
            ("replicates", 0, "measurement", "repeats", 0, "decode_step_s"),
            [1.0],
            "different numbers",
        ),
        (("attestation",), None, "attestation=null: a cell with a number has one"),
        (("cell", "batch"), "max", r"cell\.batch=max: want the number that the cell ran with"),
    ],
)
def test_a_sentence_says_what_is_wrong(path: Path_, value: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        from_json(changed(WHOLE, path, value), "here")


def damaged_sweep(outputs: Path) -> Path:
    folder = stores.swept(outputs, FULL, OTHER)
    file = folder / FULL.cell_id / "result.json"
    file.write_text(changed(WHOLE, ("replicates", 0, "measurement", "load_s"), -3))
    return folder


def test_one_bad_cell_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    folder = damaged_sweep(tmp_path)
    stored = read_place(folder)
    assert [result.cell_id for result in stored.results] == [OTHER.cell_id]
    (reason,) = stored.damaged.values()
    assert reason.startswith(str(folder / FULL.cell_id / "result.json"))
    assert "load_s=-3: want a number, at least 0" in reason


def test_every_command_goes_on_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stores.database(tmp_path / "outputs" / "mlflow.db")
    folder = damaged_sweep(tmp_path / "outputs")
    for name in ("report", "advise", "push"):
        assert run_command(name, []) == 0
        said = capsys.readouterr()
        assert said.err.startswith("left out: ")
        assert "load_s=-3" in said.err
        assert said.out
    gate = [folder.name, "--baseline", folder.name]
    assert run_command("gate", gate) == 4  # neither worse nor known to be as good
    assert capsys.readouterr().err.count("left out: ") == 2
    (folder / OTHER.cell_id / "result.json").write_text("{")
    with pytest.raises(ConfigError, match="nothing to compare"):
        run_command("gate", gate)


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    for number in (math.nan, math.inf):
        with pytest.raises(StoreError, match="want a number"):
            from_json(changed(WHOLE, ("replicates", 0, "wall_s"), number), "here")
