"""Running a task in a fresh process, so that whatever happens to it is an outcome and not the end
of the sweep.

A fork server with torch and transformers preloaded makes a process in 0.02 s. The child leads a
session of its own, so that it can be ended with everything it started; it writes its output to a
file; the kernel's out-of-memory killer is told to prefer it. It announces each phase and waits for
the parent's answer before it goes on: the parent shows its progress in that moment and is asleep in
a blocking read, without a timer thread, while anything is timed. If the parent dies, however
suddenly, a pipe that only it held open ends, and the child ends itself.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from bench.errors import BenchError, CellFailure, FailureStatus, Interrupted


class Announce(Protocol):
    """Tell the parent which phase begins, and hand over what must survive if the rest of the task
    does not."""

    def __call__(self, phase: str, detail: str = "", kept: Any = None) -> None: ...


OnPhase = Callable[[str, str], None]

# Until the first phase is announced: on a cold disk the imports alone take a while
_START_LIMIT_S = 300.0
_EXIT_LIMIT_S = 10.0
# In these the parent does not even wake up to tick
TIMED_PHASES = frozenset({"load", "warm-up", "measure"})

_OUT_OF_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "can't allocate memory",
    "not enough memory",
)
# Of sdpa, when it is pinned to a backend that cannot
_NO_KERNEL = ("no available kernel", "no viable backend")

_VMSTAT = Path("/proc/vmstat")

_context: Any = multiprocessing.get_context("forkserver")


def begin_server() -> None:
    """Start the fork server; its imports take seconds, so do something else before
    ``check_server``."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    _context.set_forkserver_preload(["bench.driver.preload"])
    forkserver.ensure_running()


def check_server(on_phase: OnPhase) -> str | None:
    """Wait for the fork server; returns a sentence for the user when it cannot be used and every
    process starts anew.

    Raises:
        BenchError: when its imports failed.
    """
    global _context
    preloaded, unusable = run_isolated(_server_state, (), {}, on_phase, Path(os.devnull))
    if not preloaded:  # multiprocessing swallows an import error of the server
        raise BenchError(
            "bench.driver.preload could not be imported; `python -c 'import bench.driver.preload'`"
            " says why"
        )
    if not unusable:
        return None
    _context = multiprocessing.get_context("spawn")
    return (
        "a library initialized CUDA at import: each cell starts from nothing, some 10 s more a cell"
    )


def _server_state(announce: Announce) -> tuple[bool, bool]:
    module = sys.modules.get("bench.driver.preload")
    if module is None:
        return False, False
    # torch's flag is not enough: counting devices without NVML already makes a fork unusable, and
    # only a fork can tell.
    return True, module.CUDA_INITIALIZED or sys.modules["torch"].cuda._is_in_bad_fork()


def run_isolated(
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
    limits_s: Mapping[Any, float],
    on_phase: OnPhase,
    log: Path,
) -> Any:
    """What ``task(announce, *arguments)`` returns when run in a fresh process.

    Args:
        limits_s: longest time for each phase that the task announces.
        on_phase: called with phase and detail at each announcement, and once a second in phases
            that are not timed.
        log: gets the child's output.
    Raises:
        CellFailure: the task's own; ``timeout``; ``oom``; ``failed`` with the signal or the
            traceback.
    """
    ours, theirs = multiprocessing.Pipe()
    lifeline, held_open = multiprocessing.Pipe(duplex=False)
    process = _context.Process(target=_child, args=(theirs, lifeline, str(log), task, arguments))
    kills_before = _oom_kills()
    process.start()
    theirs.close()
    lifeline.close()
    try:
        return _follow(process, ours, limits_s, on_phase, kills_before)
    finally:
        _end(process)
        ours.close()
        held_open.close()


def _follow(
    process: Any,
    ours: Connection,
    limits_s: Mapping[Any, float],
    on_phase: OnPhase,
    kills_before: int,
) -> Any:
    kept: list[Any] = [None]
    try:
        return _until_its_end(process, ours, limits_s, on_phase, kills_before, kept)
    except KeyboardInterrupt:
        raise Interrupted(kept[0]) from None


def _until_its_end(
    process: Any,
    ours: Connection,
    limits_s: Mapping[Any, float],
    on_phase: OnPhase,
    kills_before: int,
    last: list[Any],
) -> Any:
    """``last`` holds, as its only item, what the task handed over last."""
    phase, detail, limit_s, kept = "start", "", limits_s.get("start", _START_LIMIT_S), None
    deadline = time.monotonic() + limit_s
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            setting = (
                f" (measure.limits_s.{phase})" if phase in limits_s and phase != "start" else ""
            )
            raise CellFailure(
                "timeout", f"phase {phase} took longer than its {limit_s:g} s{setting}", kept
            )
        wait([ours, process.sentinel], left if phase in TIMED_PHASES else min(left, 1.0))
        if ours.poll():
            try:
                kind, *message = ours.recv()
            except EOFError:
                raise _death(process, phase, kills_before, kept) from None
            if kind != "phase":
                process.join(_EXIT_LIMIT_S)  # it ends by itself, and cleans up what it registered
            if kind == "value":
                return message[0]
            if kind == "failure":
                status, reason, trace, own = message
                failure = CellFailure(status, reason, kept if own is None else own)
                failure.add_note(trace)
                raise failure
            if message[0] != phase:
                phase, limit_s = message[0], limits_s.get(message[0], _START_LIMIT_S)
                deadline = time.monotonic() + limit_s
            detail, kept = message[1], kept if message[2] is None else message[2]
            last[0] = kept
            on_phase(phase, detail)
            ours.send("go on")
        elif not process.is_alive():
            raise _death(process, phase, kills_before, kept)
        elif phase not in TIMED_PHASES:
            on_phase(phase, detail)


def _death(process: Any, phase: str, kills_before: int, kept: Any) -> CellFailure:
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL and _oom_kills() > kills_before:
            return CellFailure(
                "oom", f"the kernel's out-of-memory killer ended the process in phase {phase}", kept
            )
        return CellFailure("failed", f"the process was ended by {name} in phase {phase}", kept)
    return CellFailure("failed", f"the process ended with exit code {code} in phase {phase}", kept)


def _end(process: Any) -> None:
    """The process and all that it started, gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # It may not have become the leader of its group yet
    with contextlib.suppress(ProcessLookupError):
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join()


def _oom_kills() -> int:
    """How many processes the out-of-memory killer has ended on this machine, in whichever
    cgroup."""
    for line in _VMSTAT.read_text().splitlines() if _VMSTAT.is_file() else []:
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _child(
    theirs: Connection,
    lifeline: Connection,
    log: str,
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Forbidden in some sandboxes; then the kernel chooses its victim itself
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()

    def announce(phase: str, detail: str = "", kept: Any = None) -> None:
        theirs.send(("phase", phase, detail, kept))
        theirs.recv()

    try:
        # That one asks whether it is there; a spawned process starts without it
        if task is not _server_state:
            importlib.import_module("bench.driver.preload")
        message: tuple[Any, ...] = ("value", task(announce, *arguments))
    except CellFailure as failure:
        message = ("failure", failure.status, failure.reason, traceback.format_exc(), failure.kept)
    except Exception as error:  # the one place where a crash becomes an outcome
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        message = ("failure", _status(error), reason, traceback.format_exc(), None)
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
