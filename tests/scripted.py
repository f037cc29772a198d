"""Sweeps on the scripted engine: the real driver, real processes, no torch, milliseconds."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config.cell import Cell, EngineChoice
from bench.config.settings import Baseline, Config, Settings, Tracking
from bench.driver.process import OnPhase, Task, run_isolated
from bench.driver.sweep import run_sweep
from bench.driver.worker import Worker
from bench.record.result import Result
from bench.store.files import read_results
from tests import fakes

UNTRACKED = Tracking("none", False, "tests")


def scripted(script: str = "", **changes: Any) -> Cell:
    """A cell of the scripted engine: two requests of 8 + 4 tokens in one process."""
    few = fakes.group("measure", "quick", warmups=1, repeats=2, target=None, telemetry_s=0)
    measure = few | changes.pop("measure", {})
    cell = fakes.cell(**{"model": "tiny", "engine": "scripted", "measure": measure} | changes)
    return replace(cell, engine=EngineChoice(cell.engine.name, {"script": script}))


def settings(outputs: Path, **changes: Any) -> Settings:
    """Of a sweep that writes below ``outputs`` and is not tracked."""
    values: dict[str, Any] = {
        "tracking": UNTRACKED,
        "baseline": Baseline(),
        "output_dir": str(outputs),
        "margin": 0.03,
        "price_per_hour": None,
        "resume": None,
        "profile": False,
        "dry_run": False,
    }
    return Settings(**values | changes)


def sweep(
    outputs: Path,
    *cells: Cell,
    worker: Worker = run_isolated,
    lock: Path | None = None,
    **changes: Any,
) -> tuple[int, list[Result]]:
    """The exit code and the results of one sweep of these cells."""
    os.environ["BENCH_LOCK"] = str(lock or outputs / "lock")
    before = set((outputs / "sweeps").glob("*"))
    configs = [Config(cell, settings(outputs, **changes)) for cell in cells]
    code = run_sweep(configs, (), worker, report=lambda folder, comparison: [])
    new = sorted(set((outputs / "sweeps").glob("*")) - before)
    return code, [result for folder in new for result in read_results(folder)]


def in_this_process(task: Task, on_phase: OnPhase, log: Path) -> Any:
    """A worker that starts no process: what a test registers is known to it."""
    module, _, name = task.place.partition(":")
    run: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)
    return run(lambda phase, detail="": on_phase(phase, detail), *task.arguments)
