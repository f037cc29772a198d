"""One line on the terminal that says where the sweep is. Nothing in pipes and in CI.

It is redrawn when the measured process announces a phase and waits, and once a second in phases in
which nothing is timed. There is no thread that redraws it: a benchmark's own progress bar must not
compete with what it times.
"""

import os
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text


class ProgressLine:
    """Cell 4/9, its name, the phase, how long so far, and an estimate of what is left."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._quiet = not console.is_terminal or "CI" in os.environ
        self._cells: int | None = None
        self._done = 0
        self._label = ""
        self._started = time.monotonic()
        self._first_cell = self._started

    def __enter__(self) -> "ProgressLine":
        if not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def plan(self, cells: int) -> None:
        """How many cells will run, once it is known; where it never is, none are left to tell."""
        self._cells, self._first_cell = cells, time.monotonic()

    def cell(self, label: str) -> None:
        """The next cell begins."""
        self._label = label

    def finished(self) -> None:
        """The cell has ended, one way or another."""
        self._done += 1

    def show(self, phase: str, detail: str = "") -> None:
        """Redraw the line."""
        if self._quiet:
            return
        of_all = "" if self._cells is None else f"/{self._cells}"
        parts = [f"cell {self._done + 1}{of_all}", self._label] if self._label else []
        parts += [
            " ".join(filter(None, (phase, detail))),
            f"{_clock(time.monotonic() - self._started)} elapsed",
        ]
        if self._done and self._cells is not None:
            a_cell = (time.monotonic() - self._first_cell) / self._done
            parts.append(f"about {_clock(a_cell * (self._cells - self._done))} left")
        self._live.update(Text(" · ".join(parts), no_wrap=True, overflow="ellipsis"), refresh=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
