"""Recording results as they come: on disk first, then in MLflow; what MLflow does not take stays
pending.

The first refusal ends tracking for the sweep (each further attempt would wait for the same server),
never the sweep.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.analysis.comparison import Comparison
from bench.errors import TrackingError
from bench.record.result import Result
from bench.record.sweep import Sweep
from bench.store.database import tracking_uri
from bench.store.files import write_result
from bench.store.mlflow import Tracker


class Recorder:
    """The records of one sweep so far, and what became of them."""

    def __init__(self, folder: Path, sweep: Sweep, outputs: Path) -> None:
        self.sweep = sweep
        self.untracked: str | None = None  # why not everything is in MLflow
        self.tracker: Tracker | None = None
        self._folder = folder
        self._records: dict[str, Result] = {}
        self._unfinished: set[str] = set()
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

    def keep(self, record: Result, finished: bool) -> None:
        """Write a record that has come or grown; in MLflow it appears when it is finished.

        Raises:
            StoreError: when the disk is full or forbids it.
        """
        write_result(self._folder, record)
        self._records[record.cell_id] = record
        self._unfinished.add(record.cell_id)
        if finished:
            self._unfinished.discard(record.cell_id)
            self._pending.append(record.cell_id)
            self._flush()

    def close(
        self,
        status: str,
        ended_at: float,
        comparison: Comparison | None,
        files: Sequence[Path],
        summary: str,
    ) -> None:
        """End the sweep; what is unfinished stays so.

        Args:
            status: MLflow's, FINISHED or KILLED.
            comparison: of all results; None where a Ctrl-C left no time for one.
            files: the report's.
            summary: the table as text.
        """
        self._pending += [cell for cell in self.sweep.cells if cell in self._unfinished]
        self._flush()  # a Ctrl-C may have come between the disk and MLflow
        if self.tracker is not None and self.untracked is None:
            with self._untracked_on_error():
                self.tracker.close(status, ended_at, comparison, files, summary)

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
