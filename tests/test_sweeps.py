"""Every question in sweeps/ says what it asks and how, and its whole grid composes and parses."""

import sys
from math import prod
from pathlib import Path

import pytest
import yaml

from bench.__main__ import collect
from bench.config import parse_config
from bench.paths import ROOT
from bench.spec import Cell, cell_id

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To compose in: Hydra writes below the working folder, and collecting sets the variables and arguments it reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_ROOT", str(ROOT))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["bench"])


def grid(name: str) -> list[Cell]:
    return [parse_config(mapping).cell for mapping in collect([f"sweeps={name}"])]


def header(file: Path) -> dict[str, str]:
    lines = [line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    return {key: text.strip() for key, colon, text in (line.partition(":") for line in lines) if colon}


def test_there_are_sweeps() -> None:
    assert "headline" in [file.stem for file in FILES]


def test_no_sweep_hides_in_a_folder_or_under_another_ending() -> None:
    assert sorted((ROOT / "sweeps").rglob("*.y*ml")) == FILES


def test_help_names_every_sweep() -> None:
    said = (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8").partition("sweeps=NAME takes")[2].partition("\n\n")[0]
    listed = said.partition(":")[2].replace("\n", " ").split(",")
    assert {name.strip(" .") for name in listed} == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_asks_a_question(file: Path) -> None:
    assert header(file)["Question"].endswith("?")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_gives_the_command_that_runs_it(file: Path) -> None:
    words = header(file)["Command"].split()
    assert words[:3] == ["python", "-m", "bench"]
    assert f"sweeps={file.stem}" in words[3:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_grid_of_a_sweep_composes_and_parses(file: Path) -> None:
    cells = grid(file.stem)
    axes = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"].values()
    assert len({cell_id(cell) for cell in cells}) == prod(len(str(values).split(",")) for values in axes) >= 2


def test_the_headline_is_the_grid_of_the_readme() -> None:
    assert [(cell.quant.name, cell.batch) for cell in grid("headline")] == [
        (quant, batch) for quant in ("fp16", "int8", "nf4") for batch in (1, 8, 32)
    ]
