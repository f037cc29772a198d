"""``python -m bench compare SWEEP SWEEP...``: sweeps side by side."""

from dataclasses import replace
from pathlib import Path

from bench.analysis.two_sweeps import Side
from bench.report.terminal import say_damage
from bench.store.files import read_place


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
