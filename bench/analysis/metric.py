"""What a metric is: one row of the table of all numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.record.measurement import Measurement
from bench.record.result import Attestation, Result


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    key: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    doc: str
    value: Callable[[Result, Measurement, Attestation], float | None]
