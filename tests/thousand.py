"""What a grid of 1,000 cells costs the driver itself: ``python -m tests.thousand [FOLDER]``.

The scripted engine runs within this process, so that what it takes can be told from what the driver
takes: composing, planning, records on disk, MLflow, the report. Prints the figures; asserts that
every cell is in MLflow once.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from bench.config.compose import collect, parsed
from bench.driver.process import OnPhase, Task
from bench.driver.sweep import run_sweep
from bench.report.page import write_report
from bench.report.terminal import compared
from tests.scripted import in_this_process

_GRID = (
    "-m",
    "engine=scripted",
    "model=tiny",
    "quality=none",
    "measure.repeats=2",
    "measure.warmups=1",
    "quant=fp32,nf4",
    "batch=range(1,51)",
    "workload.new_tokens=range(4,14)",
)


def main(folder: Path) -> None:
    """Compose, run without and with tracking, report."""
    cells = 0
    for tracking in ("none", "local"):
        took_s: dict[str, float] = {}
        overrides = [*_GRID, f"tracking={tracking}", f"output_dir={folder / tracking}"]
        configs = _timed(took_s, "compose", lambda: parsed(collect(overrides)))  # noqa: B023
        cells = len(configs)
        measuring_s = 0.0

        def worker(task: Task, on_phase: OnPhase, log: Path) -> Any:
            nonlocal measuring_s
            began = time.perf_counter()
            log.touch()
            try:
                return in_this_process(task, on_phase, log)
            finally:
                measuring_s += time.perf_counter() - began

        code = _timed(
            took_s,
            "sweep",
            lambda: run_sweep(configs, (), worker, lambda *_: []),  # noqa: B023
        )
        own_s = took_s["sweep"] - measuring_s
        print(
            f"tracking={tracking}: exit code {code}, {cells} cells composed in"
            f" {took_s['compose']:.1f} s, the driver's own {own_s / cells * 1e3:.1f} ms a cell"
        )
    (sweep,) = (folder / "local" / "sweeps").iterdir()
    began = time.perf_counter()
    write_report(sweep, compared(sweep))
    print(f"report in {time.perf_counter() - began:.1f} s")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak resident set {peak_bytes / 2**20:.0f} MiB")
    assert tracked(folder / "local") == cells


def tracked(outputs: Path) -> int:
    """How many cells MLflow has; each is there once."""
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "llm-bench"]
    runs = client.search_runs(
        [experiment.experiment_id], "tags.`bench.kind` = 'cell'", max_results=5000
    )
    names = [run.data.tags["bench.cell_id"] for run in runs]
    assert len(set(names)) == len(names)
    return len(names)


def _timed(took_s: dict[str, float], name: str, run: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    value = run()
    took_s[name] = time.perf_counter() - began
    return value


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
