"""From a list of composed cells to results: plan, run each in fresh processes, record, summarize.

All cells are known and valid before the first one runs. What ends a cell never ends the sweep; what ends the sweep
(Ctrl-C, SIGTERM) never loses a process that is finished, and a later sweep of the same cells takes up from there. The
whole grid runs in passes, each in another order, so that a drift of the machine falls on all cells alike.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import fit, paths, plan, signals
from bench.analysis.compare import unknown_baseline
from bench.analysis.verdict import Spread
from bench.attempt import begin, run_pass
from bench.config import Config, Settings
from bench.errors import ConfigError
from bench.meter.device import nvml_used_bytes, wait_until_free
from bench.meter.lock import machine_lock
from bench.meter.telemetry import other_processes
from bench.output import calibration, dry, store, table
from bench.output.advise import in_short
from bench.output.progress import ProgressLine
from bench.references import find_references, reference_cell, wants_reference
from bench.result import Host, Result, is_complete
from bench.resume import resume_key
from bench.shared_quality import share, still_to_ask
from bench.spec import Cell, cell_id
from bench.surroundings import look_around, with_peaks

if TYPE_CHECKING:  # it imports mlflow, which takes over a second: only after the configuration has been checked
    from bench.output.record import Recorder

_MOST_WORDS = 3
_OF_NO_CONCERN = {"ok", "skipped", "oom"}  # outcomes with exit code 0


def run_sweep(configs: Sequence[Config], overrides: Sequence[str]) -> int:
    """Measure every cell; returns the exit code.

    Raises:
        ConfigError: before anything runs.
    """
    settings = configs[0].settings
    if any(config.settings != settings for config in configs):
        raise ConfigError(
            ["tracking, baseline, output_dir, margin, resume, profile and dry_run are no axes: want one value of each"]
        )
    problems = unknown_baseline([config.cell for config in configs], settings.baseline)
    if problems:
        raise ConfigError(problems)
    outputs = Path(settings.output_dir).absolute()
    try:
        (outputs / "sweeps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"output_dir={settings.output_dir}: cannot write there ({error.strerror})"]) from error
    with signals.as_interrupts():
        try:
            with machine_lock(_say), ProgressLine() as progress:
                host = look_around(progress.show, with_mlflow=not settings.dry_run)
                cells = [_resolved(config, host, progress) for config in configs]
                cells = list({cell_id(cell): cell for cell in cells}.values())  # two that resolve alike are one
                records = [_begin(cell, host, settings, outputs) for cell in cells]
                if not settings.dry_run:
                    records = with_peaks(records, progress.show)
                    references = find_references(records, settings.baseline.quant, progress.show)
                    recorder, folder = _open(records, settings, overrides, outputs)
                    interrupted = _run_all(records, references, settings.profile, folder, recorder, progress)
        except KeyboardInterrupt:
            _say("interrupted before the first cell")
            return 130
    if settings.dry_run:
        table.console().print(dry.grid(records, outputs))
        return 0
    out = table.console()
    out.print(table.summary(recorder.results, recorder.sweep))
    for line in in_short(recorder.results, recorder.sweep):
        out.print(line, markup=False)
    _say_what_next(recorder, folder)
    return 130 if interrupted else _exit_code(recorder)


def _resolved(config: Config, host: Host, progress: ProgressLine) -> Cell:
    """The cell as it will run here; ``batch=max`` is found out, or only predicted for a dry run."""
    cell = plan.resolve(config.cell, host)
    if not config.largest_batch or plan.why_not(cell, host) is not None:
        return cell
    if config.settings.dry_run:
        return replace(cell, batch=fit.predicted_batch(cell, host))
    progress.cell(f"{cell.label.rpartition('/')[0]}, batch=max")
    cell = replace(cell, batch=fit.largest_batch(cell, host, progress.show, Path(os.devnull)))
    _say(f"batch=max is {cell.batch} for {cell.label}")
    return cell


def _begin(cell: Cell, host: Host, settings: Settings, outputs: Path) -> Result:
    """What is known of a cell before this sweep: nothing, why it cannot run here, or what an earlier sweep measured."""
    obstacle = plan.why_not(cell, host)
    if obstacle is not None:
        return begin(cell, host, "", obstacle)
    resume = cell.measure.resume if settings.resume is None else settings.resume
    earlier = store.find_earlier(outputs, cell_id(cell), resume_key(cell, host)) if resume else None
    if earlier is None or (earlier.outcome.status == "ok" and _lacks(earlier, cell, host, settings)):
        return begin(cell, host, "")
    return replace(earlier, cell=cell)  # limits may be others now


def _lacks(earlier: Result, cell: Cell, host: Host, settings: Settings) -> bool:
    """Whether something that is asked for now was not read then: it takes a process again."""
    if settings.profile and earlier.profile is None:
        return True
    is_due = wants_reference(cell) and reference_cell(cell, host, settings.baseline.quant) is not None
    return is_complete(earlier) and is_due and earlier.divergence is None


def _open(records: list[Result], settings: Settings, overrides: Sequence[str], outputs: Path) -> tuple["Recorder", Path]:
    from bench.output.record import Recorder

    folder = store.new_folder(outputs)
    commit, dirty = _git_state()
    sweep = store.Sweep(
        sweep_id=folder.name,
        started_at=time.time(),
        overrides=tuple(overrides),
        tracking=settings.tracking,
        baseline=settings.baseline,
        margin=settings.margin,
        calibration=_calibration(records),
        cells=tuple(record.cell_id for record in records),
        git_commit=commit,
        git_dirty=dirty,
    )
    store.write_sweep(folder, sweep)
    recorder = Recorder(folder, sweep, outputs)
    if recorder.untracked:
        _say(f"{recorder.untracked}; the sweep goes on, results are kept in {folder}")
    return recorder, folder


def _calibration(records: Sequence[Result]) -> Mapping[str, Spread]:
    """This host's spread between processes, if it was found on the device that the cells run on."""
    host = records[0].host
    return calibration.read(host) if all(record.cell.device == host.device for record in records) else {}


