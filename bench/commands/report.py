"""``python -m bench report [SWEEP ...]``: a sweep's report again, or several sweeps at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from bench.commands.compare import compared as side_by_side_of
from bench.commands.parsers import command_parser, take_margin, take_price, typed_path
from bench.errors import ConfigError, StoreError
from bench.paths import from_here
from bench.report.page import EXCHANGE, write_report
from bench.report.side_by_side_page import write_comparison
from bench.report.terminal import compared
from bench.store.files import sweep_folder


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = command_parser(
        "report", "Write a sweep's report (again), or of several side by side: HTML, Markdown, CSV."
    )
    parser.add_argument(
        "sweeps",
        nargs="*",
        metavar="SWEEP",
        help="folder of a sweep, or its name in DIR/sweeps; the newest one there if left out;"
        " several: side by side, as comparison.html",
    )
    take_price(parser)
    take_margin(parser)
    parser.add_argument(
        "--into",
        type=typed_path,
        metavar="FOLDER",
        help="of several sweeps: where to write; default: the newest of them",
    )
    given = parser.parse_args(arguments)
    folders = [sweep_folder(name, given.output_dir) for name in given.sweeps or (None,)]
    if len(folders) > 1 and given.price_per_hour is not None:
        raise ConfigError(["--price-per-hour: goes with one sweep"])
    if len(folders) == 1 and given.into is not None:
        raise ConfigError(["--into: goes with several sweeps"])
    if len(folders) > 1:
        files = _of_several(folders, given.margin, given.into)
    else:
        files = _of_one(folders[0], given.price_per_hour)
    for file in files:
        print(from_here(file))
    if len(folders) == 1 and (folders[0] / EXCHANGE).is_dir():
        print(f"{from_here(folders[0] / EXCHANGE)}/*.json")
    return 0


def _of_one(folder: Path, price_per_hour: float | None) -> list[Path]:
    files = write_report(folder, compared(folder, price_per_hour))
    # By `mlflow run -e report`
    if (run_id := os.environ.get("MLFLOW_RUN_ID")) and "MLFLOW_TRACKING_URI" in os.environ:
        from bench.store.mlflow import keep_report

        keep_report(run_id, folder.name, files)
    return files


def _of_several(folders: Sequence[Path], margin: float, into: Path | None) -> list[Path]:
    """Side by side. ``into``: where to; None: into the newest of the sweeps."""
    found = side_by_side_of(folders, margin)
    started_at = [side.sweep.started_at for side in found.sides]
    newest = folders[started_at.index(max(started_at))]
    try:
        return write_comparison(newest if into is None else into, found)
    except StoreError as error:
        raise ConfigError([str(error)]) from error
