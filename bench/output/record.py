"""Recording results as they come: on disk first, then in MLflow; what MLflow does not take stays pending.

The first refusal ends tracking for the sweep (each further attempt would wait for the same server), never the sweep.
"""

from pathlib import Path

from bench.errors import TrackingError
from bench.output import store, table
from bench.output.tracking import Tracker, tracking_uri
from bench.result import Result


class Recorder:
    """The results of one sweep so far, and what became of them."""

    def __init__(self, folder: Path, sweep: store.Sweep, outputs: Path) -> None:
        self.results: list[Result] = []
        self.untracked: str | None = None  # why not everything is in MLflow
        self.tracker: Tracker | None = None
        self._folder, self._sweep = folder, sweep
        self._pending: list[Result] = []
        if sweep.tracking.enabled:
            try:
                self.tracker = Tracker(tracking_uri(sweep.tracking, outputs), outputs, folder, sweep)
            except TrackingError as error:
                self.untracked = str(error)

    def record(self, result: Result) -> None:
        """Keep a result."""
        store.write_result(self._folder, result)
        self.results.append(result)
        self._pending.append(result)
        self._flush()

    def close(self, status: str, ended_at: float) -> None:
        """End the sweep. ``status``: FINISHED or KILLED."""
        self._flush()  # a Ctrl-C may have come between the disk and MLflow
        if self.tracker is None or self.untracked is not None:
            return
        try:
            self.tracker.close(status, table.as_text(self.results, self._sweep.baseline), ended_at)
        except TrackingError as error:
            self.untracked = str(error)

    def _flush(self) -> None:
        if self.tracker is None or self.untracked is not None:
            return
        try:
            while self._pending:
                self.tracker.log_cell(self._pending[0])
                self._pending.pop(0)
        except TrackingError as error:
            self.untracked = str(error)
