"""When a request begins and each of its tokens is there: TTFT and decode step times start here."""

import itertools
import time
from collections.abc import Sequence
from typing import Protocol

from bench.record.measurement import Repeat


class Clock(Protocol):
    """Times one request. The engine makes it: it knows when a token is on the host."""

    def start(self) -> None:
        """The device is idle; the request begins."""

    def token(self, count: int = 1) -> None:
        """So many more tokens of each row are there; the first call is the first token's."""

    def read(self) -> tuple[Repeat, float | None]:
        """The times, and by how much host and device clocks disagree (None with one clock)."""


def step_tokens(counts: Sequence[int]) -> tuple[int, ...] | None:
    """Tokens of each decode step, of those that came at each call of ``token``; None: one each."""
    return tuple(counts[1:]) if any(count != 1 for count in counts) else None


class HostClock:
    """A monotonic clock read after every token: the truth where no device runs ahead of Python."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.counts: list[int] = []

    def start(self) -> None:
        self.stamps.append(time.perf_counter())

    def token(self, count: int = 1) -> None:
        self.stamps.append(time.perf_counter())
        self.counts.append(count)

    def read(self) -> tuple[Repeat, float | None]:
        start, first, *_ = self.stamps
        steps = tuple(after - before for before, after in itertools.pairwise(self.stamps[1:]))
        e2e_s, tokens = self.stamps[-1] - start, step_tokens(self.counts)
        return Repeat(first - start, steps, e2e_s, step_tokens=tokens), None


class Untimed:
    """A clock for requests that nobody times."""

    def start(self) -> None:
        pass

    def token(self, count: int = 1) -> None:
        pass

    def read(self) -> tuple[Repeat, float | None]:
        raise NotImplementedError("this request was not timed")
