"""``python -m bench gate CURRENT --baseline RUN_OR_SWEEP``: exit code 1 when something has become
slower, 4 when a result cannot be read, else 0."""

from collections.abc import Sequence
from pathlib import Path

from bench.analysis.differences import hosts
from bench.analysis.verdict import slowdowns
from bench.errors import StoreError
from bench.paths import from_here
from bench.record.result import Result
from bench.report.reproduced import gate_lines
from bench.report.terminal import say_damage
from bench.store.files import Stored, read_place


def gate(current: Path, baseline: Path, threshold: float) -> int:
    """Print what has become slower by more than ``threshold`` (0.05: 5 %); returns the exit code.

    Args:
        current, baseline: folders of a sweep, or of one of its cells.
    Raises:
        StoreError: when one of them is not a sweep's or run's, or no cell is in both.
    """
    here, there = read_place(current), read_place(baseline)
    changes = slowdowns(here.results, there.results, threshold, here.sweep.calibration)
    for stored in (there, here):
        say_damage(stored)
    if not changes:
        raise StoreError(
            f"no cell of {from_here(baseline)} that has a number is in {from_here(current)}:"
            " nothing to compare"
        )
    elsewhere = hosts(there.results[0].host, here.results[0].host)
    if elsewhere:
        print("the two ran on different machines or versions:", "; ".join(map(str, elsewhere)))
    missing = _missing(current, here, there.results)
    for label in missing:
        print(f"{label}: had a number in the baseline; the sweep ended before it was measured")
    for line in gate_lines(changes, threshold):
        print(line)
    if missing or any(change.word in ("regression", "lost") for change in changes):
        return 1
    return 4 if there.damaged or here.damaged else 0


def _missing(current: Path, here: Stored, then: Sequence[Result]) -> list[str]:
    """Cells of the baseline that the current sweep was to measure and did not come to."""
    if (current / "result.json").is_file():  # one cell was asked about
        return []
    missing = set(here.sweep.cells) - {r.cell_id for r in here.results} - set(here.damaged)
    return [r.cell.label for r in then if r.measurements and r.cell_id in missing]
