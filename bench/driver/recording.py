"""What a running sweep writes, as it comes: folder, records, report, and MLflow's mirror.

Whatever ends the sweep, what is there is recorded to its end.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.analysis.columns import varying_columns
from bench.analysis.comparison import Comparison, compare
from bench.config.prompt_file import own_files
from bench.config.settings import Settings, Tracking
from bench.driver.lock import ignore_signals, signals_deferred
from bench.driver.policy import Job, Records, wants_answers
from bench.driver.provenance import diff
from bench.driver.worker import Timing, take
from bench.meter.nvml import other_processes, used_bytes, wait_until_free
from bench.record.redact import redacted
from bench.record.result import Result, is_timed
from bench.record.sweep import Provenance, Spread, Sweep
from bench.report import terminal
from bench.report.terminal import say
from bench.store import files

if TYPE_CHECKING:  # it imports mlflow, which takes over a second: only once the input is checked
    from bench.store.recorder import Recorder


Report = Callable[[Path, Comparison], list[Path]]  # draws a sweep's report, gives its files


@dataclass(frozen=True, slots=True)
class Request:
    """What a sweep was asked for, besides its cells."""

    settings: Settings
    outputs: Path  # settings.output_dir, absolute
    overrides: tuple[str, ...]  # as typed
    code: Provenance  # of what is running, whatever is edited while it waits
    reproduces: str | None = None  # the run or sweep that this one repeats

    def sweep(self, records: Records, sweep_id: str) -> Sweep:
        """The record of the sweep of these cells."""
        return Sweep(
            sweep_id=sweep_id,
            started_at=time.time(),
            overrides=self.overrides,
            tracking=_where(self.settings.tracking),
            baseline=self.settings.baseline,
            margin=self.settings.margin,
            calibration=_calibration(list(records.results.values())),
            cells=tuple(records.results),
            provenance=self.code,
            columns=tuple(varying_columns([result.cell for result in records.results.values()])),
            reproduces=self.reproduces,
            price_per_hour=self.settings.price_per_hour,
        )


def open_sweep(records: Records, request: Request) -> tuple["Recorder", Path]:
    """The sweep's folder with what is known before its first cell, and its run in MLflow."""
    from bench.store.recorder import Recorder

    folder = files.new_folder(request.outputs)
    sweep = request.sweep(records, folder.name)
    files.write_sweep(folder, sweep)
    files.write_inputs(folder, _inputs(list(records.results.values())))
    if request.settings.tracking.diff:
        # Latin 1 gives every byte a character and takes it back: a patch may be of files in any
        # encoding.
        patch = str(redacted(diff().decode("latin-1"))).encode("latin-1")
        files.write_aside(folder / files.DIFF, patch)
    recorder = Recorder(folder, sweep, request.outputs)
    if recorder.untracked:
        say(f"{recorder.untracked}; the sweep goes on, results are kept in {folder}")
    return recorder, folder


def _where(tracking: Tracking) -> Tracking:
    """With the store that `mlflow run` has opened a run in, so that ``push`` finds it again."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") if "MLFLOW_RUN_ID" in os.environ else None
    return replace(tracking, uri=tracking.uri or uri)


def _calibration(results: Sequence[Result]) -> Mapping[str, Spread]:
    """This host's spread between processes, if it was found on the device that the cells run on."""
    host = results[0].host
    is_same = all(result.cell.device == host.device for result in results)
    return files.read_calibration(host) if is_same else {}


def _inputs(results: Sequence[Result]) -> dict[str, bytes]:
    """By name, what models read in these cells; the user's own only where it may be stored.

    Raises:
        ConfigError: when a file of the user's has changed since it was asked for.
    """
    cells = [result.cell for result in results]
    texts = {name for cell in cells for name in cell.quality.texts if name in paths.TEXTS}
    texts |= {cell.workload.text for cell in cells if cell.workload.text is not None}
    prompts = {cell.quality.prompts for cell in cells if cell.workload.path is None} - {None}
    shipped = [paths.TEXTS[name] for name in texts]
    shipped += [paths.PROMPT_SETS[name] for name in prompts if name is not None]
    choices = {cell.quality.choices for cell in cells} - {None}
    shipped += [paths.CHOICE_SETS[name] for name in choices if name is not None]
    own = own_files(cells) if all(cell.quality.store_prompts for cell in cells) else {}
    return {file.name: file.read_bytes() for file in shipped} | own


