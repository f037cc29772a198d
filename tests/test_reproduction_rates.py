"""How often ``reproduce`` is right on this machine: not in the default run, 40 min on a quiet
machine.

The default model in nf4 at batch 1, three processes then, five now. Once more on this machine:
``reproduced`` within 5 % in nine tries of ten; with a sleep of 15 % of TPOT planted into each
decode step: ``differs`` in nine of ten, for the right reason; beside a process that keeps one core
busy: never ``reproduced`` without a warning. `pytest -m slow -s tests/test_reproduction_rates.py`
prints each verdict.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.analysis.metrics import derive
from bench.paths import ROOT
from tests.command_line import bench, results

TRIES = 10
WRONG_AT_MOST = 1
STEP = "        clock.token()\n"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one sweep of one cell."""
    folder = tmp_path_factory.mktemp("measured")
    done = bench(
        folder,
        "quant=nf4",
        "measure=standard",
        "measure.repeats=20",
        "quality=none",
        "tracking=none",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def slowed(measured: Path, tmp_path: Path) -> Path:
    """A copy of the package that sleeps in each decode step."""
    for name in ("bench", "conf", "sweeps"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (original,) = results(measured)
    sleep_s = 0.15 * derive(original)["tpot_s"]
    file = tmp_path / "bench" / "engine" / "transformers" / "strategies.py"
    text = file.read_text(encoding="utf-8")
    assert text.count(STEP) == 1
    file.write_text(
        f"import time\n{text.replace(STEP, f'        time.sleep({sleep_s})' + chr(10) + STEP)}"
    )
    return tmp_path


@pytest.fixture
def a_busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    process.kill()
    process.wait()


def verdicts(measured: Path, tries: int, *options: str, package: Path = ROOT) -> list[str]:
    """What ``reproduce`` prints, try by try."""
    (original,) = [folder.parent for folder in measured.glob("outputs/sweeps/*/sweep.json")]
    said = []
    for i in range(tries):
        place = measured / f"{package.name}-{i}-{tries}"
        place.mkdir()
        # A folder of its own for each: the outputs of one are no sweep of the next.
        done = bench(place, "reproduce", str(original), *options, PYTHONPATH=str(package))
        assert done.returncode in (0, 1, 4), done.stderr
        print(f"\n{done.stdout}{done.stderr}", flush=True)
        said.append(done.stdout)
    return said


def test_on_the_same_machine_it_is_reproduced(measured: Path) -> None:
    said = verdicts(measured, TRIES)
    assert sum(text.startswith("reproduced") for text in said) >= TRIES - WRONG_AT_MOST


def test_a_planted_slowdown_differs(measured: Path, slowed: Path) -> None:
    said = verdicts(measured, TRIES, "--processes", "3", package=slowed)
    assert sum(text.startswith("differs") for text in said) >= TRIES - WRONG_AT_MOST
    assert all(
        "likeliest reason: files that measure" in text
        for text in said
        if text.startswith("differs")
    )


@pytest.mark.usefixtures("a_busy_core")
def test_beside_a_busy_core_it_is_never_reproduced_without_a_warning(measured: Path) -> None:
    said = verdicts(measured, 3)
    assert all("warning: " in text for text in said)  # whatever the verdict
