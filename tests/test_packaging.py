"""The wheel has everything in it, and what it installs works in a folder that holds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.paths import ROOT
from bench.store.files import read_results, read_sweep
from tests.command_line import TINY, environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel installs it; its dependencies are ours."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # A build leaves files behind, and must find none of an older one
    for name in filter(None, tracked.split("\0")):
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(place), str(source)], check=True)
    return place


def run(installed: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    own = {**environment(folder), "PYTHONPATH": str(installed)}
    command = [sys.executable, str(installed / "bin" / "bench"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_shipped_file_is_in_it(installed: Path) -> None:
    for folder, inside in (("conf", "conf"), ("sweeps", "sweeps"), ("bench/data", "data")):
        wanted = {f.relative_to(ROOT / folder) for f in (ROOT / folder).rglob("*") if f.is_file()}
        wanted = {
            file
            for file in wanted
            if file.suffix in (".yaml", ".csv", ".txt", ".j2", ".md") and file.name != "LOG.md"
        }
        found = {
            file.relative_to(installed / "bench" / inside)
            for file in (installed / "bench" / inside).rglob("*")
        }
        assert wanted - found == set()
        assert len(wanted) >= 4


def test_it_brings_one_top_level_package(installed: Path) -> None:
    assert {
        place.name for place in installed.iterdir() if not place.name.endswith(".dist-info")
    } == {"bench", "bin"}


def test_a_sweep_from_an_empty_folder_writes_there(installed: Path, tmp_path: Path) -> None:
    before = {file for file in installed.rglob("*") if "__pycache__" not in file.parts}
    done = run(installed, tmp_path, "-m", *TINY, "quant=fp32,nf4")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [result.outcome.status for result in read_results(folder)] == ["ok"] * 2
    assert (read_sweep(folder).provenance.commit, read_sweep(folder).provenance.lock) == (
        None,
        None,
    )
    assert {file for file in installed.rglob("*") if "__pycache__" not in file.parts} == before
