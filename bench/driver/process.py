"""Running a task in a fresh process, so that whatever happens to it is an outcome, not the sweep's
end.

A task is named by its place, ``bench.meter.cell:measure_cell``, and its process imports it. A fork
server with the engine's libraries preloaded makes a process in 0.02 s; an engine that lives in an
environment of its own is started by that interpreter. The child leads a session of its own, so that
it can be ended with everything it started; it writes its output to a file; the kernel's
out-of-memory killer is told to prefer it. It announces each phase and waits for the parent's answer
before it goes on: the parent shows its progress in that moment and is asleep in a blocking read,
without a timer thread, while anything is timed. The other side of the pipe is ``driver.child``.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.driver.child import serve
from bench.errors import BenchError, CellFailure
from bench.paths import PACKAGE, interpreter

OnPhase = Callable[[str, str], None]

_START_LIMIT_S = 300.0  # until the first phase: on a cold disk the imports alone take a while
_EXIT_LIMIT_S = 10.0
# In these the parent does not even wake up to tick.
TIMED_PHASES = frozenset({"load", "warm-up", "measure"})
_MEASURING = ("bench.meter.cell", "bench.meter.answers")  # what every engine's process runs
_VMSTAT = Path("/proc/vmstat")

_context: Any = multiprocessing.get_context("forkserver")
_preloaded: tuple[str, ...] | None = None  # by the server that runs


@dataclass(frozen=True, slots=True)
class Task:
    """What a process is to do.

    ``limits_s`` is the longest time for each phase that it announces; ``python`` the interpreter,
    None for this one.
    """

    place: str  # bench.meter.cell:measure_cell
    arguments: tuple[Any, ...]
    limits_s: Mapping[Any, float] = field(default_factory=dict)
    python: str | None = None


def begin_server(preload: Collection[str]) -> None:
    """Start the fork server; its imports take seconds: do something else before ``check_server``.

    Ctrl-C goes to every process of the terminal: the server, which would answer with a traceback
    out of its imports, inherits that it is ignored. One that runs with other imports is ended: it
    would serve the second command of a Python process without its engine's.
    """
    global _preloaded
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    wanted = (*_MEASURING, *preload)
    if _preloaded not in (None, wanted):
        forkserver._forkserver._stop()  # type: ignore[attr-defined]  # there is no public way
    _preloaded = wanted
    forkserver.set_forkserver_preload(list(wanted))
    _ensure_server()


def _ensure_server() -> None:
    """One that was killed is started anew."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def check_server(preload: Collection[str], on_phase: OnPhase) -> str | None:
    """Wait for the fork server; returns a sentence for the user when it cannot be used and every
    process starts anew.

    Raises:
        BenchError: when its imports failed.
    """
    global _context
    task = Task("bench.driver.process:server_state", (tuple(preload),))
    missing, unsafe = run_isolated(task, on_phase, Path(os.devnull))
    if missing:  # multiprocessing swallows an import error of the server
        raise BenchError(
            f"{missing} could not be imported; `python -c 'import {missing}'` says why"
        )
    if unsafe is None:
        return None
    _context = multiprocessing.get_context("spawn")
    return f"{unsafe}: each cell starts from nothing, some 10 s more a cell"


def server_state(announce: Any, preload: tuple[str, ...]) -> tuple[str | None, str | None]:
    """In a fork of the server: which module it could not import, and why a fork is of no use."""
    for name in preload:
        if name not in sys.modules:
            return name, None
    reasons = [sys.modules[name].fork_unsafe() for name in preload]
    return None, next((reason for reason in reasons if reason is not None), None)


def run_isolated(task: Task, on_phase: OnPhase, log: Path) -> Any:
    """What the task returns when run in a fresh process.

    Args:
        on_phase: called with phase and detail at each announcement, and once a second in phases
            that are not timed.
        log: gets the process's output.
    Raises:
        CellFailure: the task's own; ``timeout``; ``oom``; ``failed`` with signal or traceback.
    """
    ours, theirs = multiprocessing.Pipe()
    lifeline, held_open = multiprocessing.Pipe(duplex=False)
    kills_before = _oom_kills()
    process = _started(task, theirs, lifeline, log, kills_before)
    theirs.close()
    lifeline.close()
    try:
        try:
            ours.send((str(log), task.place, task.arguments))
        except OSError:  # it has died already
            raise _death(process, "start", kills_before) from None
        return _follow(process, ours, task.limits_s, on_phase, kills_before)
    finally:
        process.end()
        ours.close()
        held_open.close()


