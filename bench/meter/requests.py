"""The requests of one process: warm-ups until it is warm, then timed ones until they are enough.

Warm-ups run the measured shapes in full: compilation, lazy loading, allocator growth and CPU
frequency settle there. The very first of them is the first request of the process and is kept as
such. Between requests nothing is collected or emptied. What ends each series is in
``bench.analysis.stopping``. Progress is announced between requests, never between two clock
readings, and only every few seconds: the request after a pause finds cold caches and sleeping
threads.
"""

import math
import time
from collections.abc import Callable, Sequence

from bench.analysis.stopping import is_warm, why_stop
from bench.config.cell import Cell, Measure
from bench.engine.prompts import Ids
from bench.engine.protocol import Announce, Session
from bench.errors import CellFailure
from bench.record.measurement import Repeat, Stopped

_BETWEEN_ANNOUNCEMENTS_S = 2.0

More = Callable[[Sequence[Repeat]], bool]


def time_requests(
    session: Session, ids: Ids, new_tokens: int, more: More
) -> tuple[tuple[Repeat, ...], float | None]:
    """Timed requests as long as ``more`` says so, and the largest disagreement of two clocks.

    Shapes: ids (batch, prompt_tokens).
    Raises:
        CellFailure: ``failed`` when a reading is impossible.
    """
    repeats: list[Repeat] = []
    mismatches: list[float] = []
    while more(repeats):
        clock = session.clock(new_tokens)
        tokens = session.request(ids, new_tokens, clock)
        repeat, mismatch = clock.read()
        _check(repeat, tokens, (len(ids), new_tokens))
        repeats.append(repeat)
        if mismatch is not None:
            mismatches.append(mismatch)
    return tuple(repeats), max(mismatches, default=None)


def _check(repeat: Repeat, tokens: Ids, shape: tuple[int, int]) -> None:
    """A benchmark must distrust itself: refuse what cannot be."""
    if tokens.shape != shape:
        raise CellFailure("failed", f"{tokens.shape} tokens came out, want {shape}")
    if repeat.decoded_tokens != shape[1] - 1:
        raise CellFailure(
            "failed",
            f"{repeat.decoded_tokens} tokens after the first were timed, want {shape[1] - 1}",
        )
    if repeat.ttft_s <= 0 or min(repeat.decode_step_s) <= 0:
        raise CellFailure("failed", "a time that is not positive was read")


def until_warm(announce: Announce, measure: Measure) -> More:
    """Go on until two windows of requests agree, or the profile allows no more."""
    show = _now_and_then(announce, "warm-up", measure.warmups)

    def more(done: Sequence[Repeat]) -> bool:
        if is_warm(done, measure) or len(done) >= measure.warmups:
            return False
        show(len(done))
        return True

    return more


def until_known(announce: Announce, measure: Measure, reasons: list[Stopped]) -> More:
    """Go on until the times are known well enough; ``reasons`` gets why it was enough."""
    show = _now_and_then(announce, "measure", measure.repeats)
    began = time.monotonic()

    def more(done: Sequence[Repeat]) -> bool:
        why = why_stop(done, measure, time.monotonic() - began)
        if why is not None:
            reasons.append(why)
            return False
        show(len(done))
        return True

    return more


def _now_and_then(announce: Announce, phase: str, count: int) -> Callable[[int], None]:
    """Announces the first request of a phase, then those that begin long enough after the last."""
    last_s = -math.inf

    def before(index: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > _BETWEEN_ANNOUNCEMENTS_S:
            announce(phase, f"{index + 1}/{count}")
            last_s = time.monotonic()

    return before


def one_request(cell: Cell, session: Session, ids: Ids) -> None:
    """One request that is not measured: does it fit?"""
    time_requests(session, ids, cell.workload.new_tokens, lambda done: not done)
