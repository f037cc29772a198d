"""What makes an old result stale, and what does not."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.driver import resume
from bench.driver.resume import resume_key
from bench.paths import PACKAGE
from tests import fakes

CELL = fakes.cell()
HOST = fakes.gpu_host()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("versions", {"torch": "2.9.1", "transformers": "5.0.0"}),
        ("versions", {"torch": "2.9.0"}),
        ("driver", "580.2"),
        ("device_name", "Another GPU"),
        ("device_uuid", "GPU-2"),
        ("cpu_name", "Another CPU"),
        ("cpus", 4),
        ("memory_bytes", 4_000_000_000),
        ("python", "3.12.0"),
    ],
)
def test_a_change_of_the_machine_or_its_software_asks_for_a_new_measurement(
    field: str, value: Any
) -> None:
    assert resume_key(CELL, fakes.gpu_host(**{field: value})) != resume_key(CELL, HOST)


def test_another_cell_has_another_key() -> None:
    assert resume_key(fakes.cell(batch=2), HOST) != resume_key(CELL, HOST)


def test_a_longer_limit_keeps_the_key() -> None:
    patient = fakes.cell(measure=fakes.group("measure", "quick", limits_s={"load": 1e6}))
    assert patient != CELL
    assert resume_key(patient, HOST) == resume_key(CELL, HOST)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package from which the key is computed."""
    copy = tmp_path / "bench"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(resume, "PACKAGE", copy)
    for name in ("TEXTS", "PROMPT_SETS"):
        moved = {
            key: copy / file.relative_to(PACKAGE) for key, file in getattr(resume, name).items()
        }
        monkeypatch.setattr(resume, name, moved)
    resume.measuring_digest.cache_clear()
    yield copy
    resume.measuring_digest.cache_clear()


def key_after_edit(file: Path) -> str:
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    resume.measuring_digest.cache_clear()
    return resume_key(CELL, HOST)


@pytest.mark.parametrize(
    "file",
    [
        "model/load.py",
        "model/decode.py",
        "meter/speed.py",
        "meter/clock.py",
        "run.py",
        "analysis/stopping.py",
        "data/text/prose.txt",
    ],
)
def test_an_edit_of_what_measures_asks_for_a_new_measurement(checkout: Path, file: str) -> None:
    before = resume_key(CELL, HOST)
    assert key_after_edit(checkout / file) != before


@pytest.mark.parametrize(
    "file", ["output/table.py", "analysis/metrics.py", "sweep.py", "data/text/SOURCES.md"]
)
def test_a_commit_that_leaves_the_measuring_files_alone_keeps_the_key(
    checkout: Path, file: str
) -> None:
    before = resume_key(CELL, HOST)
    assert key_after_edit(checkout / file) == before


def test_a_new_measuring_file_asks_for_a_new_measurement(checkout: Path) -> None:
    before = resume_key(CELL, HOST)
    (checkout / "meter" / "another.py").touch()
    resume.measuring_digest.cache_clear()
    assert resume_key(CELL, HOST) != before


def test_the_place_of_the_checkout_does_not_matter(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_copy = resume_key(CELL, HOST)
    monkeypatch.undo()
    resume.measuring_digest.cache_clear()
    assert resume_key(CELL, HOST) == in_copy


def test_weights_saved_anew_under_the_same_path_are_other_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    cell = fakes.cell(model=fakes.group("model", "gpt2", path=str(tmp_path)))
    before = resume_key(cell, HOST)
    assert resume_key(cell, HOST) == before
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert resume_key(cell, HOST) != before
