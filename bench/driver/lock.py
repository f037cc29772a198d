"""One sweep per machine, and what ends it from outside: two at once would spoil both."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def machine_lock(say: Callable[[str], None]) -> Iterator[None]:
    """Held while the block runs; waits for another sweep to end, and says that it does.

    BENCH_LOCK names another lock file, for machines that are partitioned by hand.
    """
    file = Path(os.environ.get("BENCH_LOCK") or Path(tempfile.gettempdir()) / "llm-bench.lock")
    lock = FileLock(file, mode=0o666)  # other users' sweeps disturb as well
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(
            f"another sweep is running on this machine (lock file {file});"
            " waiting for it to end, Ctrl-C to give up"
        )
        lock.acquire(poll_interval=5)  # the sweep that runs is being timed
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end a sweep as Ctrl-C does; the first signal counts.

    Those that follow are ignored until the sweep is over: what the first one asked for, ending the
    measured process and recording what is there, takes a moment, and broken off in the middle it
    would leave a process or an open run.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    # nohup ignores SIGHUP
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def interrupt(signal_number: int, frame: Any) -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def ignore_signals() -> None:
    """Until ``signals_as_interrupts`` is left: what is being recorded is recorded to its end."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """A signal that comes meanwhile counts when the block has ended.

    By handlers that note it, not by blocking: a signal blocked in this thread would reach another
    one (numpy's), and Python would run its handler here all the same.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda number, frame: noted.append(number))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
        for first in noted[:1]:
            signal.raise_signal(first)
