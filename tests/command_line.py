"""Running the real command in a folder of its own, and looking at what it leaves behind."""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from bench.__main__ import main
from bench.paths import ROOT
from bench.record.result import Result
from bench.store.files import read_results

if TYPE_CHECKING:  # it imports mlflow, which most tests need not wait for
    from mlflow.entities import Run


TINY = ["model=tiny", "workload.new_tokens=4", "measure.warmups=1", "measure.repeats=2"]
TINY += ["threads=1"]  # another file of tests runs beside this one


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Ours, without what a surrounding CI, server or sweep would change."""
    dropped = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(ROOT), "BENCH_LOCK": str(folder / "lock"), **extra}


def start(folder: Path, arguments: Sequence[str], **extra: str) -> "subprocess.Popen[str]":
    """``python -m bench`` with ``arguments``, running in ``folder``."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        cwd=folder,
        env=environment(folder, **extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Ended(NamedTuple):
    """A command that has run."""

    returncode: int
    stdout: str
    stderr: str


def bench(folder: Path, *arguments: str, **extra: str) -> Ended:
    """The same, to its end."""
    process = start(folder, arguments, **extra)
    out, err = process.communicate(timeout=500)
    return Ended(process.returncode, out, err)


def in_process(folder: Path, *arguments: str, **extra: str) -> Ended:
    """The same in this process, whose fork server imports torch once for all of them.

    Measured processes have the environment of the first one: ``extra`` reaches the driver alone.
    """
    place, variables, words = Path.cwd(), dict(os.environ), sys.argv
    out, err = io.StringIO(), io.StringIO()
    try:
        os.chdir(folder)
        _set_environment(environment(folder, **extra))
        sys.argv = ["bench", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    finally:
        os.chdir(place)
        _set_environment(variables)
        sys.argv = words
    return Ended(code, out.getvalue(), err.getvalue())


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ |= variables


def readme_commands() -> list[str]:
    """What stands in the README's blocks of commands, without the remarks behind it."""
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1::2]
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("make ", "python ", "mlflow ", ". "))]


def from_readme(command: str) -> list[str]:
    """The arguments of a command that the README has (after ``python -m bench``, where it is one of
    those)."""
    assert command in readme_commands()
    words = shlex.split(command)
    return words[3:] if words[:3] == ["python", "-m", "bench"] else words


def sweep_folder(folder: Path) -> Path:
    """The only sweep that was run in ``folder``."""
    (only,) = (folder / "outputs" / "sweeps").iterdir()
    return only


def results(folder: Path) -> list[Result]:
    """Of the only sweep that was run in ``folder``."""
    return list(read_results(sweep_folder(folder)))


def runs(folder: Path) -> "tuple[list[Run], list[Run]]":
    """Parents and cells in the SQLite store that a sweep in ``folder`` made, in the order of their
    start."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    found = list(
        client.search_runs(experiments, order_by=["attributes.start_time ASC"], max_results=1000)
    )
    return [r for r in found if r.data.tags["bench.kind"] == "sweep"], [
        r for r in found if r.data.tags["bench.kind"] == "cell"
    ]


def nth_measured_process(
    driver: "subprocess.Popen[str]", nth: int, lived_s: float
) -> psutil.Process:
    """The ``nth`` process (from 1) that measures a cell, once it has lived for ``lived_s``.

    The two that look around before the first cell do not count: they live for less than that.
    """
    seen: dict[int, float] = {}
    old: list[int] = []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert driver.poll() is None, driver.communicate()
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if os.getsid(process.pid) != process.pid:
                    continue
            except ProcessLookupError:
                continue
            since = seen.setdefault(process.pid, time.monotonic())
            if time.monotonic() - since > lived_s and process.pid not in old:
                old.append(process.pid)
                if len(old) == nth:
                    return process
        time.sleep(0.02)
    raise AssertionError(f"no {nth}th measured process; saw {seen}")


def wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    """Fails when one of them is still there after some seconds."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
