"""The record of one cell: what was asked, where it ran, what was really loaded, what was read, what
it answered.

Raw readings are stored, everything else is computed from them (``bench.analysis.metrics``), so a
corrected formula can be applied to old results. Records are JSON on disk; ``from_json`` is as
strict as the configuration's parser.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.config.cell import Cell
from bench.config.parse import parse
from bench.errors import ConfigError, StoreError
from bench.record.measurement import Divergence, Measurement, Profile, Sample, TaskScore
from bench.record.redact import redacted

SCHEMA = 3

Status = Literal["ok", "skipped", "oom", "timeout", "not_engaged", "failed", "killed"]


@dataclass(frozen=True, slots=True)
class Host:
    """The machine and the software, as the measured process sees them."""

    device: Literal["cpu", "cuda"]  # what device=auto means here
    device_name: str
    cpu_name: str
    cpus: int  # how many this process may use at once: affinity and the cgroup's quota
    cpu_ids: tuple[int, ...]  # which ones, by its affinity
    memory_bytes: int  # that it may use: the cgroup's limit, or the machine's
    device_memory_bytes: int | None
    device_uuid: str | None
    capability: float | None  # CUDA compute capability
    driver: str | None
    os: str
    python: str
    versions: Mapping[str, str]  # of the packages that decide numbers
    missing: Mapping[str, str]  # optional packages that cannot be used here, with the reason
    compiler: bool


@dataclass(frozen=True, slots=True)
class Provenance:
    """Code and surroundings of a sweep. ``commit`` is None outside a checkout."""

    commit: str | None
    # Files of the checkout that differ from the commit, untracked ones too
    changed: tuple[str, ...]
    changes: str | None  # digest of these differences; None without any
    measuring: str  # digest of the files whose text can change a reading
    lock: str | None  # digest of requirements.lock; None in a wheel
    packages: Mapping[str, str]  # every installed one: name to version


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do at most. Units: bytes/s, and operations/s of dense matrix products."""

    read_bytes_s: float
    flops: Mapping[str, float]  # fp32, fp16, bf16, int8; those that it has
    source: str  # data sheet: which one; or measured here: with which kernels
    measured: bool


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the cost arithmetic needs of an architecture. Counts, no bytes."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    sliding_windows: tuple[int | None, ...]  # one entry a layer; None attends to all


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is in memory after the first forward, counted and not assumed."""

    shape: ModelShape
    layers: Mapping[str, int]  # class name of modules that hold a matrix -> how many
    bytes_by_dtype: Mapping[str, int]
    weight_bytes: int  # parameters, buffers, quantization state; each storage once
    gathered_bytes: int  # of these, embeddings of which a step reads only a few rows
    head_bytes: int  # the matrix that makes logits; with tied embeddings it is the embedding
    logical_weights: int  # numbers of weights before quantization
    matmul_weights: int  # of these, in matrix products other than the head
    kv_bytes_per_token: int  # of one sequence, all layers, read off a real cache
    attention: str  # the implementation that transformers says is in force
    attention_operators: tuple[str, ...]  # operators that really ran
    kernels: tuple[str, ...]  # CUDA kernels of one prefill and one decode step
    compute_dtypes: tuple[str, ...]  # of quantized layers
    outlier_share: float | None  # int8 with a threshold: activation columns above it, of all


@dataclass(frozen=True, slots=True)
class Findings:
    """What the measured process hands back, or leaves behind when it fails later on."""

    revision: str | None  # of the model: hub commit or package version
    attestation: Attestation
    measurement: Measurement | None  # None: what is in memory does not deserve the cell's name
    samples: tuple[Sample, ...] = ()
    divergence: Divergence | None = None
    tasks: tuple[TaskScore, ...] = ()
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One process of a cell: an independent reading of it. ``measurement`` is None where it gave
    none."""

    started_at: float  # seconds since 1970
    wall_s: float
    phases_s: Mapping[str, float]
    measurement: Measurement | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended; anything but ok has a reason and no number. An ok with a reason lacks
    samples or passes."""

    status: Status
    reason: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """All of one cell."""

    schema: int
    cell_id: str
    resume_key: str
    sweep_id: str
    cell: Cell
    host: Host
    outcome: Outcome
    started_at: float  # seconds since 1970
    peaks: Peaks | None = None  # of the device, with the cell's threads
    passes: tuple[Pass, ...] = ()
    revision: str | None = None
    attestation: Attestation | None = None  # of the first pass; each is checked against the cell
    samples: tuple[Sample, ...] = ()
    divergence: Divergence | None = None
    tasks: tuple[TaskScore, ...] = ()
    # Cell_id of the cell that answered, and was evaluated, for this one too
    samples_from: str | None = None
    profile: Profile | None = None  # profile=true
    reused_from: str | None = None  # sweep_id of the sweep that measured it

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of the passes that gave one; empty for a cell without a number."""
        return (
            tuple(p.measurement for p in self.passes if p.measurement is not None)
            if self.outcome.status == "ok"
            else ()
        )

    @property
    def ended_at(self) -> float:
        """When its last process ended, in seconds since 1970."""
        return max((each.started_at + each.wall_s for each in self.passes), default=self.started_at)

    def to_json(self) -> str:
        """The record as text, without what looks like a secret."""
        return json.dumps(redacted(dataclasses.asdict(self)), indent=1, allow_nan=False)


def is_complete(record: Result) -> bool:
    """Whether no further process is wanted: all have run, or one has given a reason why there is no
    number."""
    return record.outcome.status != "ok" or len(record.passes) >= record.cell.measure.passes


def from_json(text: str | bytes, where: str) -> Result:
    """The record in ``text``; ``where`` names it in messages.

    Raises:
        StoreError: when it is no JSON, of another schema, or incomplete.
    """
    try:
        mapping: Any = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: not a result file ({error})") from error
    found = mapping.get("schema") if isinstance(mapping, dict) else None
    if found != SCHEMA:
        raise StoreError(f"{where}: schema {found}, this version reads {SCHEMA}")
    try:
        return parse(Result, mapping)
    except ConfigError as error:
        raise StoreError(f"{where}: {'; '.join(error.problems)}") from error
