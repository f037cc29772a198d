"""``python -m bench import FILE...``: what other tools measured, beside the cells of a sweep.

The files are read first, all of them, and nothing is written when one cannot be. The sweep's folder
keeps what they say, its report shows it, and MLflow has it where the sweep is tracked. What comes
from the same file a second time takes the place of the first.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.analysis.foreign import read
from bench.errors import ConfigError, StoreError, TrackingError
from bench.paths import from_here
from bench.record.foreign import Foreign
from bench.record.redact import HIDDEN
from bench.record.sweep import Sweep
from bench.report import terminal
from bench.report.page import write_report
from bench.report.terminal import say
from bench.store import foreign as imported
from bench.store.files import read_sweep


def import_files(files: Sequence[Path], folder: Path) -> int:
    """Import files into a sweep's folder; returns the exit code: 0, or 3 where MLflow did not take
    them.

    Raises:
        ConfigError: when a file cannot be read, or is in no format that is known.
        StoreError: when a record in the folder cannot be read, or nothing can be written.
    """
    new = _read(files)
    try:
        read_sweep(folder)
    except StoreError as error:
        raise ConfigError([str(error)]) from error
    everything = imported.add(folder, new)
    comparison = terminal.compared(folder)
    report = write_report(folder, comparison)
    terminal.console().print(terminal.summary(comparison))
    names = ", ".join(dict.fromkeys(of.file for of in new))
    say(f"imported: {len(new)} configurations of {names}; foreign, not attested")
    say(f"report: {from_here(folder / 'report.html')}")
    if not comparison.sweep.tracking.enabled:
        return 0
    try:
        _track(folder, comparison.sweep, everything, report)
    except TrackingError as error:
        say(f"not all of it is tracked: {error}")
        say(f"send it later: python -m bench push {shlex.quote(from_here(folder))}")
        return 3
    return 0


def _read(files: Sequence[Path]) -> list[Foreign]:
    """What all of them say. Raises: ConfigError with a line for each that cannot be read."""
    new: list[Foreign] = []
    problems: list[str] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            new += read(text, f"{file.parent.name}/{file.name}")
        except OSError as error:
            problems.append(f"{from_here(file)}: cannot be read ({error.strerror})")
        except UnicodeDecodeError:
            problems.append(f"{from_here(file)}: no text in UTF-8")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return new


def _track(
    folder: Path, sweep: Sweep, everything: Sequence[Foreign], report: Sequence[Path]
) -> None:
    from bench.store.database import tracking_uri
    from bench.store.mlflow import Tracker  # imports mlflow, for a second

    outputs = folder.resolve().parent.parent  # outputs/sweeps/ID
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri(sweep.tracking, outputs)
    if HIDDEN in uri:
        raise TrackingError(f"{uri}: passwords are not kept; want the whole address in"
                            " MLFLOW_TRACKING_URI")  # fmt: skip
    tracker = Tracker(uri, outputs, folder, sweep)
    tracker.find()
    tracker.log_foreign(everything, [*report, folder / imported.NAME])
