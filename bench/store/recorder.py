"""Recording results as they come: on disk first, then in MLflow; what MLflow does not take stays
pending.

The first refusal ends tracking for the sweep (each further attempt would wait for the same server),
never the sweep.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.errors import TrackingError
from bench.record.result import Result, is_complete
from bench.report.page import try_report
from bench.store import files as store
from bench.store.mlflow import Tracker, tracking_uri


class Recorder:
    """The records of one sweep so far, and what became of them."""

    def __init__(self, folder: Path, sweep: store.Sweep, outputs: Path) -> None:
        self.sweep = sweep
        self.untracked: str | None = None  # why not everything is in MLflow
        self.tracker: Tracker | None = None
        self._folder = folder
        self._records: dict[str, Result] = {}
        self._pending: list[str] = []
        if sweep.tracking.enabled:
            with self._untracked_on_error():
                tracker = Tracker(tracking_uri(sweep.tracking, outputs), outputs, folder, sweep)
                tracker.end_dead_runs()
                tracker.open()
                self.tracker = tracker

    @property
    def results(self) -> list[Result]:
        """Of all cells that have one, in the order of the grid."""
        return [self._records[cell] for cell in self.sweep.cells if cell in self._records]

    def keep(self, record: Result) -> None:
        """A record has come or grown; in MLflow it appears when it is complete."""
        store.write_result(self._folder, record)
        self._records[record.cell_id] = record
        if is_complete(record):
            self._pending.append(record.cell_id)
            self._flush()

    def close(self, status: str, ended_at: float) -> None:
        """End the sweep; what is incomplete stays so. ``status``: FINISHED or KILLED."""
        self._pending += [each.cell_id for each in self.results if not is_complete(each)]
        self._flush()  # a Ctrl-C may have come between the disk and MLflow
        report = try_report(self._folder) if status == "FINISHED" else []  # a Ctrl-C ends at once
        if self.tracker is not None and self.untracked is None:
            with self._untracked_on_error():
                self.tracker.close(status, self.results, ended_at, report)

    def link(self) -> None:
        """Say in MLflow what these runs reproduce, and how well."""
        if self.tracker is not None and self.untracked is None:
            with self._untracked_on_error():
                self.tracker.link()

    def _flush(self) -> None:
        if self.tracker is None or self.untracked is not None:
            return
        with self._untracked_on_error():
            while self._pending:
                self.tracker.log_cell(self._records[self._pending[0]])
                self._pending.pop(0)

    @contextlib.contextmanager
    def _untracked_on_error(self) -> Iterator[None]:
        try:
            yield
        except TrackingError as error:
            self.untracked = str(error)
