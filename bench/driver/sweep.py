"""From a list of asked cells to results: plan, run each job in a fresh process, record, summarize.

All cells are known and valid before the first one runs. What ends a cell never ends the sweep; what
ends the sweep (Ctrl-C, SIGTERM) never loses a process that is finished, and a later sweep of the
same cells takes up from there.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis.columns import unknown_baseline
from bench.analysis.comparison import Comparison, compare
from bench.analysis.footprint import predict
from bench.config.cell import Cell, EngineChoice, cell_id, sample_key
from bench.config.settings import Config, Settings
from bench.driver import plan
from bench.driver.lock import (
    machine_lock,
    signals_as_interrupts,
)
from bench.driver.places import try_places
from bench.driver.plan import with_attention
from bench.driver.policy import (
    Job,
    Records,
    grid,
    predicted_size,
    wants_divergence,
)
from bench.driver.probe import (
    Probe,
    descriptions_of,
    find_peaks,
    hosts_of,
    resolved,
    start_server,
)
from bench.driver.process import run_isolated
from bench.driver.provenance import provenance, weights_of
from bench.driver.recording import Report, Request, open_sweep, recording_of
from bench.driver.worker import PhaseTimes, Worker, begin, task_of
from bench.engine import sources
from bench.errors import CellFailure, ConfigError
from bench.paths import cache_folder, from_here
from bench.record.result import Host, Peaks, Result, is_timed
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


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine as the engines of a sweep see it, and what the models are."""

    hosts: Mapping[str, Host]  # by engine
    descriptions: Mapping[str, Any]

    def begun(self, asked: Sequence[Cell]) -> Records:
        """What is known of each cell before anything has run."""
        records = Records({}, self.hosts, self.descriptions)
        for cell, here in zip(asked, resolved(asked, self.hosts), strict=True):
            here = with_attention(here, records.description(here))
            result = _begun(cell, here, records)
            records.results[result.cell_id] = result
        return records

    def records(self, asked: Sequence[Cell], settings: Settings, outputs: Path) -> Records:
        """What is known of each cell before this sweep, by earlier ones too."""
        records = self.begun(asked)
        for key, result in records.results.items():
            resume = result.cell.measure.resume if settings.resume is None else settings.resume
            if result.outcome.status == "ok" and resume:
                result = _resumed(result, outputs)
                records.results[key] = result
            if result.answers is not None:
                records.answers.setdefault(sample_key(result.cell), result.answers)
        return records


def look_around(asked: Sequence[Cell], probe: Probe, with_mlflow: bool) -> Machine:
    """Start what starts processes, and ask in throwaway ones what is here."""
    for cell in asked:
        if cell.model.path is not None:
            probe.show(f"reading {cell.model.path}")
        elif sources.is_hub(cell.model):
            probe.show(f"asking the hub for {cell.model.repo}")
        weights_of(cell)
        if sources.is_gguf(cell.model) and sources.cached(cell.model) is None:
            say(
                f"{cell.model.path} is converted to fp32 safetensors once, kept in {cache_folder()}"
            )
    engines = list({cell.engine.name: cell.engine for cell in asked}.values())
    if any(map(wants_divergence, asked)) and plan.USUAL_ENGINE not in {e.name for e in engines}:
        engines.append(EngineChoice(plan.USUAL_ENGINE))
    if probe.worker is run_isolated:
        start_server(engines, probe.show, with_mlflow)
    hosts = hosts_of(engines, probe)
    cells = resolved(asked, hosts)
    return Machine(hosts, descriptions_of(cells, hosts, probe))


def _resumed(begun: Result, outputs: Path) -> Result:
    """What an earlier sweep measured of the cell, or the cell as it is."""
    earlier = files.find_earlier(outputs, begun.cell_id, begun.resume_key)
    if earlier is None:
        return begun
    # What does not make it another cell is as it is now: limits, where files lie, what is kept
    cell = begun.cell
    limits = replace(earlier.cell.measure, limits_s=cell.measure.limits_s)
    here = replace(earlier.cell, measure=limits, workload=cell.workload, quality=cell.quality)
    return replace(earlier, asked=begun.asked, cell=here)


def _begun(asked: Cell, cell: Cell, records: Records) -> Result:
    """A cell of which nothing is known, or why it cannot run."""
    host, description = records.hosts[cell.engine.name], records.description(cell)
    obstacle = plan.why_not(cell, host, description)
    if obstacle is not None:
        return begin(asked, cell, host, outcome=obstacle)
    result = replace(begin(asked, cell, host), lines=plan.engine_of(cell).lines(cell))
    if description is None or cell.is_to_be_sized:
        return result
    return replace(result, predicted_bytes=predict(cell, description).least_bytes)


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


def add_peaks(records: Records, probe: Probe) -> None:
    """What the device can do at most, beside each cell that will run; asked once for each number of
    threads."""
    known: dict[tuple[str, str, int], Peaks | None] = {}
    for key, result in records.results.items():
        if is_timed(result):
            continue
        cell = result.cell
        place = cell.engine.name, cell.device, int(cell.threads)
        if place not in known:
            known[place] = find_peaks(cell.engine, result.host, *place[1:], probe)
        records.results[key] = replace(result, peaks=known[place])


def show(ended: Ended) -> None:
    """The table of a sweep, its advice in short, and where to look further."""
    out = terminal.console()
    out.print(terminal.summary(ended.comparison))
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
    warnings = files.library_warnings(folder)
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
