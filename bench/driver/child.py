"""The life of a process that the driver has started: run its task, send what comes out.

If the parent dies, however suddenly, a pipe that only it held open ends, and the child ends itself
with everything that it has started.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.errors import CellFailure, FailureStatus

_OUT_OF_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # no memory for its handle
    "cudnn_status_alloc_failed",
    "can't allocate memory",
    "not enough memory",
)
# Of sdpa, when it is pinned to a backend that cannot.
_NO_KERNEL = ("no available kernel", "no viable backend")


def serve(theirs: Connection, lifeline: Connection) -> None:
    """The whole life of a measured process: lead a session, run the task, send what comes out."""
    os.setsid()
    log, place, arguments = theirs.recv()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with contextlib.suppress(OSError):  # forbidden in some sandboxes; then the kernel chooses
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()

    def announce(phase: str, detail: str = "") -> None:
        theirs.send(("phase", phase, detail))
        theirs.recv()

    try:
        module, _, name = place.partition(":")
        message: tuple[Any, ...] = (
            "value",
            getattr(importlib.import_module(module), name)(announce, *arguments),
        )
    except CellFailure as failure:
        message = ("failure", failure.status, failure.reason, traceback.format_exc())
    except Exception as error:  # the one place where a crash becomes an outcome
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reason = f"{type(error).__name__}: {first}"
        message = ("failure", _status(error), reason, traceback.format_exc())
    theirs.send(message)


def _die_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent: this returns when the parent is gone
    os.killpg(0, signal.SIGKILL)


def _status(error: Exception) -> FailureStatus:
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(phrase in text for phrase in _OUT_OF_MEMORY):
        return "oom"
    return "not_engaged" if any(phrase in text for phrase in _NO_KERNEL) else "failed"


if __name__ == "__main__":  # an engine's own interpreter, started by driver.process
    serve(*(Connection(int(descriptor)) for descriptor in sys.argv[1:]))
