"""``python -m bench push FOLDER``: send the results of a sweep to MLflow, after the fact. What is
there already stays."""

import os
from pathlib import Path

from bench.analysis.comparison import compare
from bench.errors import ConfigError
from bench.record.redact import HIDDEN, redacted
from bench.record.result import is_timed
from bench.report.page import try_report
from bench.report.terminal import as_text, say_damage
from bench.store.database import tracking_uri
from bench.store.files import read_place, read_predictions
from bench.store.foreign import read as read_foreign
from bench.store.mlflow import Tracker


def push(folder: Path) -> int:
    """Log a sweep's folder to where it was meant to go, or to MLFLOW_TRACKING_URI; returns the exit
    code.

    Raises:
        ConfigError: when where it was meant to go has a password.
        StoreError: when the folder is not a sweep's, or a result in it cannot be read.
        TrackingError: when MLflow does not take it.
    """
    stored = read_place(folder)
    sweep, results = stored.sweep, stored.results
    say_damage(stored)
    outputs = folder.resolve().parent.parent  # outputs/sweeps/ID
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri(sweep.tracking, outputs)
    if HIDDEN in uri:
        raise ConfigError(
            [f"{uri}: passwords are not kept; want the whole address in MLFLOW_TRACKING_URI"]
        )
    tracker = Tracker(uri, outputs, folder, sweep)
    tracker.open()
    for result in results:
        tracker.log_cell(result)
    ended_at = max((result.ended_at for result in results), default=sweep.started_at)
    complete = len(results) == len(sweep.cells) and all(map(is_timed, results))
    complete = complete and all(result.outcome.status != "killed" for result in results)
    imported = read_foreign(folder)
    predictions = read_predictions(folder, results)
    comparison = compare(results, sweep, predictions, foreign=imported)
    status, files = "FINISHED" if complete else "KILLED", try_report(folder, comparison)
    tracker.close(status, ended_at, comparison, files, as_text(comparison))
    tracker.link()
    tracker.log_foreign(imported)
    print(
        f"{len(results)} of {len(sweep.cells)} cells of {sweep.sweep_id} are in MLflow at"
        f" {redacted(uri)}"
    )
    return 0
