"""Every question in sweeps/ says what it asks and how, and its grid composes and parses."""

import re
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench.config.cell import Cell, cell_id
from bench.config.compose import collect
from bench.config.settings import parse_config
from bench.paths import CONF, ROOT
from tests.command_line import from_readme

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To compose in: Hydra writes below the working folder, and collecting sets the variables and
    arguments it reads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_ROOT", str(ROOT))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["bench"])


def axes(file: Path) -> dict[str, list[str]]:
    """The values of each axis, as they are written."""
    sweeper = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["sweeper"]["params"]
    return {axis: str(values).split(",") for axis, values in sweeper.items()}


def with_value(config: dict[str, Any], axis: str, value: str) -> dict[str, Any]:
    """As Hydra composes it, in a thousandth of its time."""
    if (CONF / axis).is_dir():
        file = CONF / axis / f"{value}.yaml"
        return {**config, axis: yaml.safe_load(file.read_text(encoding="utf-8"))}
    key, _, below = axis.partition(".")
    inner = with_value(config[key], below, value) if below else yaml.safe_load(value)
    return {**config, key: inner}


def cells_of(file: Path) -> list[Cell]:
    """The first cell, and for each other value of an axis the cell that has it."""
    first = [f"{axis}={values[0]}" for axis, values in axes(file).items()]
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        patch.setenv("BENCH_ROOT", str(ROOT))
        config = compose("config", [f"sweeps={file.stem}", *first])
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    others = [
        with_value(plain, axis, value)
        for axis, values in axes(file).items()
        for value in values[1:]
    ]
    return [parse_config(each).cell for each in (plain, *others)]


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
def test_a_sweep_says_what_it_asks_where_it_runs_and_how(file: Path) -> None:
    said = header(file)
    assert said["Question"].endswith("?")
    assert said["Hardware"].startswith(("any", "a GPU"))
    assert re.match(r"\d+ cells.* min|\d+ cells.* h ", said["Duration"])
    assert "measured" in said["Duration"] or "guess" in said["Duration"]
    words = said["Command"].split()
    assert words[:3] == ["python", "-m", "bench"]
    assert f"sweeps={file.stem}" in words[3:]
    count = prod(len(values) for values in axes(file).values())
    assert count >= 2
    assert said["Duration"].startswith(f"{count} cells")


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Cell]]:
    """By sweep."""
    return {file.stem: cells_of(file) for file in FILES}


def test_the_axes_of_a_sweep_make_different_cells(cells: dict[str, list[Cell]]) -> None:
    for name, found in cells.items():
        assert len({cell_id(cell) for cell in found}) == len(found) >= 2, name


def test_a_sweep_takes_another_model_from_the_command_line() -> None:
    found = [
        parse_config(mapping).cell for mapping in collect(["sweeps=seed_mistral", "model=tiny"])
    ]
    assert [(cell.model.name, cell.quant.name) for cell in found] == [
        ("tiny", q) for q in ("fp16", "fp16", "nf4", "nf4")
    ]


def test_the_headline_is_the_grid_of_the_readme() -> None:
    assert from_readme("python -m bench sweeps=headline") == ["sweeps=headline"]
    grid = {"quant": ["fp16", "int8", "nf4"], "batch": ["1", "8", "32"]}
    assert axes(ROOT / "sweeps" / "headline.yaml") == grid
