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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import paths
from bench.analysis.differences import Difference, differences
from bench.analysis.reproduction import Word, overall, reproductions
from bench.config.compose import missing_files
from bench.config.settings import Settings
from bench.driver import plan, signals
from bench.driver.lock import machine_lock
from bench.driver.probe import look_around
from bench.driver.provenance import provenance
from bench.driver.sweep import measure, say_what_next, writable_outputs
from bench.driver.worker import begin
from bench.errors import ConfigError
from bench.record.result import Host, Result
from bench.report import reproduced
from bench.report import terminal as table
from bench.report.progress import ProgressLine
from bench.store.files import write_reproduction

if TYPE_CHECKING:  # it imports mlflow
    from bench.store.mlflow_fetch import Recorded

# With 1.5 % between processes, 5 against 3 tell a margin of 5 % nearly always, 3 against 3 often
_FEWEST_PROCESSES = 5
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_CODES: dict[Word, int] = {"reproduced": 0, "differs": 1, "cannot tell": 4}


def reproduce(recorded: "Recorded", settings: Settings, processes: int | None) -> int:
    """Measure every cell of ``recorded`` again and say how it compares, within ``settings.margin``;
    returns the exit code.

    Args:
        processes: of each cell; None: as many as were recorded, and at least five.
    Raises:
        ConfigError: when a cell names a text that this version does not have.
    """
    problems = [problem for then in recorded.results for problem in missing_files(then.cell)]
    if problems:
        raise ConfigError(
            [f"{problem}; --checkout takes the version that had it" for problem in problems]
        )
    outputs, code = writable_outputs(settings), provenance()
    elsewhere: list[Difference] = []
    with signals.as_interrupts():
        try:
            with machine_lock(_say), ProgressLine() as progress:
                host = look_around(progress.show, with_mlflow=True)
                elsewhere += differences(
                    recorded.results[0].host, host, recorded.sweep.provenance, code
                )
                for line in reproduced.surroundings(elsewhere):
                    _say(line)
                begun = [_again(then, host, processes) for then in recorded.results]
                # Cells that differed only in the number of their processes are one now.
                again = list({record.cell_id: record for record in begun}.values())
                overrides = ("reproduce", recorded.name)
                ended = measure(again, settings, overrides, outputs, progress, code, recorded.name)
        except KeyboardInterrupt:
            _say("interrupted before the first cell")
            return 130
    if ended.interrupted:
        say_what_next(ended.recorder, ended.folder)
        return 130
    now = {result.cell_id: result for result in ended.recorder.results}
    pairs = [
        (then, now[record.cell_id]) for then, record in zip(recorded.results, begun, strict=True)
    ]
    found = reproductions(pairs, settings.margin)
    out = table.console()
    for line in reproduced.findings(found, elsewhere, settings.margin):
        out.print(line, markup=False)
    record = reproduced.as_record(recorded.name, found, recorded.runs, elsewhere, settings.margin)
    write_reproduction(ended.folder, record)
    ended.recorder.link()
    say_what_next(ended.recorder, ended.folder)
    return _EXIT_CODES[overall(found)] or (3 if ended.recorder.untracked else 0)


def _again(then: Result, host: Host, processes: int | None) -> Result:
    passes = processes or max(then.cell.measure.passes, _FEWEST_PROCESSES)
    cell = replace(then.cell, measure=replace(then.cell.measure, passes=passes))
    return begin(cell, host, "", plan.why_not(cell, host))


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
        _say(f"the run had changes on top of its commit that are not in it: {', '.join(changed)}")
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


def _say(text: str) -> None:
    print(text, file=sys.stderr)
