"""A sweep in a notebook: ``bench.results(SWEEP)`` and ``bench.readings(SWEEP)`` as DataFrames of
pandas, which comes with MLflow. Units: SI, as in the names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.paths import whole_path
from bench.record.measurement import Repeat
from bench.report.terminal import compared
from bench.store.files import sweep_folder


def results(sweep: str | None = None, output_dir: str = "outputs") -> pd.DataFrame:
    """A row for each cell: what tells it apart, how it ended, every metric that it has with its
    interval (``_low``, ``_high``), its speedups with their verdicts, what bounds it.

    Args:
        sweep: folder of a sweep, or its name in the ``sweeps`` of ``output_dir``; None: the newest.

    Raises:
        ConfigError: when there is none.
        StoreError: when it cannot be read.
    """
    comparison = _compared(sweep, output_dir)
    rows = [
        {
            "cell_id": result.cell_id,
            **{name: coordinate(result.cell, name) for name in comparison.columns},
            "status": result.outcome.status,
            "reason": result.outcome.reason,
            **comparison.values[result.cell_id],
            **_verdicts(comparison, result.cell_id),
        }
        for result in comparison.results
    ]
    return pd.DataFrame(rows).set_index("cell_id")


def readings(sweep: str | None = None, output_dir: str = "outputs") -> pd.DataFrame:
    """A row for each timed request, raw: its cell, process, place in it, TTFT and all decode steps
    (as a tuple). ``is_warmup`` tells those apart that count for nothing. Arguments, errors: as
    ``results``."""
    comparison = _compared(sweep, output_dir)
    rows = [
        {
            "cell_id": result.cell_id,
            **{name: coordinate(result.cell, name) for name in comparison.columns},
            "process": process,
            **row,
        }
        for result in comparison.results
        for process, measurement in enumerate(result.measurements)
        for is_warmup, requests in ((True, measurement.warmups), (False, measurement.repeats))
        for row in _requests(requests, is_warmup)
    ]
    return pd.DataFrame(rows)


def _requests(requests: tuple[Repeat, ...], is_warmup: bool) -> Iterator[dict[str, Any]]:
    for index, request in enumerate(requests):
        yield {
            "is_warmup": is_warmup,
            "request": index,
            "ttft_s": request.ttft_s,
            "e2e_s": request.e2e_s,
            "decode_step_s": request.decode_step_s,
        }


def _compared(sweep: str | None, output_dir: str) -> Comparison:
    return compared(sweep_folder(sweep, Path(whole_path(output_dir))))


def _verdicts(comparison: Comparison, cell_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric, changes in comparison.speedups.items():
        if change := changes.get(cell_id):
            name = f"{metric.removesuffix('_s')}_speedup"
            found |= {name: change.ratio, f"{name}_low": change.low, f"{name}_high": change.high}
            found[f"{name}_verdict"] = change.word
    if bound := comparison.bound_by.get(cell_id):
        found["bound_by"] = bound.name
    return found
