"""One sweep per machine, and what ends it from outside: two at once would spoil both."""

import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.config.cell import digest
from bench.errors import ConfigError

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def machine_lock(say: Callable[[str], None]) -> Iterator[None]:
    """Held while the block runs; waits for another sweep to end, and says that it does.

    BENCH_LOCK names another lock file, for machines that are partitioned by hand. Other users'
    sweeps disturb as well: the file is read only, which is enough to lock it, and whoever comes
    first makes it.

    Raises:
        ConfigError: when there can be no such file.
    """
    file = os.environ.get("BENCH_LOCK") or str(Path(tempfile.gettempdir()) / "llm-bench.lock")
    with _held(file, "is running on this machine", say):
        yield


@contextlib.contextmanager
def outputs_lock(outputs: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Likewise for a sweep on a cluster, which leaves this machine to others. Of two sweeps in one
    folder the second would end the runs of the first in MLflow, as those of a killed driver.

    The file is on this machine: shared disks may have no locks.

    Raises:
        ConfigError: when there can be no such file.
    """
    file = Path(tempfile.gettempdir()) / f"llm-bench-{digest(str(outputs))}.lock"
    with _held(str(file), f"runs on a cluster and writes to {outputs}", say):
        yield


@contextlib.contextmanager
def _held(file: str, what: str, say: Callable[[str], None]) -> Iterator[None]:
    try:
        descriptor = _opened(file)
    except OSError as error:
        raise ConfigError(
            [f"the lock file {file}: {error.strerror}; BENCH_LOCK or TMPDIR moves it"]
        ) from error
    try:
        if not _takes(descriptor):
            say(
                f"another sweep {what} (lock file {file}); waiting for it to end, Ctrl-C to give up"
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # asleep: the sweep that runs is being timed
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def _opened(file: str) -> int:
    """Made if need be: not in one step, since in a shared folder Linux refuses to open another
    user's file to whoever would have made it (fs.protected_regular)."""
    try:
        return os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(file, os.O_RDONLY | os.O_CREAT, 0o644)


def _takes(descriptor: int) -> bool:
    """Whether the lock is ours now; tried without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
