"""Has something become slower since another sweep? One-sided, for a gate that must not cry wolf.

Cells are matched by ``cell_id``, so only equal configurations are compared. The readings are
processes, as everywhere; because two sweeps ran at different times, what differs between the passes
of one sweep counts as noise too (no blocks). A cell is a regression when the lower end of its
slowdown, at 95 % for all comparisons together, lies beyond the threshold; and when it has no number
any more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.analysis.comparison import COMPARED
from bench.analysis.readings import process_times_s
from bench.analysis.stats import ALPHA, t_quantile
from bench.analysis.verdict import Spread, spread
from bench.record.result import Result

Word = Literal["regression", "no regression", "cannot tell", "lost"]


@dataclass(frozen=True, slots=True)
class Change:
    """One cell in one metric, now against then. ``slowdown``: 1.1 takes 10 % longer; None where
    there is no number."""

    label: str
    metric: str
    slowdown: float | None
    low: float | None  # None: no noise to compare with
    word: Word


def changes(
    current: Sequence[Result],
    baseline: Sequence[Result],
    threshold: float,
    calibration: Mapping[str, Spread],
) -> list[Change]:
    """Every cell that has a number in the baseline and was asked for now, metric by metric."""
    now = {result.cell_id: result for result in current}
    pairs = [
        (now[then.cell_id], then) for then in baseline if then.measurements and then.cell_id in now
    ]
    lost = [
        Change(after.cell.label, "outcome", None, None, "lost")
        for after, _ in pairs
        if not after.measurements
    ]
    kept = [(after, then) for after, then in pairs if after.measurements]
    found: list[Change] = []
    for metric in COMPARED:
        logs = [(_logs(after, metric), _logs(then, metric)) for after, then in kept]
        noise = spread([row for pair in logs for row in pair], blocked=False) or calibration.get(
            metric
        )
        for (after, _), (late, early) in zip(kept, logs, strict=True):
            slowdown = fmean(late) - fmean(early)
            if noise is None:
                found.append(
                    Change(after.cell.label, metric, math.exp(slowdown), None, "cannot tell")
                )
                continue
            error = noise.deviation * math.sqrt(1 / len(late) + 1 / len(early))
            low = slowdown - error * t_quantile(1 - ALPHA / (len(kept) * len(COMPARED)), noise.df)
            word: Word = "regression" if low > math.log1p(threshold) else "no regression"
            found.append(Change(after.cell.label, metric, math.exp(slowdown), math.exp(low), word))
    return lost + found


def _logs(result: Result, metric: str) -> list[float]:
    return [math.log(value) for value in process_times_s(result.measurements)[metric]]
