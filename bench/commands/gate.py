"""``python -m bench gate CURRENT --baseline RUN_OR_SWEEP``: exit code 1 when something has become
slower, else 0."""

from collections.abc import Sequence
from pathlib import Path

from bench.analysis.regression import Change, changes
from bench.errors import StoreError
from bench.record.result import Result
from bench.store.files import read_place, read_sweep

_NAMES = {"tpot_s": "TPOT", "ttft_s": "TTFT", "outcome": "outcome"}


def gate(current: Path, baseline: Path, threshold: float) -> int:
    """Print what has become slower by more than ``threshold`` (0.05: 5 %); returns the exit code.

    Args:
        current, baseline: folders of a sweep, or of one of its cells.
    Raises:
        StoreError: when one of them is not a sweep's or run's, or no cell is in both.
    """
    sweep, now = read_place(current)
    _, then = read_place(baseline)
    found = changes(now, then, threshold, sweep.calibration)
    if not found:
        raise StoreError(
            f"no cell of {baseline} that has a number is in {current}: nothing to compare"
        )
    if now[0].host != then[0].host:
        print("the two ran on different machines or versions:", _difference(now[0], then[0]))
    lost = _not_reached(current, now, then)
    for label in lost:
        print(f"{label}: had a number in the baseline; the sweep ended before it was measured")
    worse = [each for each in found if each.word in ("regression", "lost")]
    for each in worse:
        print(_sentence(each, threshold))
    unclear = sum(each.word == "cannot tell" for each in found)
    if unclear:
        print(
            f"{unclear} comparisons cannot be told: one process each; measure=standard, or doctor"
            " --calibrate once"
        )
    cells = len({each.label for each in found})
    print(
        f"{len(worse)} regressions beyond {threshold:.0%} in {len(found)} comparisons of {cells}"
        " cells"
    )
    return 1 if worse or lost else 0


def _not_reached(current: Path, now: Sequence[Result], then: Sequence[Result]) -> list[str]:
    """Cells of the baseline that the current sweep was to measure and did not come to."""
    if not (current / "sweep.json").is_file():  # one cell was asked about
        return []
    missing = set(read_sweep(current).cells) - {result.cell_id for result in now}
    return [each.cell.label for each in then if each.measurements and each.cell_id in missing]


def _sentence(change: Change, threshold: float) -> str:
    if change.slowdown is None or change.low is None:
        return f"{change.label}: had a number in the baseline and has none now"
    return (
        f"{change.label}: {_NAMES[change.metric]} takes {change.slowdown:.2f} times as long, at"
        f" least {change.low:.2f}"
    )


def _difference(now: Result, then: Result) -> str:
    fields = [
        name
        for name in type(now.host).__slots__
        if getattr(now.host, name) != getattr(then.host, name)
    ]
    return ", ".join(
        f"{name} {getattr(then.host, name)} -> {getattr(now.host, name)}" for name in fields
    )
