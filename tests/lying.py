"""Engines whose requests really take time, and which tell the truth about it or lie: what a
self-test has to find out. Torch is not imported; places like ``tests.lying:FAST`` name them."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench.config.cell import Cell
from bench.engine.clock import Clock, HostClock
from bench.engine.kernels import PeakKernels, numpy_peaks
from bench.engine.prompts import Ids
from bench.engine.protocol import Files
from bench.engine.scripted import Scripted, ScriptedClock, ScriptedSession, read_script
from bench.record.measurement import Repeat

_STEP_S = 0.001


class FastClock(HostClock):
    """Runs 5 % fast."""

    def read(self) -> tuple[Repeat, float | None]:
        self.stamps = [self.stamps[0] + (stamp - self.stamps[0]) * 1.05 for stamp in self.stamps]
        return super().read()


class Busy(ScriptedSession):
    """Takes a millisecond a token."""

    def __init__(self, cell: Cell, clock: Callable[[], Clock]) -> None:
        super().__init__(cell)
        self._clock = clock

    def clock(self, new_tokens: int) -> Clock:
        return self._clock()

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        clock.start()
        for _ in range(new_tokens):
            until_s = time.perf_counter() + _STEP_S
            while time.perf_counter() < until_s:
                pass
            clock.token()
        return super().request(ids, new_tokens, ScriptedClock(self.script))


class Working(Scripted):
    """An engine of such sessions, with numpy's kernels."""

    def __init__(self, clock: Callable[[], Clock] = HostClock, **kernels: Any) -> None:
        self._clock, self._kernels = clock, kernels

    def open(self, cell: Cell, files: Files) -> ScriptedSession:
        return Busy(cell, self._clock)

    def peak_kernels(self, device: str, threads: int) -> PeakKernels | None:
        return replace(numpy_peaks(), **self._kernels)


HONEST = Working()
FAST = Working(FastClock)
DEAF = Working(lambda: ScriptedClock(read_script("ttft 0.002 steps 0.002")))
STINGY = Working(block=lambda size: None)  # allocates nothing
HALVING = Working(block=lambda size: numpy_peaks().block(min(size, 2**28) // 2))