def _run_all(
    begun: Sequence[Result],
    references: Mapping[str, str],
    wants_profiles: bool,
    folder: Path,
    recorder: "Recorder",
    progress: ProgressLine,
) -> bool:
    """Every pass of every cell; returns whether the user ended it.

    Args:
        references: by cell_id, the file of the model that its predictions are compared with.
    """
    records = {record.cell_id: replace(record, sweep_id=folder.name) for record in begun}
    status = "KILLED"
    try:
        for record in records.values():
            if is_complete(record):
                recorder.keep(record)
        reused = sum(record.reused_from is not None for record in records.values() if is_complete(record))
        if reused:
            _say(f"{reused} of {len(records)} cells have a result already (resume=false measures them again)")
        if _run_passes(records, references, wants_profiles, folder, recorder, progress):
            return True
        status = "FINISHED"
    except KeyboardInterrupt:
        return True
    finally:
        signals.ignore()
        recorder.close(status, time.time())
    return False


def _run_passes(
    records: dict[str, Result],
    references: Mapping[str, str],
    wants_profiles: bool,
    folder: Path,
    recorder: "Recorder",
    progress: ProgressLine,
) -> bool:
    answered: dict[str, Result] = {}
    for record in records.values():
        share(record, answered)
    host = next(iter(records.values())).host
    baseline_bytes = nvml_used_bytes(host.device_uuid)
    for other in other_processes(host.device_uuid, []) if host.device_uuid is not None else []:
        _say(f"{host.device_name} is in use by {other.name or 'a process'} (pid {other.pid}): it disturbs what is measured")
    jobs = schedule(list(records.values()))
    progress.plan(len(jobs))
    for which in jobs:
        record = records[which]
        if is_complete(record):  # an earlier pass of it failed
            progress.finished()
            continue
        cell, place = record.cell, store.cell_folder(folder, which)
        progress.cell(cell.label)
        trace = str(place / store.TRACE) if wants_profiles and record.profile is None else None
        wanted = still_to_ask(record, answered, references.get(which), trace)
        record, interrupted = run_pass(record, wanted, place / "log.txt", progress.show)
        records[which] = record = share(record, answered)
        with signals.deferred():
            recorder.keep(record)
        progress.finished()
        if interrupted:
            return True
        held = wait_until_free(host.device_uuid, baseline_bytes)
        if held:
            _say(f"{held / 2**20:.0f} MiB of {host.device_name} stay in use after {cell.label}: other processes?")
    return False


def schedule(records: Sequence[Result]) -> list[str]:
    """The cell_ids of all processes to come: pass by pass, each pass in an order of its own, the same for the same seed."""
    jobs: list[str] = []
    for index in range(max(record.cell.measure.passes for record in records)):
        due = [r.cell_id for r in records if not is_complete(r) and len(r.passes) <= index < r.cell.measure.passes]
        random.Random(f"{records[0].cell.seed}/{index}").shuffle(due)
        jobs += due
    return jobs


def _exit_code(recorder: "Recorder") -> int:
    statuses = {result.outcome.status for result in recorder.results}
    if statuses == {"skipped"}:
        _say("no cell of this sweep can run here")
        return 2
    if statuses - _OF_NO_CONCERN:
        return 1
    return 3 if recorder.untracked else 0


def _say_what_next(recorder: "Recorder", folder: Path) -> None:
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    said = store.library_words(folder)
    for line in said[:_MOST_WORDS]:
        _say(f"a library says: {line}")
    if len(said) > _MOST_WORDS:
        _say(f"and {len(said) - _MOST_WORDS} lines more, in the log.txt of the cells")
    _say(f"results: {shown}")
    if (folder / "report.html").is_file():
        _say(f"report: {shown / 'report.html'}")
    if recorder.untracked:
        _say("not all of it is tracked; send it later: " + f"python -m bench push {shown}")
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


def _say(text: str) -> None:
    print(text, file=sys.stderr)
