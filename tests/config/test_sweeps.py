"""Every question in sweeps/ says what it asks and how; its whole grid composes, parses, and runs on
a tiny model."""

import re
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import yaml

from bench.__main__ import collect
from bench.config.cell import Cell, cell_id
from bench.config.settings import parse_config
from bench.driver import plan
from bench.meter.cell import run_cell
from bench.meter.host import probe_host
from bench.paths import ROOT
from bench.record.afterwards import Afterwards
from bench.record.result import Host, Outcome
from tests import fakes
from tests.command_line import from_readme

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
TINY = fakes.cell(model="tiny").model
NOTHING = fakes.cell().quality
ONE_REQUEST = replace(fakes.cell().measure, warmups=1, repeats=1, target=None)


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To compose in: Hydra writes below the working folder, and collecting sets the variables and
    arguments it reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_ROOT", str(ROOT))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["bench"])


_GRIDS: dict[str, list[Cell]] = {}  # composing the largest takes a quarter of a minute


def grid(name: str) -> list[Cell]:
    if name not in _GRIDS:
        _GRIDS[name] = [parse_config(mapping).cell for mapping in collect([f"sweeps={name}"])]
    return _GRIDS[name]


def header(file: Path) -> dict[str, str]:
    lines = [
        line.removeprefix("#").strip()
        for line in file.read_text(encoding="utf-8").splitlines()
        if line[:1] == "#"
    ]
    return {
        key: text.strip() for key, colon, text in (line.partition(":") for line in lines) if colon
    }


def test_there_are_sweeps() -> None:
    assert "headline" in [file.stem for file in FILES]


def test_no_sweep_hides_in_a_folder_or_under_another_ending() -> None:
    assert sorted((ROOT / "sweeps").rglob("*.y*ml")) == FILES


def test_help_names_every_sweep() -> None:
    said = (
        (ROOT / "conf" / "config.yaml")
        .read_text(encoding="utf-8")
        .partition("sweeps=NAME takes")[2]
        .partition("\n\n")[0]
    )
    listed = said.partition(":")[2].replace("\n", " ").split(",")
    assert {name.strip(" .") for name in listed} == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_asks_a_question(file: Path) -> None:
    assert header(file)["Question"].endswith("?")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_says_on_what_and_for_how_long(file: Path) -> None:
    said = header(file)
    assert said["Hardware"].startswith(("any", "a GPU"))
    assert re.match(r"\d+ cells.* min|\d+ cells.* h ", said["Duration"])
    assert "measured" in said["Duration"] or "guess" in said["Duration"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_gives_the_command_that_runs_it(file: Path) -> None:
    words = header(file)["Command"].split()
    assert words[:3] == ["python", "-m", "bench"]
    assert f"sweeps={file.stem}" in words[3:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_grid_of_a_sweep_composes_and_parses(file: Path) -> None:
    cells = grid(file.stem)
    axes = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"].values()
    assert (
        len({cell_id(cell) for cell in cells})
        == prod(len(str(values).split(",")) for values in axes)
        >= 2
    )
    assert header(file)["Duration"].startswith(f"{len(cells)} cells")


def smallest(cell: Cell, host: Host) -> Cell:
    """The cell with a tiny model, one row of few tokens, one request; what then is alike in two
    sweeps runs once."""
    few = (
        {"new_tokens": 2, "prompt_tokens": 16, "name": "few"}
        if cell.workload.text
        else {"new_tokens": 2}
    )
    small = replace(
        cell,
        model=TINY,
        workload=replace(cell.workload, **few),
        measure=ONE_REQUEST,
        quality=NOTHING,
        batch=1,
    )
    return plan.resolve(small, host)


@pytest.fixture(scope="module")
def this_host() -> Host:
    return probe_host()


@pytest.fixture(scope="module")
def ran() -> dict[str, Outcome]:
    """By cell_id, what became of the cells of all sweeps so far: many have the same."""
    return {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_of_a_sweep_runs_with_a_tiny_model_or_says_why_not(
    file: Path, ran: dict[str, Outcome], this_host: Host
) -> None:
    cells = {
        cell_id(cell): cell for cell in (smallest(each, this_host) for each in grid(file.stem))
    }
    for key, cell in cells.items():
        if key not in ran:
            ran[key] = plan.why_not(cell, this_host) or run(cell)
    outcomes = [ran[key] for key in cells]
    assert {outcome.status for outcome in outcomes} <= {"ok", "skipped", "not_engaged"}
    assert all(outcome.reason for outcome in outcomes if outcome.status != "ok")
    assert sum(outcome.status == "ok" for outcome in outcomes) >= 2


def run(cell: Cell) -> Outcome:
    found = run_cell(lambda *_: None, cell, Afterwards())
    assert found.measurement is not None
    assert len(found.measurement.repeats) == 1
    return Outcome("ok")


def test_a_sweep_takes_another_model_from_the_command_line() -> None:
    cells = [
        parse_config(mapping).cell for mapping in collect(["sweeps=seed_mistral", "model=tiny"])
    ]
    assert [(cell.model.name, cell.quant.name) for cell in cells] == [
        ("tiny", q) for q in ("fp16", "fp16", "nf4", "nf4")
    ]


def test_the_headline_is_the_grid_of_the_readme() -> None:
    command = from_readme("python -m bench sweeps=headline")
    assert [parse_config(mapping).cell for mapping in collect(command)] == grid("headline")
    assert [(cell.quant.name, cell.batch) for cell in grid("headline")] == [
        (quant, batch) for quant in ("fp16", "int8", "nf4") for batch in (1, 8, 32)
    ]
