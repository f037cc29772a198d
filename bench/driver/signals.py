"""What ends a sweep from outside: Ctrl-C, and the signals that mean the same."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end a sweep as Ctrl-C does; the first signal counts.

    Those that follow are ignored until the sweep is over: what the first one asked for, ending the
    measured process and recording what is there, takes a moment, and broken off in the middle it
    would leave a process or an open run.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    # Nohup ignores SIGHUP
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


def ignore() -> None:
    """From now on, until ``as_interrupts`` is left: what is being recorded is recorded to its
    end."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A signal that comes meanwhile counts when the block has ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
