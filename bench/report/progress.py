"""One line on the terminal that says where the sweep is. Nothing in pipes and in CI.

It is redrawn when the measured process announces a phase and waits, and once a second in phases in
which nothing is timed. There is no thread that redraws it: a benchmark's own progress bar must not
compete with what it times.
"""

import itertools
import os
import time
from statistics import median

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
        self._label = ""
        self._started = time.monotonic()
        self._ends = [self._started]  # of the plan, then of each cell

    def __enter__(self) -> "ProgressLine":
        if not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def plan(self, cells: int) -> None:
        """How many cells will run, once it is known; where it never is, none are left to tell."""
        self._cells, self._ends = cells, [time.monotonic()]

    def cell(self, label: str) -> None:
        """The next cell begins."""
        self._label = label

    def finished(self) -> None:
        """The cell has ended, one way or another."""
        self._ends.append(time.monotonic())

    def show(self, phase: str, detail: str = "") -> None:
        """Redraw the line."""
        if self._quiet:
            return
        done = len(self._ends) - 1
        of_all = "" if self._cells is None else f"/{self._cells}"
        parts = [f"cell {done + 1}{of_all}", self._label] if self._label else []
        parts += [
            " ".join(filter(None, (phase, detail))),
            f"{_clock(time.monotonic() - self._started)} elapsed",
        ]
        if done and self._cells is not None:
            # The median: the first may wait for a quality reference, or for kernels to be built
            a_cell = median(end - begin for begin, end in itertools.pairwise(self._ends))
            parts.append(f"about {_clock(a_cell * (self._cells - done))} left")
        self._live.update(Text(" · ".join(parts), no_wrap=True, overflow="ellipsis"), refresh=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
