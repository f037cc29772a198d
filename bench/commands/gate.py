"""``python -m bench gate CURRENT --baseline RUN_OR_SWEEP``: exit code 1 when something has become
slower, else 0."""

from collections.abc import Sequence
from pathlib import Path

from bench.analysis.differences import hosts
from bench.analysis.verdict import slowdowns
from bench.errors import StoreError
from bench.record.result import Result
from bench.report.reproduced import gate_lines
from bench.store.files import read_place, read_sweep


def gate(current: Path, baseline: Path, threshold: float) -> int:
    """Print what has become slower by more than ``threshold`` (0.05: 5 %); returns the exit code.

    Args:
        current, baseline: folders of a sweep, or of one of its cells.
    Raises:
        StoreError: when one of them is not a sweep's or run's, or no cell is in both.
    """
    sweep, now = read_place(current)
    _, then = read_place(baseline)
    changes = slowdowns(now, then, threshold, sweep.calibration)
    if not changes:
        raise StoreError(
            f"no cell of {baseline} that has a number is in {current}: nothing to compare"
        )
    elsewhere = hosts(then[0].host, now[0].host)
    if elsewhere:
        print("the two ran on different machines or versions:", "; ".join(map(str, elsewhere)))
    missing = _missing(current, now, then)
    for label in missing:
        print(f"{label}: had a number in the baseline; the sweep ended before it was measured")
    for line in gate_lines(changes, threshold):
        print(line)
    is_worse = any(change.word in ("regression", "lost") for change in changes)
    return 1 if is_worse or missing else 0


def _missing(current: Path, now: Sequence[Result], then: Sequence[Result]) -> list[str]:
    """Cells of the baseline that the current sweep was to measure and did not come to."""
    if not (current / "sweep.json").is_file():  # one cell was asked about
        return []
    missing = set(read_sweep(current).cells) - {result.cell_id for result in now}
    return [r.cell.label for r in then if r.measurements and r.cell_id in missing]
