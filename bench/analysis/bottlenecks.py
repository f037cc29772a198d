"""What a decode step spends its time on: shares of a profiled step, and the word for the largest.

After the timed requests of a process one decode step runs under the engine's profiler. The times of
its operators are added up by kind (``operators``) and the kinds by what a person could change about
them. What no operator accounts for is the interpreter and the library's Python (on a GPU: the
device waits for the host). A profiler slows down just that part, so it is not read off the profile:
it is what a timed step takes at least (``readings.least_times_s``) beyond the profiled operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.analysis import operators, readings
from bench.record.measurement import Measurement
from bench.record.result import Result

Cause = Literal[
    "matrix products",
    "attention",
    "dequantization",
    "other operators",
    "interpreter",
    "unclear",
]

_INTERPRETER: Cause = "interpreter"
_OF_KIND: dict[str, Cause] = {  # of ``operators``; those that are not here are other operators
    "matrix product": "matrix products",
    "product with packed weights": "matrix products",
    "attention": "attention",
    "cache copies": "attention",
    "dequantization": "dequantization",
    "activations to int8": "dequantization",  # work that plain weights would not need
    operators.INTERPRETER: _INTERPRETER,
    operators.IDLE: _INTERPRETER,
}
_AS_LARGE = 0.05  # two shares that differ by less are called neither


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What takes most of a decode step, and the share that each part takes."""

    name: Cause
    shares: Mapping[Cause, float]  # largest first

    @property
    def text(self) -> str:
        """The word with its share."""
        largest = next(iter(self.shares))
        return self.name if self.name == "unclear" else f"{self.name} {self.shares[largest]:.0%}"

    @property
    def evidence(self) -> str:
        """All shares."""
        return ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())


def bottleneck(shares: Mapping[Cause, float]) -> Bottleneck:
    """The word for the largest share; ``unclear`` where the next one is as large."""
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    first, second = [*ordered.values(), 0.0][:2]
    name = next(iter(ordered)) if first - second >= _AS_LARGE else "unclear"
    return Bottleneck(name, ordered)


def step_shares(measurement: Measurement) -> dict[Cause, float] | None:
    """Shares of a decode step in one process; None without a profile."""
    profile = measurement.step_profile
    if profile is None:
        return None
    seconds: dict[Cause, float] = {}
    for kind, spent_s in operators.per_step_s(profile).items():
        cause = _OF_KIND.get(kind, "other operators")
        if cause != _INTERPRETER:
            seconds[cause] = seconds.get(cause, 0.0) + spent_s
    busy_s = sum(seconds.values())
    (tpot_s,) = readings.least_times_s([measurement], len(measurement.repeats))["tpot_s"]
    seconds[_INTERPRETER] = max(0.0, tpot_s - busy_s)
    whole_s = sum(seconds.values())
    return {cause: spent_s / whole_s for cause, spent_s in seconds.items()}


def bottlenecks(results: Sequence[Result]) -> dict[str, Bottleneck]:
    """By cell_id, shares averaged over the processes; cells without a profiled step are left
    out."""
    found = {}
    for result in results:
        processes = [s for m in result.measurements if (s := step_shares(m)) is not None]
        causes = dict.fromkeys(cause for shares in processes for cause in shares)
        if processes:
            found[result.cell_id] = bottleneck(
                {cause: fmean(shares.get(cause, 0.0) for shares in processes) for cause in causes}
            )
    return found
