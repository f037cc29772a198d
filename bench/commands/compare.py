"""``python -m bench compare SWEEP SWEEP...``: sweeps side by side; ``report`` writes the same as a
page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.analysis.side_by_side import SideBySide, side_by_side
from bench.analysis.two_sweeps import Side
from bench.errors import ConfigError, StoreError
from bench.paths import from_here
from bench.report.side_by_side import LETTERS, summary
from bench.report.side_by_side_page import write_comparison
from bench.report.terminal import console, say_damage
from bench.store.files import read_place


def compare(folders: Sequence[Path], margin: float) -> int:
    """Print sweeps, or single cells of them, beside the first; returns the exit code.

    Args:
        margin: relative difference of times that counts as none (0.03: 3 %).
    Raises:
        ConfigError: when one of them cannot be read, or no cell is in two of them.
    """
    console().print(summary(_compared(folders, margin)))
    return 0


def report(folders: Sequence[Path], margin: float, into: Path | None) -> list[Path]:
    """Write the same as a page, a ticket and a table; returns the files.

    Args:
        into: where to; None: into the newest of the sweeps.
    Raises:
        ConfigError: as ``compare``, and when nothing can be written there.
    """
    found = _compared(folders, margin)
    started_at = [side.sweep.started_at for side in found.sides]
    newest = folders[started_at.index(max(started_at))]
    try:
        return write_comparison(newest if into is None else into, found)
    except StoreError as error:
        raise ConfigError([str(error)]) from error


def _compared(folders: Sequence[Path], margin: float) -> SideBySide:
    if not 2 <= len(folders) <= len(LETTERS):
        raise ConfigError([f"sweeps to compare: want 2 to {len(LETTERS)}, got {len(folders)}"])
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError([f"{from_here(folder)}: given twice; want different sweeps"])
    try:
        found = side_by_side([side(folder) for folder in folders], margin)
    except StoreError as error:
        raise ConfigError([str(error)]) from error
    if not found.rows:
        raise ConfigError(
            [
                "no cell is in two of these sweeps: nothing to compare; a cell is all that was"
                " asked for, from model to measure"
            ]
        )
    return found


def side(folder: Path) -> Side:
    """A sweep, or one cell of it, that is to be compared; what cannot be read is named.

    Raises:
        StoreError: when it is neither.
    """
    stored = read_place(folder)
    say_damage(stored)
    results = tuple(stored.results)
    is_cell = (folder / "result.json").is_file()
    asked = (results[0].cell_id,) if is_cell else stored.sweep.cells
    return Side(replace(stored.sweep, cells=asked), results, stored.damaged)
