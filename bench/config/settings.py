"""A composed configuration: a cell, and what a sweep does with it, which changes no number."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.cell import Cell
from bench.config.parse import COUNT, NOT_NEGATIVE, POSITIVE, parse, unknown_key
from bench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where runs are logged; ``uri`` null is SQLite in the outputs folder unless
    MLFLOW_TRACKING_URI says otherwise."""

    name: str
    enabled: bool
    experiment: str
    uri: str | None = None
    # Keep what differs from the commit with the run, as a patch; it may hold anything
    diff: bool = False


@dataclass(frozen=True, slots=True)
class Baseline:
    """The value of an axis that the others are compared with; all null: the first value of the
    first axis that varies."""

    model: str | None = None
    engine: str | None = None
    quant: str | None = None
    attn: str | None = None
    decode: str | None = None
    workload: str | None = None
    threads: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """Which machines measure: this one, or nodes of a cluster that is there already."""

    name: Literal["here", "ray", "slurm"] = "here"
    address: str | None = None  # of a running Ray; null: RAY_ADDRESS, or one of this machine
    # What a node must have: a resource of Ray's, a feature of Slurm's
    constraint: str | None = None
    # That a job asks for; null: a whole node, so that nobody else computes beside it
    cpus: int | None = field(default=None, metadata=COUNT)
    # Likewise; null: one where the cluster has any
    gpus: int | None = field(default=None, metadata=NOT_NEGATIVE)
    limit_min: int = field(default=60, metadata=COUNT)  # of a job of Slurm's
    retries: int = field(default=2, metadata=NOT_NEGATIVE)  # of a job whose node was lost
    options: Mapping[str, Any] = field(default_factory=dict)  # more for sbatch, like partition


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sweep does with its cells; changes no number."""

    tracking: Tracking
    baseline: Baseline
    output_dir: str  # folder for everything that a run writes
    margin: float  # two speeds within it are equivalent: 0.03 for 3 %
    # What an hour of this machine costs, in whatever it is paid in; null: not known
    price_per_hour: float | None = field(metadata=POSITIVE)
    resume: bool | None  # take ok results of earlier sweeps; null: as ``measure`` says
    profile: bool  # after measuring, one more request of each cell under torch's profiler
    dry_run: bool  # show the grid, measure nothing
    cuda_device: int | None = None  # which of the visible ones; of device=cuda:1
    where: Where = Where()

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("output_dir=: want the name of a folder")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin={self.margin:g}: want a share like 0.03 for 3%")
        if self.where.name == "here":
            return
        if self.profile:
            raise ValueError("profile=true goes with where=here: a trace stays on its machine")
        if self.cuda_device is not None:
            raise ValueError(
                f"device=cuda:{self.cuda_device} goes with where=here: a cluster says itself which"
                " GPU a job has"
            )


@dataclass(frozen=True, slots=True)
class Config:
    """The composed configuration as Hydra hands it over: a cell and its settings, flat."""

    cell: Cell
    settings: Settings


def parse_config(mapping: Mapping[str, Any]) -> Config:
    """The cell and the settings of one composed configuration.

    Raises:
        ConfigError: with every mistake in it.
    """
    mapping = _with_cuda_device(mapping)
    parts = {part: [f.name for f in dataclasses.fields(part)] for part in (Cell, Settings)}
    known = [name for names in parts.values() for name in names]
    problems = [unknown_key(key, mapping[key], known) for key in mapping if key not in known]
    parsed: list[Any] = []
    for part, names in parts.items():
        try:
            parsed.append(parse(part, {name: mapping[name] for name in names if name in mapping}))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    cell, settings = parsed
    return Config(cell, settings)


def _with_cuda_device(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A cell runs on ``cuda``, and has the same identity on each of several GPUs: which one it is
    says the sweep, and its UUID the record."""
    device, colon, index = str(mapping.get("device")).partition(":")
    if device == "cuda" and colon and index.isdecimal():
        return {**mapping, "device": device, "cuda_device": int(index)}
    return mapping
