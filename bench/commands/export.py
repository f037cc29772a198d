"""``python -m bench export CELL FOLDER``: a recorded cell's quantized weights as a checkpoint."""

import tempfile
from pathlib import Path

from bench.config.cell import Cell
from bench.driver.probe import start_server
from bench.driver.process import Task, run_isolated
from bench.errors import CellFailure, ConfigError
from bench.report.progress import ProgressLine
from bench.report.terminal import say

_LIMITS_S = {"start": 300.0, "prepare": 3600.0, "load": 600.0, "quality": 1800.0}


def export(cell: Cell, folder: Path) -> int:
    """Write it and say how it compares; returns the exit code.

    Raises:
        ConfigError: where the folder is there already, or the cell is of another engine.
    """
    if folder.exists():
        raise ConfigError([f"{folder}: is there already; want a new folder"])
    if cell.engine.name != "transformers":
        raise ConfigError([f"export: want a cell of engine=transformers, not {cell.engine.name}"])
    task = Task("bench.engine.transformers.own.export:export_cell", (cell, str(folder)), _LIMITS_S)
    with ProgressLine() as progress, tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        start_server([cell.engine], progress.show, with_mlflow=False)
        log = Path(scratch) / "log.txt"
        try:
            said = run_isolated(task, lambda phase, detail: progress.show(detail or phase), log)
        except CellFailure as failure:
            said, code = f"{cell.label}: {failure.reason}", 1
        else:
            code = 0
    say(said)
    return code
