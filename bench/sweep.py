"""From a list of composed cells to results: plan, run each in a fresh process, record, summarize.

All cells are known and valid before the first one runs. What ends a cell never ends the sweep; what ends the sweep
(Ctrl-C, SIGTERM) never loses a cell that is finished.
"""

import contextlib
import importlib
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths, plan
from bench.analysis.compare import unknown_baseline
from bench.errors import CellFailure, ConfigError
from bench.meter import isolate
from bench.meter.device import nvml_used_bytes, wait_until_free
from bench.meter.lock import machine_lock
from bench.output import store, table
from bench.output.progress import ProgressLine
from bench.result import SCHEMA, Attestation, Findings, Host, Outcome, Result, Sample
from bench.resume import resume_key
from bench.spec import Cell, Config, Settings, cell_id, sample_key

if TYPE_CHECKING:  # it imports mlflow, which takes over a second: only after the configuration has been checked
    from bench.output.record import Recorder

_PROBE_LIMIT_S = 300.0
_OF_NO_CONCERN = {"ok", "skipped", "oom"}  # outcomes with exit code 0

Answers = dict[str, tuple[str, tuple[Sample, ...]]]  # sample_key -> who answered, and what


def run_sweep(configs: Sequence[Config], overrides: Sequence[str]) -> int:
    """Measure every cell; returns the exit code.

    Raises:
        ConfigError: before anything runs.
    """
    settings = configs[0].settings
    if any(config.settings != settings for config in configs):
        raise ConfigError(["tracking, baseline and output_dir are no axes: want one value for the whole sweep"])
    problems = unknown_baseline([config.cell for config in configs], settings.baseline)
    if problems:
        raise ConfigError(problems)
    outputs = Path(settings.output_dir).absolute()
    try:
        (outputs / "sweeps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"output_dir={settings.output_dir}: cannot write there ({error.strerror})"]) from error
    with _signals_as_interrupts():
        try:
            with machine_lock(_say), ProgressLine() as progress:
                host = _look_around(progress, settings)
                cells = [plan.resolve(config.cell, host) for config in configs]
                cells = list({cell_id(cell): cell for cell in cells}.values())  # two that resolve alike are one
                recorder, folder = _open(cells, settings, overrides, outputs)
                interrupted = _run_all(cells, host, folder, recorder, progress)
        except KeyboardInterrupt:
            _say("interrupted before the first cell")
            return 130
    table.console().print(table.summary(recorder.results, settings.baseline))
    _say_what_next(recorder, folder)
    if interrupted:
        return 130
    if any(result.outcome.status not in _OF_NO_CONCERN for result in recorder.results):
        return 1
    return 3 if recorder.untracked else 0


def probe(announce: isolate.Announce) -> Host:
    """This machine, from within a measured process."""
    from bench.meter.host import probe_host  # imports torch: not in this process

    return probe_host()


def measure(announce: isolate.Announce, cell: Cell, wants_samples: bool) -> Any:
    """The task of the measured process."""
    from bench.run import run_cell  # imports torch: not in this process

    return run_cell(announce, cell, wants_samples)


def _look_around(progress: ProgressLine, settings: Settings) -> Host:
    progress.show("starting")
    isolate.begin_server()
    importlib.import_module("bench.output.record")  # mlflow, while the server imports torch
    notice = isolate.check_server(lambda *_: progress.show("importing torch and transformers"))
    if notice:
        _say(notice)
    limits_s = {"start": _PROBE_LIMIT_S}
    host: Host = isolate.run_isolated(probe, (), limits_s, lambda *_: progress.show("looking around"), Path("/dev/null"))
    return host


def _open(cells: Sequence[Cell], settings: Settings, overrides: Sequence[str], outputs: Path) -> tuple["Recorder", Path]:
    from bench.output.record import Recorder

    folder = store.new_folder(outputs)
    commit, dirty = _git_state()
    sweep = store.Sweep(
        sweep_id=folder.name,
        started_at=time.time(),
        overrides=tuple(overrides),
        tracking=settings.tracking,
        baseline=settings.baseline,
        cells=tuple(cell_id(cell) for cell in cells),
        git_commit=commit,
        git_dirty=dirty,
    )
    store.write_sweep(folder, sweep)
    recorder = Recorder(folder, sweep, outputs)
    if recorder.untracked:
        _say(f"{recorder.untracked}; the sweep goes on, results are kept in {folder}")
    return recorder, folder


def _run_all(cells: Sequence[Cell], host: Host, folder: Path, recorder: "Recorder", progress: ProgressLine) -> bool:
    """Every cell in turn; returns whether the user ended it."""
    answers: Answers = {}
    baseline_bytes = nvml_used_bytes(host.device_uuid)
    obstacles = {cell_id(cell): plan.why_not(cell, host) for cell in cells}
    progress.plan(sum(obstacle is None for obstacle in obstacles.values()))
    status = "KILLED"
    try:
        for cell in cells:
            obstacle = obstacles[cell_id(cell)]
            if obstacle is not None:
                recorder.record(_result(cell, host, folder, time.time(), outcome=obstacle))
                continue
            progress.cell(cell.label)
            result = _run_one(cell, host, folder, answers, progress)
            recorder.record(result)
            progress.finished()
            if result.outcome.status == "killed":
                return True
            held = wait_until_free(host.device_uuid, baseline_bytes)
            if held:
                _say(f"{held / 2**20:.0f} MiB of {host.device_name} stay in use after {cell.label}: other processes?")
        status = "FINISHED"
    except KeyboardInterrupt:
        return True
    finally:
        with _uninterrupted():
            recorder.close(status, time.time())
    return False


def _run_one(cell: Cell, host: Host, folder: Path, answers: Answers, progress: ProgressLine) -> Result:
    started_at = time.time()
    marks: list[tuple[str, float]] = []

    def on_phase(phase: str, detail: str) -> None:
        if not marks or marks[-1][0] != phase:
            marks.append((phase, time.monotonic()))
        progress.show(phase, detail)

    key = sample_key(cell)
    wants_samples = cell.quality.prompts is not None and cell.model.weights == "pretrained" and key not in answers
    log = store.cell_folder(folder, cell_id(cell)) / "log.txt"
    outcome, found = Outcome("ok"), {}
    try:
        findings = isolate.run_isolated(measure, (cell, wants_samples), cell.measure.limits_s, on_phase, log)
        found = _found(cell, findings, answers)
    except CellFailure as failure:
        trace = "\n".join(getattr(failure, "__notes__", [])) or None
        outcome = Outcome(failure.status, failure.reason, trace)
        if isinstance(failure.kept, Attestation):
            found = {"attestation": failure.kept}
        elif failure.kept is not None:  # all but the samples
            outcome = Outcome("ok", f"no samples: {failure.status}: {failure.reason}", trace)
            found = _found(cell, failure.kept, answers)
    except KeyboardInterrupt:
        outcome = Outcome("killed", "ended by the user")
    phases_s = _durations(marks, time.monotonic())
    return _result(cell, host, folder, started_at, outcome=outcome, phases_s=phases_s, **found)


def _found(cell: Cell, findings: Findings, answers: Answers) -> dict[str, Any]:
    """The fields of a result that a measured process fills, with the answers of an earlier cell where they are shared."""
    key = sample_key(cell)
    if findings.samples:
        answers[key] = cell_id(cell), findings.samples
    samples_from, samples = answers.get(key, (None, ()))
    return {
        "revision": findings.revision,
        "attestation": findings.attestation,
        "measurement": findings.measurement,
        "samples": samples,
        "samples_from": None if samples_from == cell_id(cell) else samples_from,
    }


def _result(cell: Cell, host: Host, folder: Path, started_at: float, **found: Any) -> Result:
    return Result(
        schema=SCHEMA,
        cell_id=cell_id(cell),
        resume_key=resume_key(cell, host),
        sweep_id=folder.name,
        cell=cell,
        host=host,
        started_at=started_at,
        wall_s=time.time() - started_at,
        phases_s=found.pop("phases_s", {}),
        **found,
    )


def _durations(marks: Sequence[tuple[str, float]], end: float) -> dict[str, float]:
    return {phase: after - at for (phase, at), (_, after) in itertools.pairwise([*marks, ("", end)])}


def _say_what_next(recorder: "Recorder", folder: Path) -> None:
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    _say(f"results: {shown}")
    if recorder.untracked:
        _say(f"not all of it is tracked: {recorder.untracked}")
        _say(f"send it later: python -m bench push {shown}")
    elif recorder.tracker is not None:
        _say(f"look further: {recorder.tracker.how_to_look}")


def _git_state() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (paths.ROOT / "pyproject.toml").is_file():
        return None, None  # installed: whatever repository lies around it is not ours
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return commit, None if commit is None else bool(changes)


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and SIGHUP end a sweep as Ctrl-C does: with everything recorded."""

    def interrupt(signal_number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    with _handled(heard, interrupt):
        yield


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
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


def _say(text: str) -> None:
    print(text, file=sys.stderr)
