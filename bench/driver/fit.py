"""``batch=max``: the largest batch that fits, found by trying.

The prediction (``bench.analysis.footprint``) is where the search begins; then real processes
decide, each with one whole request, because kernels and allocators differ from any arithmetic. What
does not fit, be it for memory, for time or for want of different prompts, is an answer like any
other. The search ends when the limit is known to within a twentieth.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.analysis import footprint
from bench.config.cell import Cell
from bench.driver import process as isolate
from bench.errors import CellFailure
from bench.record.result import Host


def largest_batch(cell: Cell, host: Host, show: Callable[[str, str], None], log: Path) -> int:
    """The largest batch of this resolved cell that ran here; 1 when not even that did, so that its
    outcome is recorded."""
    return search(
        predicted_batch(cell, host), lambda batch: _runs(replace(cell, batch=batch), show, log)
    )


def predicted_batch(cell: Cell, host: Host) -> int:
    """The largest batch that should fit, by the architecture alone; 1 for one that is not known."""
    available = host.device_memory_bytes if cell.device == "cuda" else host.memory_bytes
    return max(1, footprint.max_batch(cell, available or 0) or 1)


def search(guess: int, fits: Callable[[int], bool]) -> int:
    """The largest number that ``fits``, to within a twentieth below it; 1 when none does."""
    most, too_many, attempt = 0, None, guess
    while True:
        if fits(attempt):
            most = attempt
        else:
            too_many = attempt
        if too_many is None:
            attempt = most + max(1, most // 4)
        elif too_many <= 1 or too_many - most <= max(1, most // 20):
            return max(1, most)
        else:
            attempt = (most + too_many) // 2 if most else too_many // 2


def one_request(announce: isolate.Announce, cell: Cell) -> None:
    """The task of a process that tries."""
    from bench.meter.cell import run_one_request  # imports torch: not in this process

    run_one_request(announce, cell)


def _runs(cell: Cell, show: Callable[[str, str], None], log: Path) -> bool:
    def on_phase(phase: str, detail: Any) -> None:
        show(f"does batch {cell.batch} fit? {phase}", "")

    try:
        isolate.run_isolated(one_request, (cell,), cell.measure.limits_s, on_phase, log)
    except CellFailure:
        return False
    return True
