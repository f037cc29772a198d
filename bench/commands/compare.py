"""``python -m bench compare SWEEP SWEEP...``: sweeps side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.analysis.choice_score import score
from bench.analysis.metrics import derive
from bench.analysis.side_by_side import SideBySide, side_by_side
from bench.analysis.two_sweeps import Side
from bench.commands.parsers import command_parser, take_margin
from bench.errors import ConfigError, StoreError
from bench.paths import from_here
from bench.report.side_by_side import LETTERS, summary
from bench.report.terminal import console, say_damage
from bench.store.files import read_choice, read_place, sweep_folder


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = command_parser("compare", "Sweeps, hosts or commits side by side.")
    parser.add_argument(
        "sweeps",
        nargs="+",
        metavar="SWEEP",
        help="two or more: folder of a sweep or of one of its cells, or a sweep's name in"
        " DIR/sweeps; the others are compared with the first",
    )
    take_margin(parser)
    given = parser.parse_args(arguments)
    return compare([sweep_folder(name, given.output_dir) for name in given.sweeps], given.margin)


def compare(folders: Sequence[Path], margin: float) -> int:
    """Print sweeps, or single cells of them, beside the first; returns the exit code.

    Args:
        margin: relative difference of times that counts as none (0.03: 3 %).
    Raises:
        ConfigError: when one of them cannot be read, or no cell is in two of them.
    """
    sides = _sides(folders)
    scores = _scores(folders, sides)
    for line in scores:
        print(line)
    console().print(summary(_side_by_side(sides, margin, may_be_empty=bool(scores))))
    return 0


def _scores(folders: Sequence[Path], sides: Sequence[Side]) -> list[str]:
    """How the choices among sweeps stand in those that are measured after them, a line each."""
    lines = []
    for folder, made in zip(folders, sides, strict=True):
        try:
            prediction = read_choice(folder)
        except StoreError as error:
            raise ConfigError([str(error)]) from error
        if prediction is None:
            continue
        for later in sides:
            if later.sweep.started_at > made.sweep.started_at:
                values = {result.cell_id: derive(result) for result in later.results}
                found = score(prediction, later.results, values, later.sweep.calibration)
                lines += [] if found is None else [str(found)]
    return lines


def compared(folders: Sequence[Path], margin: float) -> SideBySide:
    """Sweeps beside the first of them; what cannot be read is named. Raises: as ``compare``."""
    return _side_by_side(_sides(folders), margin)


def _sides(folders: Sequence[Path]) -> list[Side]:
    """What lies in different folders. Raises: ConfigError where that is not so."""
    if not 2 <= len(folders) <= len(LETTERS):
        raise ConfigError([f"sweeps to compare: want 2 to {len(LETTERS)}, got {len(folders)}"])
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError([f"{from_here(folder)}: given twice; want different sweeps"])
    try:
        return [side(folder) for folder in folders]
    except StoreError as error:
        raise ConfigError([str(error)]) from error


def _side_by_side(sides: Sequence[Side], margin: float, may_be_empty: bool = False) -> SideBySide:
    """``may_be_empty``: that no cell is in two of them is no mistake."""
    found = side_by_side(sides, margin)
    if not found.rows and not may_be_empty:
        what = "a cell is all that was asked for, from model to measure"
        if found.apart:
            what = f"cells of one name differ in {', '.join(found.apart)}"
        raise ConfigError([f"no cell is in two of these sweeps: nothing to compare; {what}"])
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
