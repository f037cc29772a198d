"""Running a cell or a task on the GPU the way a sweep does."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config.cell import Cell
from bench.driver import plan
from bench.driver.process import Task, run_isolated
from bench.engine.protocol import ENGINES
from bench.meter.cell import measure_cell
from bench.record.result import Findings, Host
from tests import fakes

PLACE = ENGINES["transformers"]
LIMITS_S = {"prepare": 600.0, "load": 300.0, "warm-up": 400.0, "measure": 300.0}
RANDOM_GPT2 = fakes.group("model", "gpt2", weights="random")
QUICK = fakes.group("workload", "quick")


def gpu_cell(host: Host, **changes: Any) -> Cell:
    """A resolved cell on this GPU."""
    cell = fakes.cell(**{"device": "cuda", "threads": "auto", "workload": QUICK} | changes)
    return plan.with_attention(plan.resolve(cell, host), None)


def few_repeats(cell: Cell, warmups: int = 2, repeats: int = 3) -> Cell:
    """So many requests, neither fewer nor more."""
    measure = replace(cell.measure, warmups=warmups, repeats=repeats, target=None, telemetry_s=0.0)
    return replace(cell, measure=measure)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    log: Path,
    limits_s: Mapping[str, float] = LIMITS_S,
) -> Any:
    """What a function of a module returns from a process of its own."""
    place = f"{function.__module__}:{function.__name__}"
    return run_isolated(Task(place, arguments, limits_s), lambda phase, detail: None, log)


def measured(cell: Cell, log: Path) -> Findings:
    """What a timed process of a cell hands back."""
    findings: Findings = run(measure_cell, PLACE, cell, log=log)
    assert findings.attestation.mismatches == ()
    return findings