class Recording:
    """What a running sweep writes, as it comes."""

    def __init__(
        self, records: Records, recorder: "Recorder", folder: Path, report: Report
    ) -> None:
        self.records, self.recorder, self.folder = records, recorder, folder
        self._report = report
        self.interrupted = False
        self._began = time.monotonic()  # the clock of the day may be set meanwhile
        self.comparison = compare([], recorder.sweep)
        hosts = [result.host for result in records.results.values()]
        host = next((host for host in hosts if host.device_uuid is not None), hosts[0])
        self._device = host.device_uuid, host.device_name
        self._held_before = used_bytes(host.device_uuid)

    def begin(self) -> None:
        """Keep what is there already, and name who else is on the device."""
        results = self.records.results
        for key, result in results.items():
            results[key] = replace(result, sweep_id=self.folder.name)
            if is_timed(result) or result.measurements:
                self._keep(key)
        reused = sum(r.reused_from is not None and is_timed(r) for r in results.values())
        if reused:
            say(
                f"{reused} of {len(results)} cells have a result already"
                " (resume=false measures them again)"
            )
        uuid, name = self._device
        for other in other_processes(uuid, []) if uuid is not None else []:
            who = other.name or "a process"
            say(f"{name} is in use by {who} (pid {other.pid}): it disturbs what is measured")

    def keep(self, job: Job, value: Any, timing: Timing, log: Path) -> None:
        """What came out of a job."""
        files.hide_secrets(log)
        with signals_deferred():
            for key in take(self.records, job, value, timing):
                self._keep(key)
        uuid, name = self._device
        if held := wait_until_free(uuid, self._held_before):
            label = job.cell.label
            say(f"{held / 2**20:.0f} MiB of {name} stay in use after {label}: other processes?")
            assert self._held_before is not None
            self._held_before += held  # the new level: no later cell waits for it again

    def changed(self, key: str) -> None:
        """Write the record of a cell that is another now."""
        with signals_deferred():
            self._keep(key)

    def _keep(self, key: str) -> None:
        result = self.records.results[key]
        self.recorder.keep(result, self._is_finished(result))

    def _is_finished(self, result: Result) -> bool:
        """Whether nothing more is wanted of a cell."""
        has_answers = result.answers is not None or not wants_answers(result.cell)
        return is_timed(result) and (has_answers or not result.measurements)

    def end(self, status: str) -> None:
        """Analyse, report, and end the sweep where it is tracked."""
        ended_at = self.recorder.sweep.started_at + time.monotonic() - self._began
        results = self.recorder.results
        predictions = files.read_predictions(self.folder, results)
        earlier = files.read_growths(self.folder)
        self.comparison = compare(results, self.recorder.sweep, predictions, earlier)
        report: list[Path] = []
        try:
            if status == "FINISHED":  # a Ctrl-C ends at once
                report = self._report(self.folder, self.comparison)
        finally:
            summary = terminal.as_text(self.comparison)
            self.recorder.close(status, ended_at, self.comparison, report, summary)
        files.write_growths(self.folder, [each.growth for each in self.comparison.deep])


@contextlib.contextmanager
def recording_of(
    records: Records, recorder: "Recorder", folder: Path, report: Report
) -> Iterator[Recording]:
    """Whatever ends the block, what is there is recorded to its end."""
    recording = Recording(records, recorder, folder, report)
    status = "KILLED"
    try:
        yield recording
        status = "KILLED" if recording.interrupted else "FINISHED"
    except KeyboardInterrupt:
        recording.interrupted = True
    finally:
        ignore_signals()
        recording.end(status)
