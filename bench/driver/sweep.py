"""From a list of composed cells to results: plan, run each in fresh processes, record, summarize.

All cells are known and valid before the first one runs. What ends a cell never ends the sweep; what
ends the sweep (Ctrl-C, SIGTERM) never loses a process that is finished, and a later sweep of the
same cells takes up from there.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import paths
from bench.analysis.comparison import unknown_baseline
from bench.analysis.verdict import Spread
from bench.config.cell import Cell, cell_id
from bench.config.settings import Config, Settings, Tracking
from bench.driver import fit, plan, signals
from bench.driver.lock import machine_lock
from bench.driver.policy import run_all
from bench.driver.probe import look_around, with_peaks
from bench.driver.provenance import diff, provenance
from bench.driver.references import find_references, reference_cell, wants_reference
from bench.driver.resume import resume_key
from bench.driver.worker import begin
from bench.errors import ConfigError
from bench.record.redact import redacted
from bench.record.result import Host, Provenance, Result, is_complete
from bench.report import dry
from bench.report import terminal as table
from bench.report.advice import in_short
from bench.report.progress import ProgressLine
from bench.store import calibration
from bench.store import files as store

# It imports mlflow, which takes over a second: only after the configuration has been checked
if TYPE_CHECKING:
    from bench.store.recorder import Recorder

_MOST_WORDS = 3
_OF_NO_CONCERN = {"ok", "skipped", "oom"}  # outcomes with exit code 0


def run_sweep(configs: Sequence[Config], overrides: Sequence[str]) -> int:
    """Measure every cell; returns the exit code.

    Raises:
        ConfigError: before anything runs.
    """
    settings = _common_settings(configs)
    # Of what is running, whatever is edited while it waits
    outputs, code = writable_outputs(settings), provenance()
    with signals.as_interrupts():
        try:
            with machine_lock(_say), ProgressLine() as progress:
                host = look_around(progress.show, with_mlflow=not settings.dry_run)
                cells = [_resolved(config, host, progress) for config in configs]
                # Two that resolve alike are one
                cells = list({cell_id(cell): cell for cell in cells}.values())
                records = [_begin(cell, host, settings, outputs) for cell in cells]
                ended = (
                    None
                    if settings.dry_run
                    else measure(records, settings, overrides, outputs, progress, code)
                )
        except KeyboardInterrupt:
            _say("interrupted before the first cell")
            return 130
    if ended is None:
        table.console().print(dry.grid(records, outputs))
        return 0
    show(ended)
    return 130 if ended.interrupted else _exit_code(ended.recorder)


def _common_settings(configs: Sequence[Config]) -> Settings:
    settings = configs[0].settings
    if any(config.settings != settings for config in configs):
        raise ConfigError(
            [
                "tracking, baseline, output_dir, margin, resume, profile and dry_run are no axes:"
                " want one value of each"
            ]
        )
    problems = unknown_baseline([config.cell for config in configs], settings.baseline)
    if problems:
        raise ConfigError(problems)
    return settings


def writable_outputs(settings: Settings) -> Path:
    """The folder for everything that a run writes, made if need be. Raises: ConfigError when that
    fails."""
    outputs = Path(settings.output_dir).absolute()
    try:
        (outputs / "sweeps").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            [f"output_dir={settings.output_dir}: cannot write there ({error.strerror})"]
        ) from error
    return outputs


@dataclass(frozen=True, slots=True)
class Ended:
    """A sweep that is over, by itself or by the user."""

    recorder: "Recorder"
    folder: Path
    interrupted: bool


def measure(
    records: Sequence[Result],
    settings: Settings,
    overrides: Sequence[str],
    outputs: Path,
    progress: ProgressLine,
    code: Provenance,
    reproduces: str | None = None,
) -> Ended:
    """Run what is incomplete in ``records``, all of them on this host, and record everything.

    Args:
        reproduces: the run or sweep that this one repeats.
    """
    records = with_peaks(records, progress.show)
    references = find_references(records, settings.baseline.quant, progress.show)
    recorder, folder = _open(records, settings, overrides, outputs, code, reproduces)
    return Ended(
        recorder, folder, run_all(records, references, settings.profile, folder, recorder, progress)
    )


def show(ended: Ended) -> None:
    """The table of a sweep, its advice in short, and where to look further."""
    recorder, out = ended.recorder, table.console()
    out.print(table.summary(recorder.results, recorder.sweep))
    for line in in_short(recorder.results, recorder.sweep):
        out.print(line, markup=False)
    say_what_next(recorder, ended.folder)


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
    """What is known of a cell before this sweep: nothing, why it cannot run here, or what an
    earlier sweep measured."""
    obstacle = plan.why_not(cell, host)
    if obstacle is not None:
        return begin(cell, host, "", obstacle)
    resume = cell.measure.resume if settings.resume is None else settings.resume
    earlier = store.find_earlier(outputs, cell_id(cell), resume_key(cell, host)) if resume else None
    if earlier is None or (
        earlier.outcome.status == "ok" and _lacks(earlier, cell, host, settings)
    ):
        return begin(cell, host, "")
    return replace(earlier, cell=cell)  # limits may be others now


def _lacks(earlier: Result, cell: Cell, host: Host, settings: Settings) -> bool:
    """Whether something that is asked for now was not read then: it takes a process again."""
    if settings.profile and earlier.profile is None:
        return True
    is_due = (
        wants_reference(cell) and reference_cell(cell, host, settings.baseline.quant) is not None
    )
    return is_complete(earlier) and is_due and earlier.divergence is None


def _open(
    records: Sequence[Result],
    settings: Settings,
    overrides: Sequence[str],
    outputs: Path,
    code: Provenance,
    reproduces: str | None,
) -> tuple["Recorder", Path]:
    from bench.store.recorder import Recorder

    folder = store.new_folder(outputs)
    sweep = store.Sweep(
        sweep_id=folder.name,
        started_at=time.time(),
        overrides=tuple(overrides),
        tracking=_where(settings.tracking),
        baseline=settings.baseline,
        margin=settings.margin,
        calibration=_calibration(records),
        cells=tuple(record.cell_id for record in records),
        provenance=code,
        reproduces=reproduces,
    )
    store.write_sweep(folder, sweep)
    store.write_inputs(folder, _inputs(records))
    if settings.tracking.diff:
        # Latin 1 gives every byte a character and takes it back: a patch may be of files in any
        # encoding.
        store.write_aside(
            folder / store.DIFF, str(redacted(diff().decode("latin-1"))).encode("latin-1")
        )
    recorder = Recorder(folder, sweep, outputs)
    if recorder.untracked:
        _say(f"{recorder.untracked}; the sweep goes on, results are kept in {folder}")
    return recorder, folder


def _where(tracking: Tracking) -> Tracking:
    """With the store that `mlflow run` has opened a run in, so that ``push`` finds it again."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") if "MLFLOW_RUN_ID" in os.environ else None
    return replace(tracking, uri=tracking.uri or uri)


def _calibration(records: Sequence[Result]) -> Mapping[str, Spread]:
    """This host's spread between processes, if it was found on the device that the cells run on."""
    host = records[0].host
    return (
        calibration.read(host)
        if all(record.cell.device == host.device for record in records)
        else {}
    )


def _exit_code(recorder: "Recorder") -> int:
    statuses = {result.outcome.status for result in recorder.results}
    if statuses == {"skipped"}:
        _say("no cell of this sweep can run here")
        return 2
    if statuses - _OF_NO_CONCERN:
        return 1
    return 3 if recorder.untracked else 0


def say_what_next(recorder: "Recorder", folder: Path) -> None:
    """Where the results are, and how to look further."""
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


def _inputs(records: Sequence[Result]) -> set[Path]:
    """The files that models read in these cells."""
    named = {paths.TEXTS[name] for record in records for name in record.cell.quality.texts}
    named |= {
        paths.TEXTS[name] for record in records if (name := record.cell.workload.text) is not None
    }
    return named | {
        paths.PROMPT_SETS[name]
        for record in records
        if (name := record.cell.quality.prompts) is not None
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)
