"""Which changes make an old result stale."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.driver import resume
from bench.driver.resume import measuring_digest, measuring_files, resume_key
from bench.paths import PACKAGE
from tests import fakes

CELL = fakes.cell()
HOST = fakes.gpu_host()


def test_a_change_of_the_machine_or_its_software_asks_for_a_new_measurement() -> None:
    changes: list[dict[str, Any]] = [
        {"versions": {"torch": "2.9.1", "transformers": "5.0.0"}},
        {"versions": {"torch": "2.9.0"}},
        {"driver": "580.2"},
        {"device_name": "Another GPU"},
        {"device_uuid": "GPU-2"},
        {"cpu_name": "Another CPU"},
        {"cpus": 4},
        {"memory_bytes": 4_000_000_000},
        {"python": "3.12.0"},
        {"device_settings": {"power limit, W": "300"}},
    ]
    keys = {resume_key(CELL, fakes.gpu_host(**change)) for change in changes}
    assert len({*keys, resume_key(CELL, HOST)}) == len(changes) + 1


def test_another_cell_has_another_key_and_a_longer_limit_has_not() -> None:
    assert resume_key(fakes.cell(batch=2), HOST) != resume_key(CELL, HOST)
    patient = fakes.cell(measure=fakes.group("measure", "quick", limits_s={"load": 1e6}))
    assert patient != CELL
    assert resume_key(patient, HOST) == resume_key(CELL, HOST)


def test_weights_and_tasks_that_are_saved_anew_under_the_same_path_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a_file").write_bytes(b"1")
    model = fakes.group("model", "gpt2", path=str(tmp_path))
    quality = fakes.group("quality", "none", task_folder=str(tmp_path))
    cells = fakes.cell(model=model), fakes.cell(quality=quality)
    before = [resume_key(cell, HOST) for cell in cells]
    assert [resume_key(cell, HOST) for cell in cells] == before
    os.utime(tmp_path / "a_file", (0, 0))  # the same weights, copied
    assert resume_key(cells[0], HOST) == before[0]
    (tmp_path / "a_file").write_bytes(b"12")
    for old, new in zip(before, [resume_key(cell, HOST) for cell in cells], strict=True):
        assert old != new


ENGINES = ("transformers", "scripted")


@pytest.fixture(scope="module")
def measuring() -> dict[str, set[str]]:
    """By engine, the files whose text can change a reading."""
    return {
        engine: {file.relative_to(PACKAGE).as_posix() for file in measuring_files(engine)}
        for engine in ENGINES
    }


@pytest.mark.parametrize(
    ("file", "engines"),
    [
        ("meter/requests.py", ENGINES),
        ("meter/cell.py", ENGINES),
        ("meter/reference.py", ENGINES),
        ("analysis/stopping.py", ENGINES),
        ("data/text/prose.txt", ENGINES),
        ("data/prompts/basic.yaml", ENGINES),
        ("engine/prompts.py", ENGINES),
        ("engine/clock.py", ENGINES),
        ("engine/transformers/strategies.py", ("transformers",)),  # named by its place alone
        ("engine/transformers/profiling.py", ("transformers",)),  # imported within functions
        ("engine/transformers/schemes/bitsandbytes.py", ("transformers",)),
        ("engine/scripted.py", ("scripted",)),
        ("report/page.py", ()),
        ("analysis/metrics.py", ()),
        ("driver/sweep.py", ()),
        ("store/files.py", ()),
        ("data/text/SOURCES.md", ()),
    ],
)
def test_what_can_change_a_reading_is_what_the_measured_process_imports(
    measuring: dict[str, set[str]], file: str, engines: tuple[str, ...]
) -> None:
    assert (PACKAGE / file).is_file()
    assert [engine for engine in ENGINES if file in measuring[engine]] == list(engines)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy in the place of the package."""
    copy = tmp_path / "bench"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(resume, "PACKAGE", copy)
    for name in ("TEXTS", "PROMPT_SETS", "CHOICE_SETS"):
        files = getattr(resume, name)
        moved = {key: copy / file.relative_to(PACKAGE) for key, file in files.items()}
        monkeypatch.setattr(resume, name, moved)
    calibration = copy / resume.CALIBRATION_TEXT.relative_to(PACKAGE)
    monkeypatch.setattr(resume, "CALIBRATION_TEXT", calibration)
    measuring_digest.cache_clear()
    yield copy
    measuring_digest.cache_clear()


def test_an_edit_of_a_measuring_file_asks_for_a_new_measurement_and_no_other_does(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_after_edit(file: str) -> str:
        with open(package / file, "a") as edited:
            edited.write("\n")
        measuring_digest.cache_clear()
        return resume_key(CELL, HOST)

    as_it_was = resume_key(CELL, HOST)
    assert key_after_edit("driver/sweep.py") == as_it_was
    assert key_after_edit("engine/transformers/strategies.py") != as_it_was
    monkeypatch.undo()
    measuring_digest.cache_clear()
    assert resume_key(CELL, HOST) == as_it_was  # the place of the checkout does not matter
