"""What ends a sweep from outside: Ctrl-C, and the signals that mean the same."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end a sweep as Ctrl-C does: with everything recorded."""

    def interrupt(signal_number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    with _handled(heard, interrupt):
        yield


@contextlib.contextmanager
def held_off() -> Iterator[None]:
    """A second Ctrl-C waits until what the first one asked for is recorded."""
    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
