"""One measuring process per machine: two sweeps at once would spoil both."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


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
            f"another sweep is running on this machine (lock file {file}); waiting for it to end,"
            " Ctrl-C to give up"
        )
        lock.acquire(poll_interval=5)  # the sweep that runs is being timed
    try:
        yield
    finally:
        lock.release()
