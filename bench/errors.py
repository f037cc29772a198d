"""Every exception that this package raises on purpose.

* ``BenchError``: the root.
* ``ConfigError``: the YAML or the command line is wrong; exit code 2 before anything heavy is
  imported.
* ``CellFailure``: this cell, not the program; ``status`` says how it is recorded.
* ``StoreError``: a saved result cannot be read, or is of another schema.
* ``TrackingError``: MLflow could not be reached or refused; the results on disk are untouched.

A message reads *where = value: what was expected; what to do*.
"""

from typing import Any, Literal

FailureStatus = Literal["oom", "not_engaged", "timeout", "failed", "skipped"]


class BenchError(Exception):
    """The root, so that the command line can tell a known error from a bug."""


class ConfigError(BenchError):
    """Every mistake found in a configuration, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CellFailure(BenchError):
    """A process that gives no value, with the status under which its cell is recorded."""

    def __init__(self, status: FailureStatus, reason: str) -> None:
        super().__init__(reason)
        self.status: FailureStatus = status
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would call it with the message alone: it travels between machines."""
        return (
            CellFailure,
            (self.status, self.reason),
            {"__notes__": getattr(self, "__notes__", [])},
        )


class StoreError(BenchError):
    """A result file that cannot be read."""


class TrackingError(BenchError):
    """MLflow did not take what it was given."""