class _Forked:
    """A process of the fork server, or spawned where that is unusable."""

    def __init__(self, theirs: Connection, lifeline: Connection) -> None:
        if _context.get_start_method() == "forkserver":
            _ensure_server()
        self._process = _context.Process(target=serve, args=(theirs, lifeline))
        self._process.start()
        self.pid: int = self._process.pid
        self.sentinel = self._process.sentinel

    def join(self, limit_s: float | None = None) -> None:
        self._process.join(limit_s)

    @property
    def exit_code(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def end(self) -> None:
        """The process and all that it started, gone."""
        _kill_group(self.pid)
        with contextlib.suppress(ProcessLookupError):  # it may not lead its group yet
            if self._process.is_alive():
                os.kill(self.pid, signal.SIGKILL)
        self._process.join()


class _Foreign:
    """A process of another interpreter, which imports this package from here."""

    def __init__(self, python: str, theirs: Connection, lifeline: Connection, log: Path) -> None:
        descriptors = theirs.fileno(), lifeline.fileno()
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [python, "-m", "bench.driver.child", *map(str, descriptors)],
                pass_fds=descriptors,
                env={
                    **os.environ,
                    "PYTHONPATH": str(PACKAGE.parent),
                    "BENCH_PYTHON": sys.executable,  # which has torch
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid
        # Linux; elsewhere its end is seen by the end of the pipe
        self.sentinel = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    def join(self, limit_s: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        """The process and all that it started, gone."""
        _kill_group(self.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        if self.sentinel is not None:
            os.close(self.sentinel)


def _started(
    task: Task, theirs: Connection, lifeline: Connection, log: Path, kills_before: int
) -> Any:
    python = interpreter(task.python)
    if python is None:
        try:
            return _Forked(theirs, lifeline)
        except (EOFError, OSError) as error:  # the next process gets a new server
            what = "the process that the measured ones are forked from"
            if _oom_kills() > kills_before:
                reason = f"the kernel's out-of-memory killer ended {what}: less memory than the"
                raise CellFailure("oom", f"{reason} engine's libraries take") from error
            raise CellFailure("failed", f"{what} has died ({type(error).__name__})") from error
    try:
        return _Foreign(python, theirs, lifeline, log)
    except OSError as error:
        raise CellFailure(
            "failed", f"engine.python={task.python} cannot be started ({error.strerror})"
        ) from error


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)


def _follow(
    process: Any,
    ours: Connection,
    limits_s: Mapping[Any, float],
    on_phase: OnPhase,
    kills_before: int,
) -> Any:
    phase, detail, limit_s = "start", "", limits_s.get("start", _START_LIMIT_S)
    deadline = time.monotonic() + limit_s
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            is_set = phase in limits_s and phase != "start"
            setting = f" (measure.limits_s.{phase})" if is_set else ""
            raise CellFailure(
                "timeout", f"phase {phase} took longer than its {limit_s:g} s{setting}"
            )
        ends = [] if process.sentinel is None else [process.sentinel]
        wait([ours, *ends], left if phase in TIMED_PHASES else min(left, 1.0))
        if ours.poll():
            try:
                kind, *message = ours.recv()
            except (EOFError, OSError):
                raise _death(process, phase, kills_before) from None
            if kind != "phase":
                process.join(_EXIT_LIMIT_S)  # it ends by itself, and cleans up what it registered
                return _answer(kind, message)
            if message[0] != phase:
                phase, limit_s = message[0], limits_s.get(message[0], _START_LIMIT_S)
                deadline = time.monotonic() + limit_s
            detail = message[1]
            on_phase(phase, detail)
            try:
                ours.send("go on")
            except OSError:
                raise _death(process, phase, kills_before) from None
        elif process.exit_code is not None:
            raise _death(process, phase, kills_before)
        elif phase not in TIMED_PHASES:
            on_phase(phase, detail)


def _answer(kind: str, message: list[Any]) -> Any:
    if kind == "value":
        return message[0]
    status, reason, trace = message
    failure = CellFailure(status, reason)
    failure.add_note(trace)
    raise failure


def _death(process: Any, phase: str, kills_before: int) -> CellFailure:
    process.join()
    code = process.exit_code
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        if -code == signal.SIGKILL and _oom_kills() > kills_before:
            reason = f"the kernel's out-of-memory killer ended the process in phase {phase}"
            return CellFailure("oom", reason)
        return CellFailure("failed", f"the process was ended by {name} in phase {phase}")
    return CellFailure("failed", f"the process ended with exit code {code} in phase {phase}")


def _oom_kills() -> int:
    """How many processes the out-of-memory killer has ended on this machine, in any cgroup."""
    for line in _VMSTAT.read_text().splitlines() if _VMSTAT.is_file() else []:
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
