"""What a sweep is besides its cells: how it was asked for, what it compares, which code ran."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.config.parse import POSITIVE
from bench.config.settings import Baseline, Tracking


@dataclass(frozen=True, slots=True)
class Spread:
    """How much processes of one cell differ: a standard deviation of logarithms (0.02: about 2
    %)."""

    deviation: float
    df: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """Code and packages of a sweep. ``commit`` is None outside a checkout."""

    commit: str | None
    changed: tuple[
        str, ...
    ]  # files of the checkout that differ from the commit, untracked ones too
    measuring: str  # digest of the files whose text can change a reading
    lock: str | None  # digest of requirements.lock; None in a wheel
    packages: Mapping[str, str]  # every installed one: name to version


@dataclass(frozen=True, slots=True)
class Sweep:
    """How the cells of a sweep belong together."""

    sweep_id: str
    started_at: float  # seconds since 1970
    overrides: tuple[str, ...]  # as typed
    tracking: Tracking
    baseline: Baseline
    margin: float
    calibration: Mapping[str, Spread]  # of this host, by metric; empty when there was none
    cells: tuple[str, ...]  # cell_ids, in the order of the grid
    provenance: Provenance
    columns: tuple[str, ...] = ()  # what tells its cells apart, like quant and batch
    reproduces: str | None = None  # the run or sweep that this one repeats
    # What an hour of this machine costs, in whatever it is paid in
    price_per_hour: float | None = field(default=None, metadata=POSITIVE)
