"""Running a cell or a task on the GPU the way a sweep does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.cell import Cell
from bench.driver import plan
from bench.driver import process as isolate
from bench.driver.worker import measure
from bench.record.afterwards import Afterwards
from bench.record.result import Host
from tests import fakes

if TYPE_CHECKING:  # it imports torch, which a run without these tests need not wait for
    from bench.meter.cell import Findings

LIMITS_S = {"prepare": 120.0, "load": 300.0, "warm-up": 400.0, "measure": 300.0}
RANDOM_GPT2 = fakes.group("model", "gpt2", weights="random")
QUICK = fakes.group("workload", "quick")


def gpu_cell(host: Host, **changes: Any) -> Cell:
    """A resolved cell on this GPU."""
    cell = fakes.cell(**{"device": "cuda", "threads": "auto", "workload": QUICK} | changes)
    return plan.resolve(cell, host)


def few_repeats(cell: Cell, warmups: int = 2, repeats: int = 3) -> Cell:
    return replace(
        cell, measure=replace(cell.measure, warmups=warmups, repeats=repeats, telemetry_s=0.0)
    )


def run(
    task: Callable[..., Any], *arguments: Any, log: Path, limits_s: dict[str, float] = LIMITS_S
) -> Any:
    """What the task returns from a process of its own."""
    return isolate.run_isolated(task, arguments, limits_s, lambda phase, detail: None, log)


def measured(cell: Cell, log: Path) -> "Findings":
    findings: Findings = run(measure, cell, Afterwards(), log=log)
    return findings
