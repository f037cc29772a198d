"""How much processes of equal cells differ: with nothing else here, and beside a busy neighbour.

    python -m tests.peers.noise alone FOLDER
    python -m tests.peers.noise disturbed FOLDER      # one CPU is busy half of the time

Six cells, of which three and three are equal but for the seed, run in twelve passes (13 minutes on
two CPU cores). What each process read goes into ``tests/data/process_noise.json``, from which
``tests/analysis/test_verdict.py`` simulates sweeps.
"""

import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.analysis.readings import (
    has_drifted,
    least_times_s,
    steady_drift,
    typical_times_s,
)
from bench.paths import ROOT
from bench.record.result import Result
from bench.store.files import read_results

DATA = ROOT / "tests" / "data" / "process_noise.json"
REQUESTS, PASSES = 10, 12
ASKED = [
    *("-m", "quant=fp32,bf16", "seed=0,1,2", "measure=standard", f"measure.passes={PASSES}"),
    *(f"measure.repeats={REQUESTS}", "measure.warmups=3", "measure.window=1"),
    *("measure.target=null", "workload.prompt_tokens=16", "workload.new_tokens=8"),
    *("quality=none", "tracking=none", "resume=false"),
]
_STRETCH_S = 2.0  # mean length of a busy stretch, and of a quiet one


def neighbour() -> None:
    """Busy and idle in turn, for stretches of random length, until it is ended."""
    stretches = random.Random(0)
    while True:
        until = time.monotonic() + stretches.expovariate(1 / _STRETCH_S)
        while time.monotonic() < until:
            pass
        time.sleep(stretches.expovariate(1 / _STRETCH_S))


def record(folder: Path, is_disturbed: bool) -> None:
    """Run the sweep in ``folder``."""
    beside = multiprocessing.Process(target=neighbour, daemon=True)
    if is_disturbed:
        beside.start()
    command = [sys.executable, "-m", "bench", *ASKED]
    own = {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_LOCK": str(folder / "lock")}
    subprocess.run(command, cwd=folder, env=own, check=True)
    if is_disturbed:
        beside.terminate()


def read(folder: Path) -> dict[str, Any]:
    """What the processes of the only sweep in ``folder`` read; rows are cells, columns passes."""
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    results = sorted(read_results(sweep), key=lambda r: (r.cell.quant.name, r.cell.seed))
    measured = [m for result in results for m in result.measurements]
    steady = steady_drift(measured)
    drifted = sum(has_drifted(m, steady) for m in measured)
    return {
        "host": f"{results[0].host.cpu_name}, {results[0].host.cpus} CPUs, torch"
        f" {results[0].host.versions['torch']}, Python {platform.python_version()},"
        f" {datetime.now(UTC):%Y-%m-%d}",
        "cells": [f"{r.cell.quant.name} seed {r.cell.seed}" for r in results],
        "least": _rows(results, [least_times_s(r.measurements, REQUESTS) for r in results]),
        "median": _rows(results, [typical_times_s(r.measurements) for r in results]),
        "drifted": f"{drifted} of {len(measured)}, by more than {steady:.0%}",
    }


def _rows(
    results: Sequence[Result], times: Sequence[dict[str, list[float]]]
) -> dict[str, list[list[float]]]:
    """By metric. Units: seconds."""
    return {
        metric: [[round(seconds, 7) for seconds in of_cell[metric]] for of_cell in times]
        for metric in ("ttft_s", "tpot_s")
    }


if __name__ == "__main__":
    kind, where = sys.argv[1], Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    if not (where / "outputs").exists():
        record(where, kind == "disturbed")
    kept = json.loads(DATA.read_text(encoding="utf-8")) if DATA.is_file() else {}
    kept[kind] = read(where)
    DATA.write_text(json.dumps(kept) + "\n", encoding="utf-8")
