"""Was a choice right? Scored by a later sweep, which has measured the same configurations.

A configuration is the same whatever text, care and questions it was measured with, as long as
model, storage, engine, batch and numbers of tokens are. By the later sweep's readings, as
``advice`` draws plausible values from them, the answer is right with some probability: it keeps the
limits, and no other configuration that was in question is better by more than the margin. Beside
the chance that was stated this says how well a choice knows what it knows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import cast

from bench.analysis.advice import Goal, Limits, contenders, good_in, plausible
from bench.analysis.metrics import peak_memory_bytes
from bench.analysis.readings import fewest_requests, least_times_s
from bench.analysis.stats import sureness
from bench.config.cell import Cell, digest, identity
from bench.record.choice import ChoicePrediction
from bench.record.result import Result
from bench.record.sweep import Spread

_NOT_OF_A_CONFIGURATION = ("measure", "workload", "quality")


def configuration(cell: Cell) -> str:
    """Equal for cells that run the same in the same shape."""
    fields = {n: v for n, v in identity(cell).items() if n not in _NOT_OF_A_CONFIGURATION}
    return digest([fields, cell.workload.prompt_tokens, cell.workload.new_tokens])


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """What a later sweep says of a choice."""

    prediction: ChoicePrediction
    measured: int  # how many of its configurations the sweep has
    right: float | None  # how likely its answer is right; None: that cannot be told
    why_not: str | None  # why it cannot
    unread: tuple[str, ...]  # limits of which the sweep has read nothing: they do not count
    intervals: tuple[int, int]  # how many hold the later reading, of how many
    floors: tuple[int, int]  # how many hold, of how many
    least: tuple[int, int]  # how many take the memory that none can do without, of how many

    def __str__(self) -> str:
        said, of_all = self.prediction, len(self.prediction.configurations)
        begin = f"the choice {said.sweep_id}"
        if said.best is None:
            return f"{begin}: {self.why_not}"
        name = said.configurations[said.best].name
        sure = "some never ran" if said.chance is None else f"{sureness(said.chance)} sure"
        parts = [f"{begin} said {name}, {sure}"]
        if self.right is None:
            parts.append(f"{self.why_not}")
        else:
            parts.append(
                f"by {self.measured} of its {of_all} configurations here it is right,"
                f" {sureness(self.right)} sure"
            )
        if self.unread:
            parts.append(f"not read here, so not asked for: {', '.join(self.unread)}")
        if self.intervals[1]:
            held, of = self.intervals
            parts.append(f"{held} of {of} of its intervals hold the times read here")
        if self.floors[1]:
            held, of = self.floors
            parts.append(f"{held} of {of} steps take at least what reading the weights should")
        if self.least[1]:
            held, of = self.least
            parts.append(f"{held} of {of} take at least the memory of weights and cache")
        return "; ".join(parts)


def score(
    prediction: ChoicePrediction,
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    calibration: Mapping[str, Spread],
) -> ChoiceScore | None:
    """How a choice stands in a later sweep's results; None where nothing of it was measured again.

    Args:
        values: derived, by cell_id.
    """
    later: dict[str, Result] = {}
    for result in results:
        key = configuration(result.asked)
        if result.measurements and key in prediction.configurations:
            later.setdefault(key, result)
    if not later:
        return None
    right = why_not = None
    limits = dict(prediction.limits)
    if any(result.divergence is None for result in later.values()):
        limits.pop("max_kl_nats", None)
    if prediction.best is None:
        why_not = "it found nothing that keeps its limits"
    elif prediction.best not in later:
        why_not = "its answer was not measured here"
    elif len(later) < 2:
        why_not = "nothing else that was in question was measured here"
    else:
        draws = plausible(list(later.values()), values, calibration)
        contending = contenders(draws, Limits(**limits), cast("Goal", prediction.goal))
        good = good_in(contending, prediction.margin).mean(axis=1)
        right = float(good[list(later).index(prediction.best)])
    intervals, floors, least = [], [], []
    requests = fewest_requests(list(later.values()))
    for key, result in later.items():
        of = prediction.configurations[key]
        least_s = {
            metric: geometric_mean(times)
            for metric, times in least_times_s(result.measurements, requests).items()
        }
        intervals += [low <= least_s[m] <= high for m, (low, high) in of.intervals_s.items()]
        floors += [] if of.floor_s is None else [least_s["tpot_s"] >= of.floor_s]
        memory_bytes = peak_memory_bytes(result, values[result.cell_id])
        if of.least_bytes is not None and not math.isnan(memory_bytes):
            least.append(memory_bytes >= of.least_bytes)
    return ChoiceScore(
        prediction,
        len(later),
        right,
        why_not,
        tuple(name for name in prediction.limits if name not in limits),
        (sum(intervals), len(intervals)),
        (sum(floors), len(floors)),
        (sum(least), len(least)),
    )
