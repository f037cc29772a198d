"""Reading time around the token loop without disturbing it.

On a CPU every operation has finished when Python goes on, so a monotonic clock after each token is
the truth. On CUDA the host runs ahead of the device: an event is recorded after each token and read
only after the last, so that nothing waits in between. The first token is the exception: its ids are
on the host, which is a synchronisation, and the host's clock is read there. Events of a repeat are
made before it starts and never used again.
"""

import itertools
import time

import torch

from bench.errors import CellFailure
from bench.record.measurement import Repeat


class CpuClock:
    """A monotonic clock read after every token."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def start(self) -> None:
        self.stamps.append(time.perf_counter())

    def first_token(self) -> None:
        self.stamps.append(time.perf_counter())

    def token(self) -> None:
        self.stamps.append(time.perf_counter())

    def read(self, new_tokens: int) -> tuple[Repeat, float | None]:
        """The request's times; the second value is None, there being one clock only."""
        start, first, *_ = self.stamps
        steps = tuple(after - before for before, after in itertools.pairwise(self.stamps[1:]))
        return _checked(Repeat(first - start, steps, self.stamps[-1] - start), new_tokens), None


class CudaClock:
    """The host's clock for the first token, events on the current stream for the rest."""

    def __init__(self, new_tokens: int) -> None:
        self.stream = torch.cuda.current_stream()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(new_tokens)]
        for event in self.events:
            event.record(self.stream)  # only at its first record does torch make the CUDA event
        self.recorded = 0
        self.started = self.first = self.enqueued = 0.0

    def start(self) -> None:
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def first_token(self) -> None:
        self.first = time.perf_counter()
        self.token()

    def token(self) -> None:
        self.events[self.recorded].record(self.stream)
        self.recorded += 1
        # The first step finds the queue empty; later the host may wait for room in it
        if self.recorded == 2:
            self.enqueued = time.perf_counter()

    def read(self, new_tokens: int) -> tuple[Repeat, float | None]:
        """The request's times, and by how much host and device totals of the decode steps disagree
        (relative)."""
        torch.cuda.synchronize()
        ended = time.perf_counter()
        used = self.events[: self.recorded]
        # Elapsed_time is in ms
        steps = tuple(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(used))
        host_total, device_total = ended - self.first, sum(steps)
        ttft_s = self.first - self.started
        repeat = Repeat(ttft_s, steps, ttft_s + device_total, self.enqueued - self.first)
        return _checked(repeat, new_tokens), abs(host_total - device_total) / host_total


def _checked(repeat: Repeat, new_tokens: int) -> Repeat:
    """A benchmark must distrust itself: refuse what cannot be.

    Raises:
        CellFailure: ``failed`` when steps are missing or a time is not positive.
    """
    if len(repeat.decode_step_s) != new_tokens - 1:
        raise CellFailure(
            "failed", f"{len(repeat.decode_step_s)} decode steps were timed, want {new_tokens - 1}"
        )
    if repeat.ttft_s <= 0 or min(repeat.decode_step_s) <= 0:
        raise CellFailure("failed", "a time that is not positive was read")
    return repeat


def clock(device: str, new_tokens: int) -> CpuClock | CudaClock:
    """A fresh clock for one request."""
    return CudaClock(new_tokens) if device == "cuda" else CpuClock()
