"""What ``bench choose`` has said, as a later sweep can score it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.config.parse import POSITIVE, within


@dataclass(frozen=True, slots=True)
class ConfigurationPrediction:
    """Of one configuration that was in question. Units: seconds, bytes."""

    name: str
    # Less than it no decode step takes: reading the weights once; None: not known
    floor_s: float | None = field(metadata=POSITIVE)
    least_bytes: int | None = field(metadata=POSITIVE)  # weights and KV cache; None: not known
    # Ends of the 95 % interval of a process's least time, by metric; of what was confirmed
    intervals_s: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class ChoicePrediction:
    """A choice: which configuration, of which, for what, and how sure."""

    sweep_id: str
    goal: str
    limits: Mapping[str, float]
    margin: float = field(metadata=POSITIVE)
    best: str | None  # digest of the configuration; None: nothing keeps the limits
    # That it is right; None: some never ran, or nothing keeps the limits
    chance: float | None = field(metadata=within(minimum=0, maximum=1))
    configurations: Mapping[str, ConfigurationPrediction]  # by digest
