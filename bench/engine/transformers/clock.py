"""Times of one request on CUDA.

On a CPU every operation has finished when Python goes on, so ``HostClock`` is the truth. On CUDA
the host runs ahead of the device: an event is recorded after each token and read only after the
last, so that nothing waits in between. The first token is the exception: its ids are on the host,
which is a synchronisation, and the host's clock is read there. Events of a request are made before
it starts and never used again.
"""

import itertools
import time

import torch

from bench.engine.clock import step_tokens
from bench.record.measurement import Repeat


class CudaClock:
    """The host's clock for the first token, events on the current stream for the rest."""

    def __init__(self, new_tokens: int) -> None:
        self.stream = torch.cuda.current_stream()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(new_tokens)]
        for event in self.events:
            event.record(self.stream)  # only at its first record does torch make the CUDA event
        self.recorded = 0
        self.counts: list[int] = []
        self.started = self.first = self.enqueued = 0.0

    def start(self) -> None:
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def token(self, count: int = 1) -> None:
        if self.recorded == 0:
            self.first = time.perf_counter()
        self.events[self.recorded].record(self.stream)
        self.recorded += 1
        self.counts.append(count)
        if self.recorded == 2:  # the first step finds the queue empty; later the host may wait
            self.enqueued = time.perf_counter()

    def read(self) -> tuple[Repeat, float | None]:
        torch.cuda.synchronize()
        ended = time.perf_counter()
        used = self.events[: self.recorded]
        # elapsed_time is in ms
        steps = tuple(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(used))
        host_total, device_total = ended - self.first, sum(steps)
        ttft_s = self.first - self.started
        enqueue_s = self.enqueued - self.first
        repeat = Repeat(ttft_s, steps, ttft_s + device_total, enqueue_s, step_tokens(self.counts))
        return repeat, abs(host_total - device_total) / host_total
