"""The requests of one process: warm-ups until it is warm, then timed ones until they are enough.

What decides is in ``bench.analysis.stopping``. Progress is announced between requests, never
between two clock readings, and only every few seconds, because the request after a pause finds cold
caches and sleeping threads.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch

from bench.analysis.stopping import is_warm, why_stop
from bench.config.cell import Cell
from bench.driver.process import Announce
from bench.engine.transformers.load import Subject
from bench.meter.requests import time_requests
from bench.record.measurement import Repeat, Stopped

_BETWEEN_ANNOUNCEMENTS_S = 2.0


def warm_up(
    announce: Announce, cell: Cell, subject: Subject, ids: torch.Tensor
) -> tuple[tuple[Repeat, ...], bool]:
    """Requests until two windows of them agree, and whether they did."""
    show = _now_and_then(announce, "warm-up", cell.measure.warmups)

    def more(done: Sequence[Repeat]) -> bool:
        if is_warm(done, cell.measure) or len(done) >= cell.measure.warmups:
            return False
        show(len(done))
        return True

    requests, _ = time_requests(cell, subject, ids, more)
    return requests, is_warm(requests, cell.measure)


def measure(
    announce: Announce, cell: Cell, subject: Subject, ids: torch.Tensor
) -> tuple[tuple[Repeat, ...], Stopped, float | None]:
    """Requests until they are enough, why they are, and by how much the clocks disagree."""
    show = _now_and_then(announce, "measure", cell.measure.repeats)
    began = time.monotonic()
    reason: Stopped = "repeats"

    def more(done: Sequence[Repeat]) -> bool:
        nonlocal reason
        why = why_stop(done, cell.measure, time.monotonic() - began)
        if why is not None:
            reason = why
            return False
        show(len(done))
        return True

    requests, mismatch = time_requests(cell, subject, ids, more)
    return requests, reason, mismatch


def _now_and_then(announce: Announce, phase: str, count: int) -> Callable[[int], None]:
    """Announces the first request of a phase, and of the others those that begin long enough after
    the last one."""
    last_s = -math.inf

    def before(index: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > _BETWEEN_ANNOUNCEMENTS_S:
            announce(phase, f"{index + 1}/{count}")
            last_s = time.monotonic()

    return before
