"""Every exception that this package raises on purpose.

BenchError ├── ConfigError    the YAML or the command line is wrong; exit code 2 before anything
heavy is imported ├── CellFailure    this cell, not the program; ``status`` says how it is recorded
├── StoreError     a saved result cannot be read, or is of another schema └── TrackingError  MLflow
could not be reached or refused; the results on disk are untouched

A message reads *where = value: what was expected; what to do*.
"""

from typing import Any, Literal

FailureStatus = Literal["oom", "not_engaged", "timeout", "failed"]


class BenchError(Exception):
    """The root, so that the command line can tell a known error from a bug."""


class ConfigError(BenchError):
    """Every mistake found in a configuration, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CellFailure(BenchError):
    """A cell that gives no number, with the status under which it is recorded.

    ``kept`` is what was found out before: the attestation of a cell that is not what its name says,
    or everything but the samples of one that failed while it was answering.
    """

    def __init__(self, status: FailureStatus, reason: str, kept: Any = None) -> None:
        super().__init__(reason)
        self.status: FailureStatus = status
        self.reason = reason
        self.kept = kept


class Interrupted(KeyboardInterrupt):
    """The user ended the sweep while a measured process ran; ``kept`` is what that process had
    handed over."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept


class StoreError(BenchError):
    """A result file that cannot be read."""


class TrackingError(BenchError):
    """MLflow did not take what it was given."""
