"""``python -m bench reproduce RUN``: run a recorded cell or sweep once more, and say whether the
same comes out.

What differs here is said first. Then the recorded cells run as they were resolved then (device,
dtypes, threads, seed, prompts), in fresh processes, at least five a cell; ``analysis.reproduction``
gives the verdict. The new run is linked to the original. With ``--checkout`` the same command runs
in a temporary worktree of the recorded commit.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import paths
from bench.analysis.differences import Difference, differences
from bench.analysis.reproduction import Word, overall, reproductions
from bench.config.compose import missing_files
from bench.config.prompt_file import changed_files
from bench.config.settings import Settings
from bench.driver.lock import machine_lock, signals_as_interrupts
from bench.driver.machine import look_around
from bench.driver.plan import why_not
from bench.driver.policy import Records
from bench.driver.process import run_isolated
from bench.driver.provenance import provenance
from bench.driver.recording import Request
from bench.driver.sweep import (
    Ended,
    Runner,
    check_places,
    measure,
    say_what_next,
)
from bench.driver.worker import begin
from bench.errors import ConfigError
from bench.meter.nvml import used_bytes
from bench.record.result import Host, Result
from bench.report import reproduced, terminal
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store.files import write_reproduction

if TYPE_CHECKING:  # it imports mlflow
    from bench.store.mlflow_fetch import Recorded

# With 1.5 % between processes, 5 against 3 tell a margin of 5 % nearly always, 3 against 3 often.
_FEWEST_PROCESSES = 5
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_CODES: dict[Word, int] = {"reproduced": 0, "differs": 1, "cannot tell": 4}


def reproduce(recorded: "Recorded", settings: Settings, processes: int | None) -> int:
    """Measure every cell of ``recorded`` again and say how it compares; returns the exit code.

    Args:
        processes: of each cell; None: as many as were recorded, and at least five.
    Raises:
        ConfigError: when a cell names a text that this version does not have, or a file of the
            user's that has changed.
    """
    advice = {
        missing_files: "--checkout takes the version that had it",
        changed_files: "inputs/ of the run has a copy, unless quality.store_prompts was false",
    }
    problems = dict.fromkeys(
        f"{problem}; {what_to_do}"
        for then in recorded.results
        for look, what_to_do in advice.items()
        for problem in look(then.cell)
    )
    if problems:
        raise ConfigError(list(problems))
    words = ("reproduce", recorded.name)
    code = provenance([then.cell for then in recorded.results])
    outputs = Path(settings.output_dir)
    check_places(settings, outputs)
    request = Request(settings, outputs, words, code, recorded.name)
    elsewhere: list[Difference] = []
    _show_the_same_gpu(recorded.results[0].host.device_uuid)
    with signals_as_interrupts():
        try:
            with machine_lock(say), ProgressLine() as progress:
                runner = Runner(run_isolated, progress)
                asked = [then.asked for then in recorded.results]
                machine = look_around(asked, runner.probe, with_mlflow=True)
                host = machine.hosts[asked[0].engine.name]
                then_host, then_code = recorded.results[0].host, recorded.sweep.provenance
                elsewhere += differences(then_host, host, then_code, request.code)
                for line in reproduced.environment(elsewhere):
                    say(line)
                begun = [_again(then, machine.hosts, processes) for then in recorded.results]
                # Cells that differed only in the number of their processes are one now.
                results = {result.cell_id: result for result in begun}
                records = Records(results, machine.hosts, machine.descriptions)
                ended = measure(records, request, runner)
        except KeyboardInterrupt:
            say("interrupted before the first cell")
            return 130
    if ended.interrupted:
        say_what_next(ended)
        return 130
    now = {result.cell_id: result for result in ended.recorder.results}
    again = [now[result.cell_id] for result in begun]
    return _conclude(recorded, again, elsewhere, settings.margin, ended)


def _conclude(
    recorded: "Recorded",
    again: Sequence[Result],
    elsewhere: Sequence[Difference],
    margin: float,
    ended: Ended,
) -> int:
    """Say and record the verdict; returns the exit code."""
    pairs = list(zip(recorded.results, again, strict=True))
    verdicts = reproductions(pairs, margin)
    out = terminal.console()
    for line in reproduced.findings(verdicts, elsewhere, margin):
        out.print(line, markup=False)
    record = reproduced.as_record(recorded.name, verdicts, recorded.runs, elsewhere, margin)
    write_reproduction(ended.folder, record)
    ended.recorder.link()
    say_what_next(ended)
    return _EXIT_CODES[overall(verdicts)] or (3 if ended.recorder.untracked else 0)


def _show_the_same_gpu(uuid: str | None) -> None:
    """Of several GPUs the one that was measured, where it is here and the user has not picked."""
    is_here = used_bytes(uuid) is not None
    if uuid is not None and is_here and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = uuid


def _again(then: Result, hosts: Mapping[str, Host], processes: int | None) -> Result:
    """The record of a cell that is to run as it ran then."""
    passes = processes or max(then.cell.measure.passes, _FEWEST_PROCESSES)
    cell = replace(then.cell, measure=replace(then.cell.measure, passes=passes))
    asked = replace(then.asked, measure=replace(then.asked.measure, passes=passes))
    host = hosts[cell.engine.name]
    begun = begin(asked, cell, host, outcome=why_not(cell, host, None))
    return replace(begun, lines=then.lines)


def in_worktree(commit: str | None, changed: Sequence[str], arguments: Sequence[str]) -> int:
    """Run ``bench reproduce`` with ``arguments`` in a temporary worktree of ``commit``; returns its
    exit code.

    Raises:
        ConfigError: when there is no such commit here.
    """
    if commit is None:
        raise ConfigError(
            ["--checkout: the run was measured by an installed package, no commit is recorded"]
        )
    if paths.PACKAGE == paths.ROOT or shutil.which("git") is None:
        raise ConfigError(
            [f"--checkout: wants git and a clone of the project to take {commit} from"]
        )
    if changed:
        say(f"the run had changes on top of its commit that are not in it: {', '.join(changed)}")
    git = ["git", "-C", str(paths.ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        place = Path(folder) / commit[:12]
        made = subprocess.run(
            [*git, "add", "--detach", str(place), commit],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise ConfigError(
                [
                    f"--checkout: no worktree of {commit} ({made.stderr.strip().splitlines()[-1]});"
                    " git fetch?"
                ]
            )
        try:
            return _run_there(place, arguments)
        finally:
            subprocess.run(
                [*git, "remove", "--force", str(place)], capture_output=True, check=False
            )


def _run_there(place: Path, arguments: Sequence[str]) -> int:
    """The command with the worktree's package, to its end; signals are passed on, and it ends as it
    does by itself."""
    # Without the safe path ``-m`` would find the package of the working folder first.
    own = {**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    child = subprocess.Popen([sys.executable, "-m", "bench", "reproduce", *arguments], env=own)
    before = {
        number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in _ENDING
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
