"""What ``bench choose`` has said, as a later sweep can score it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.config.parse import POSITIVE, within


@dataclass(frozen=True, slots=True)
class ConfigurationPrediction:
    """Of one configuration that was in question. Units: seconds."""

    name: str
    # Less than it no decode step takes: reading the weights once; None: not known
    floor_s: float | None = field(metadata=POSITIVE)
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
    chance: float = field(metadata=within(minimum=0, maximum=1))  # that it is right
    configurations: Mapping[str, ConfigurationPrediction]  # by digest
