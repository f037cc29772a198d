"""From a list of asked cells to results: plan, run each job in a fresh process, record, summarize.

All cells are known and valid before the first one runs. What ends a cell never ends the sweep; what
ends the sweep (Ctrl-C, SIGTERM) never loses a process that is finished, and a later sweep of the
same cells takes up from there.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis.columns import unknown_baseline
from bench.analysis.comparison import Comparison, compare
from bench.analysis.footprint import predict
from bench.config.cell import Cell, cell_id
from bench.config.settings import Config, Settings
from bench.driver import plan
from bench.driver.lock import machine_lock, signals_as_interrupts
from bench.driver.machine import add_peaks, look_around
from bench.driver.places import try_places
from bench.driver.policy import Job, Records, grid, predicted_size
from bench.driver.probe import Probe
from bench.driver.process import run_isolated
from bench.driver.provenance import provenance
from bench.driver.recording import Report, Request, open_sweep, recording_of
from bench.driver.worker import PhaseTimes, Worker, task_of
from bench.errors import CellFailure, ConfigError
from bench.paths import from_here
from bench.record.result import Result, is_timed
from bench.report import advice, page, terminal
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store import files
from bench.store.database import tracking_uri

if TYPE_CHECKING:  # it imports mlflow, which takes over a second: only once the input is checked
    from bench.store.recorder import Recorder

Policy = Callable[[Records], Iterator[Job]]

_MAX_WARNINGS_SHOWN = 3
_SUCCESS_STATUSES = {"ok", "skipped", "oom"}  # outcomes with exit code 0


@dataclass(frozen=True, slots=True)
class Runner:
    """Where a sweep's processes run, who is told about it, and who draws the report."""

    worker: Worker
    progress: ProgressLine
    report: Report = page.try_report

    @property
    def probe(self) -> Probe:
        """Asks in throwaway processes of the same worker."""
        return Probe(self.worker, self.progress.show)


def run_sweep(
    configs: Sequence[Config],
    overrides: Sequence[str],
    worker: Worker = run_isolated,
    report: Report = page.try_report,
) -> int:
    """Measure every cell; returns the exit code.

    Raises:
        ConfigError: before anything runs.
    """
    settings = common_settings(configs)
    cells = [config.cell for config in configs]
    try:
        with on_this_machine(settings, cells, overrides, worker, report) as here:
            if settings.dry_run:
                show_plan(here.records, here.request)
                return 0
            ended = measure(here.records, here.request, here.runner)
    except KeyboardInterrupt:
        say("interrupted before the first cell")
        return 130
    show(ended)
    return 130 if ended.interrupted else exit_code(ended)


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that is known and held before the first cell runs."""

    records: Records
    request: Request
    runner: Runner


@contextlib.contextmanager
def on_this_machine(
    settings: Settings,
    cells: Sequence[Cell],
    overrides: Sequence[str],
    worker: Worker,
    report: Report = page.try_report,
) -> Iterator[Ready]:
    """Look around, and hold the machine meanwhile.

    Args:
        overrides: as typed.
    Raises:
        ConfigError: before anything runs.
    """
    only_here(settings)
    asked = list({cell_id(cell): cell for cell in cells}.values())
    outputs = Path(settings.output_dir)
    check_places(settings, outputs)
    request = Request(settings, outputs, tuple(overrides), provenance(asked))
    if settings.cuda_device is not None:
        show_only(settings.cuda_device)
    with signals_as_interrupts(), machine_lock(say), ProgressLine() as progress:
        runner = Runner(worker, progress, report)
        machine = look_around(asked, runner.probe, not settings.dry_run)
        yield Ready(machine.records(asked, settings, request.outputs), request, runner)


def only_here(settings: Settings) -> None:
    """Raises: ConfigError where a cluster is asked for."""
    if settings.where.name != "here":
        raise ConfigError(
            [f"where={settings.where.name} goes with sweeps; this command measures on this machine"]
        )


def show_only(index: int) -> None:
    """Of the GPUs that are visible this one alone, to every process that is started from here on:
    torch, NVML's UUID and the libraries then mean the same device.

    Raises:
        ConfigError: when CUDA_VISIBLE_DEVICES shows fewer. If the machine has fewer, none is left,
            which each cell then says.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(index + 1))) if visible is None else visible.split(",")
    if index >= len(names):
        raise ConfigError(
            [
                f"device=cuda:{index}: CUDA_VISIBLE_DEVICES={visible} leaves {len(names)},"
                " counted from 0"
            ]
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index].strip()


def check_places(settings: Settings, outputs: Path) -> None:
    """Everything will find its place. Raises: ConfigError when not."""
    try_places(outputs)
    if settings.tracking.enabled:
        tracking_uri(settings.tracking, outputs)


