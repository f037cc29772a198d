"""That the seams hold: what is made up in a few lines is run by the driver, and torch is nowhere
near it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from bench.__main__ import main
from bench.analysis.metrics import derive
from bench.config.cell import Cell
from bench.driver.process import Task, begin_server, run_isolated
from bench.engine import protocol
from bench.engine.prompts import Ids
from bench.engine.protocol import Announce, Files, Floats
from bench.engine.scripted import Scripted, ScriptedSession
from bench.meter.cell import measure_cell
from bench.paths import PACKAGE, ROOT
from tests import fakes
from tests.command_line import environment
from tests.scripted import in_this_process, scripted, sweep

HEAVY = ("torch", "transformers", "bitsandbytes", "mlflow", "hydra")


class MadeUp(Scripted):
    """An engine that takes 7 s for a first token."""

    def open(self, cell: Cell, files: Files) -> ScriptedSession:
        session = super().open(cell, files)
        session.script = replace(session.script, ttft_s=7.0)
        return session


ENGINE = MadeUp()


def test_a_made_up_engine_is_a_class_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(protocol.ENGINES, "made_up", f"{__name__}:ENGINE")
    cell = scripted(engine={"name": "made_up"})
    code, (result,) = sweep(tmp_path, cell, worker=in_this_process)
    assert code == 0
    assert result.cell.label == "tiny/bf16/sdpa/made_up/few/b1"
    assert [repeat.ttft_s for repeat in result.measurements[0].repeats] == [7.0, 7.0]


class Guessing(ScriptedSession):
    """All of its logits are equal."""

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        return [iter([np.zeros((len(row), self.vocabulary), dtype=np.float32)]) for row in ids]


class Showing(Scripted):
    """An engine that shows logits."""

    def open(self, cell: Cell, files: Files) -> ScriptedSession:
        return Guessing(cell)


SHOWING = Showing()


def test_an_engine_that_shows_logits_is_asked_multiple_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(protocol.ENGINES, "showing", f"{__name__}:SHOWING")
    model = fakes.group("model", "tiny", weights="pretrained", path="/nowhere")
    quality = fakes.group("quality", "none", choices="shipped")
    for engine, items in (("showing", 256), ("scripted", 0)):
        cell = scripted(engine={"name": engine}, model=model, quality=quality)
        code, (result,) = sweep(tmp_path, cell, worker=in_this_process)
        assert (code, len(result.choices), result.divergence) == (0, items, None)
        values = derive(result)
        assert ("choice_accuracy" in values) is bool(items)
        # Equal likelihoods: the first one is taken
        first = sum(choice.right == 0 for choice in result.choices)
        assert values.get("choice_accuracy", 0) == first / 256
        assert "choice_flips" not in values


def package_frames(frame: FrameType | None) -> list[str]:
    """The functions of this package on the stack, the innermost first."""
    names = []
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return [name for name in names if name != "<module>"]


def test_the_command_is_four_frames_from_a_measured_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side of the pipe has five at most: tests/engine/test_seams.py."""
    seen: list[list[str]] = []

    def look(frame: FrameType, event: str, argument: Any) -> None:
        starts = event == "call" and frame.f_code is run_isolated.__code__
        if starts and frame.f_locals["task"].place.endswith(":measure_cell"):
            seen.append(package_frames(frame))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))
    arguments = ["model=tiny", "engine=scripted", "tracking=none", "quality=none"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    sys.setprofile(look)
    try:
        assert main() == 0
    finally:
        sys.setprofile(None)
    assert seen[0] == ["run_isolated", "measure", "run_sweep", "main"]


def loaded_after_measuring(announce: Announce, place: str, cell: Cell) -> list[str]:
    """In a measured process: which of the heavy libraries it has when it is done."""
    measure_cell(announce, place, cell)
    return [name for name in HEAVY if name in sys.modules]


def print_what_is_loaded() -> None:
    """In a fresh interpreter: after a sweep with its cells in this process, and in another."""
    folder = Path(sys.argv[1])
    code, _ = sweep(folder, scripted(), worker=in_this_process)
    begin_server(())
    arguments = "bench.engine.scripted:ENGINE", scripted()
    child = run_isolated(
        Task(f"{__name__}:{loaded_after_measuring.__name__}", arguments),
        lambda *_: None,
        folder / "log.txt",
    )
    print("code", code, "torch" in sys.modules, "bitsandbytes" in sys.modules, child)


def test_neither_the_driver_nor_a_measured_process_loads_torch_for_an_engine_without_it(
    tmp_path: Path,
) -> None:
    code = "from tests.driver.test_seams import print_what_is_loaded as do; do()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["code 0 False False []"], done.stderr


IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *(each for each in ("torch", "transformers", "bitsandbytes", "mlflow") if each in sys.modules))
"""  # noqa: E501


def test_what_a_user_waits_for_loads_no_heavy_library(tmp_path: Path) -> None:
    """The command, composing, and what the driver imports before it starts a process."""
    names = ["bench.__main__", "bench.config.compose", "bench.driver.sweep"]
    names += ["bench.report.terminal", "bench.analysis.comparison"]
    names += ["bench.engine.transformers", "bench.engine.transformers.schemes"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *names],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == names