def common_settings(configs: Sequence[Config]) -> Settings:
    """The settings that all cells share. Raises: ConfigError when they differ or name nothing."""
    chosen = (config.settings.cuda_device for config in configs)
    devices = {device for device in chosen if device is not None}
    if len(devices) > 1:
        names = ",".join(f"cuda:{index}" for index in sorted(devices))
        raise ConfigError([f"device={names}: a sweep runs on one GPU; run it once for each"])
    device = next(iter(devices), None)
    settings = replace(configs[0].settings, cuda_device=device)
    if any(replace(config.settings, cuda_device=device) != settings for config in configs):
        raise ConfigError(
            [
                "tracking, where, baseline, output_dir, margin, price_per_hour, resume, profile"
                " and dry_run cannot vary within a sweep; give one value"
            ]
        )
    cells = [config.cell for config in configs]
    problems = unknown_baseline(cells, settings.baseline)
    problems += dict.fromkeys(name for cell in cells for name in plan.unknown_names(cell))
    if problems:
        raise ConfigError(problems)
    return settings


def show_plan(records: Records, request: Request) -> None:
    """The grid before anything is loaded."""
    results: list[Result] = []
    needs: dict[str, tuple[int, int]] = {}
    wall_s: dict[str, float] = {}
    for key, result in records.results.items():
        cell, host, description = result.cell, result.host, records.description(result.cell)
        if cell.is_to_be_sized and result.outcome.status == "ok":
            cell = cell.sized(predicted_size(records, cell, host))
        if description is not None and not cell.is_to_be_sized:
            footprint = predict(cell, description)
            needs[key] = footprint.least_bytes, footprint.total_bytes
        seconds = files.last_wall_s(request.outputs, key, host)
        wall_s |= {} if seconds is None else {key: seconds}
        results.append(replace(result, cell=cell))
    terminal.console().print(
        terminal.dry_run(compare(results, request.sweep(records, "")), needs, wall_s)
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """A sweep that is over, by itself or by the user."""

    recorder: "Recorder"
    folder: Path
    comparison: Comparison
    interrupted: bool


def measure(
    records: Records, request: Request, runner: Runner, policy: Policy | None = None
) -> Ended:
    """Run what is missing in ``records``, or what a policy wants, and record everything."""
    add_peaks(records, runner.probe)
    recorder, folder = open_sweep(records, request)
    settings, progress = request.settings, runner.progress
    with recording_of(records, recorder, folder, runner.report) as recording:
        recording.begin()
        if policy is None:
            progress.plan(sum(_processes_left(result) for result in records.results.values()))
        for job in grid(records, settings.profile) if policy is None else policy(records):
            result = records.results[job.cell_id]
            log = files.cell_folder(folder, job.cell_id) / "log.txt"
            progress.cell(_label(job))
            times = PhaseTimes(progress.show)
            task = task_of(job, result.host, log.parent)
            try:
                value: Any = runner.worker(task, times.on_phase, log)
            except (CellFailure, KeyboardInterrupt) as ending:
                value = ending
            recording.keep(job, value, times.until_now(), log)
            if job.kind == "time":
                progress.finished()
            if isinstance(value, KeyboardInterrupt):
                recording.interrupted = True
                break
    return Ended(recorder, folder, recording.comparison, recording.interrupted)


def _processes_left(result: Result) -> int:
    return 0 if is_timed(result) else result.cell.measure.passes - len(result.replicates)


def _label(job: Job) -> str:
    if job.kind == "try":
        size = f"batch {job.cell.batch} of {job.cell.workload.prompt_tokens} tokens"
        return f"{job.cell.label.rpartition('/')[0]}, does {size} fit?"
    if job.kind == "reference":
        return f"{job.cell.model.name} in {job.cell.quant.name}, to compare with"
    return job.cell.label if job.kind == "time" else f"{job.cell.label}, {job.kind}"


def show(ended: Ended) -> None:
    """The table of a sweep, its advice in short, and where to look further."""
    out = terminal.console()
    out.print(terminal.summary(ended.comparison))
    if not ended.interrupted:  # a part of the cells would not be what was asked
        for line in advice.in_short(ended.comparison):
            out.print(line, markup=False)
    say_what_next(ended)


def exit_code(ended: Ended) -> int:
    """What a sweep's outcomes come to."""
    statuses = {result.outcome.status for result in ended.recorder.results}
    if statuses == {"skipped"}:
        say("no cell of this sweep can run here")
        return 2
    if statuses - _SUCCESS_STATUSES:
        return 1
    return 3 if ended.recorder.untracked else 0


def say_what_next(ended: Ended) -> None:
    """Where the results are, and how to look further."""
    recorder, folder = ended.recorder, ended.folder
    if ended.interrupted:
        say("interrupted: what is finished is kept; resume=true on the same command goes on")
    warnings = files.library_warnings(folder, recorder.results)
    for line in warnings[:_MAX_WARNINGS_SHOWN]:
        say(f"a library says: {line}")
    if len(warnings) > _MAX_WARNINGS_SHOWN:
        more = len(warnings) - _MAX_WARNINGS_SHOWN
        say(f"and {more} lines more, in the log.txt of the cells")
    say(f"results: {from_here(folder)}")
    if (folder / "report.html").is_file():
        say(f"report: {from_here(folder / 'report.html')}")
    if recorder.untracked:
        say(f"not all of it is tracked: {recorder.untracked}")
        say(f"send it later: python -m bench push {shlex.quote(from_here(folder))}")
    elif recorder.tracker is not None:
        say(f"look further: {recorder.tracker.how_to_look}")
