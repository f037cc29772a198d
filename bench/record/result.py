"""The record of one cell: what was asked, where it ran, what was loaded, what was read, what it
said.

Raw readings are stored, everything else is computed from them (``bench.analysis``), so a corrected
formula can be applied to old results. Records are JSON on disk; ``from_json`` is as strict as the
configuration's parser, and refuses a file of another schema in one sentence.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.cell import Cell, Requires
from bench.config.parse import COUNT, NOT_NEGATIVE, POSITIVE, parse, within
from bench.errors import ConfigError, StoreError
from bench.record.measurement import (
    Choice,
    Divergence,
    Measurement,
    Profile,
    Sample,
    Strided,
    TaskScore,
)
from bench.record.redact import redacted

SCHEMA = 7  # 7: multiple choice, perplexity with overlapping windows
_READABLE = (6, SCHEMA)  # 6 has neither, and nothing else is different

_BF16_CAPABILITY = 8.0

Status = Literal["ok", "skipped", "oom", "timeout", "not_engaged", "failed", "killed", "lost"]


@dataclass(frozen=True, slots=True)
class Host:
    """The machine and the software, as the measured process sees them."""

    device: Literal["cpu", "cuda"]  # what device=auto means here
    device_name: str
    cpu_name: str
    # How many this process may use at once: affinity and the cgroup's quota
    cpus: int = field(metadata=COUNT)
    cpu_ids: tuple[int, ...]  # which ones, by its affinity
    # That it may use: the cgroup's limit, or the machine's
    memory_bytes: int = field(metadata=COUNT)
    device_memory_bytes: int | None = field(metadata=COUNT)
    device_uuid: str | None
    capability: float | None  # CUDA compute capability
    driver: str | None
    os: str
    python: str
    versions: Mapping[str, str]  # of the packages that decide numbers
    missing: Mapping[str, str]  # optional packages that cannot be used here, with the reason
    compiler: bool  # of C++
    # Kinds of devices that are here and cannot be measured, with what to do
    unsupported: Mapping[str, str] = field(default_factory=dict)
    triton: str | None = None  # what Triton lacks to compile kernels for CUDA here
    # How the driver runs the device: power limit, ECC, application clocks; what NVML tells
    device_settings: Mapping[str, str] = field(default_factory=dict)

    def computes_bf16(self, device: str) -> bool:
        """Whether a device of this machine does so itself: GPUs before Ampere emulate it."""
        return device == "cpu" or (self.capability or 0) >= _BF16_CAPABILITY


def lacking(requires: Requires, cell: Cell, host: Host) -> Iterator[str]:
    """What a resolved cell would need and does not have on this host, one phrase each."""
    if requires.device is not None and cell.device != requires.device:
        yield f"device {requires.device}, this cell runs on {cell.device}"
    if requires.capability is not None and (host.capability or 0) < requires.capability:
        yield f"compute capability {requires.capability}, {host.device_name} has {host.capability}"
    below = requires.below_capability
    if below is not None and (host.capability or 0) >= below:
        yield f"compute capability below {below}, {host.device_name} has {host.capability}"
    # A saved dtype is in the files: loading tells
    if requires.dtypes and cell.quant.dtype not in (*requires.dtypes, "saved"):
        wanted = " or ".join(requires.dtypes)
        yield f"dtype {wanted}, quant={cell.quant.name} computes in {cell.quant.dtype}"
    if requires.package is not None and requires.package in host.missing:
        how = "" if requires.install is None else f"; {requires.install}"
        yield f"the package {requires.package} ({host.missing[requires.package]}){how}"
    if requires.compiler and cell.device == "cpu" and not host.compiler:
        yield "a C++ compiler (g++ or clang++), none was found; apt install g++"
    if requires.compiler and cell.device == "cuda" and host.triton is not None:
        yield f"Triton to compile its kernels, which needs {host.triton}"


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a device can do at most. Units: bytes/s, and operations/s of dense matrix products."""

    read_bytes_s: float = field(metadata=POSITIVE)
    flops: Mapping[str, float] = field(metadata=within(each=POSITIVE))  # fp32, fp16, bf16, int8
    source: str  # data sheet: which one; or measured here: with which kernels
    measured: bool


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the cost arithmetic needs of an architecture. Counts, no bytes."""

    layers: int = field(metadata=COUNT)
    heads: int = field(metadata=NOT_NEGATIVE)
    kv_heads: int = field(metadata=NOT_NEGATIVE)
    head_dim: int = field(metadata=NOT_NEGATIVE)
    hidden: int = field(metadata=COUNT)
    vocabulary: int = field(metadata=COUNT)
    # One entry a layer; None attends to all, 0 keeps no keys and values (a recurrent one)
    sliding_windows: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is in memory and what ran, counted by the engine around one request, not assumed."""

    shape: ModelShape
    # Parameters, buffers, quantization state; each storage once
    weight_bytes: int = field(metadata=COUNT)
    # Of these, embeddings of which a step reads only a few rows
    gathered_bytes: int = field(metadata=NOT_NEGATIVE)
    # The matrix that makes logits; with tied embeddings it is the embedding
    head_bytes: int = field(metadata=NOT_NEGATIVE)
    logical_weights: int = field(metadata=COUNT)  # numbers of weights before quantization
    # Of these, in matrix products other than the head
    matmul_weights: int = field(metadata=NOT_NEGATIVE)
    # Of one sequence, all layers, read off a real cache
    kv_bytes_per_token: int = field(metadata=NOT_NEGATIVE)
    executed_dtype: str  # in which most matrix products run: fp32, fp16, bf16, int8
    is_quantized: bool
    mismatches: tuple[str, ...] = ()  # why this does not deserve the cell's name; empty: it does
    # Of the logits of one row after the prompt and a token; equal ones: the same was computed
    logits_digest: str | None = None
    outlier_share: float | None = None  # int8 with a threshold: activation columns above it, of all
    # CUDA: how often which line of Python waits for the device before and after the first token
    prefill_syncs: Mapping[str, int] | None = None
    decode_syncs: Mapping[str, int] | None = None
    remarks: tuple[str, ...] = ()  # what a person should know of what ran, and is no mismatch
    details: Mapping[str, Any] = field(default_factory=dict)  # the engine's own, in JSON types

    def __post_init__(self) -> None:
        if self.gathered_bytes >= self.weight_bytes:
            raise ValueError(
                f"gathered_bytes={self.gathered_bytes}: want less than weight_bytes,"
                f" {self.weight_bytes}"
            )


@dataclass(frozen=True, slots=True)
class Findings:
    """What a timed process hands back. ``measurement`` is None where the attestation mismatches."""

    revision: str | None  # of the model: hub commit or package version
    attestation: Attestation
    measurement: Measurement | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a process ran that a cluster was asked for, and which processes of other cells ran
    beside it."""

    node: str  # its name
    pass_index: int = field(metadata=NOT_NEGATIVE)
    # Which cells go through their passes together: these share a node, one after another
    block: int = field(metadata=NOT_NEGATIVE)


@dataclass(frozen=True, slots=True)
class Replicate:
    """One timed process of a cell: an independent reading. ``measurement`` is None if it gave
    none."""

    started_at: float = field(metadata=NOT_NEGATIVE)  # seconds since 1970
    wall_s: float = field(metadata=NOT_NEGATIVE)
    phases_s: Mapping[str, float] = field(metadata=within(each=NOT_NEGATIVE))
    measurement: Measurement | None
    origin: Origin | None = None  # None: on the machine that the sweep was started on


@dataclass(frozen=True, slots=True)
class Outcome:
    """How something ended; anything but ok has a reason. An ok with a reason lacks replicates."""

    status: Status
    reason: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What a quality job found; all cells with its sample key have the same."""

    outcome: Outcome
    samples: tuple[Sample, ...] = ()
    divergence: Divergence | None = None
    tasks: tuple[TaskScore, ...] = ()
    choices: tuple[Choice, ...] = ()  # in the order of the set's items
    strided: tuple[Strided, ...] = ()  # one a text
    without: str | None = None  # why there are no samples, where some were asked for
    no_reference: str | None = None  # why there is no divergence, where it was asked for


@dataclass(frozen=True, slots=True)
class Result:
    """Everything recorded about one cell."""

    schema: int
    cell_id: str  # of the cell as it was asked for
    resume_key: str
    sweep_id: str
    asked: Cell
    cell: Cell  # as it ran here: without auto and max
    host: Host
    outcome: Outcome
    started_at: float = field(metadata=NOT_NEGATIVE)  # seconds since 1970
    peaks: Peaks | None = None  # of the device, with the cell's threads
    predicted_bytes: int | None = None  # weights and KV cache, before loading
    replicates: tuple[Replicate, ...] = ()
    revision: str | None = None
    attestation: Attestation | None = None  # of the first replicate; each is checked
    answers: Answers | None = None  # None: not asked yet, or nothing to ask
    profile: Profile | None = None  # profile=true
    reused_from: str | None = None  # sweep_id of the sweep that measured it
    lines: str = ""  # Python that loads the same model; empty where that takes more

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of the replicates that gave one; empty for a cell without a number."""
        if self.outcome.status != "ok":
            return ()
        return tuple(r.measurement for r in self.replicates if r.measurement is not None)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The cell's answers to its prompts."""
        return () if self.answers is None else self.answers.samples

    @property
    def divergence(self) -> Divergence | None:
        """From the unquantized model."""
        return None if self.answers is None else self.answers.divergence

    @property
    def choices(self) -> tuple[Choice, ...]:
        """On multiple-choice items."""
        return () if self.answers is None else self.answers.choices

    @property
    def strided(self) -> tuple[Strided, ...]:
        """Texts in overlapping windows."""
        return () if self.answers is None else self.answers.strided

    @property
    def tasks(self) -> tuple[TaskScore, ...]:
        """Scores of lm-evaluation-harness."""
        return () if self.answers is None else self.answers.tasks

    @property
    def ended_at(self) -> float:
        """When its last process ended, in seconds since 1970."""
        return max((r.started_at + r.wall_s for r in self.replicates), default=self.started_at)

    def to_json(self) -> str:
        """The record as text, without what looks like a secret."""
        return json.dumps(redacted(dataclasses.asdict(self)), indent=1, allow_nan=False)


def is_timed(record: Result) -> bool:
    """Whether no further timed process is wanted: all have run, or one gave no number."""
    return record.outcome.status != "ok" or len(record.replicates) >= record.cell.measure.passes


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
    if found not in _READABLE:
        raise StoreError(
            f"{where}: written in schema {found}, this version reads {SCHEMA};"
            " measure again, or read it with the version that wrote it"
        )
    try:
        result = parse(Result, {**mapping, "schema": SCHEMA})
    except ConfigError as error:
        raise StoreError(f"{where}: {'; '.join(error.problems)}") from error
    for contradiction in _contradictions(result):
        raise StoreError(f"{where}: {contradiction}")
    return result


def _contradictions(result: Result) -> Iterator[str]:
    """Why a cell with a number cannot have been measured like this, for files that were edited."""
    if not result.measurements:
        return
    cell = result.cell
    for key, value in (("batch", cell.batch), ("threads", cell.threads)):
        if not isinstance(value, int):
            yield f"cell.{key}={value}: want the number that the cell ran with"
    reference = () if result.divergence is None else result.divergence.choices
    if reference and result.choices:
        items = [[choice.right for choice in of] for of in (reference, result.choices)]
        if items[0] != items[1]:
            yield "answers.choices: want the items that answers.divergence.choices has"
    if result.attestation is None:
        yield "attestation=null: a cell with a number has one"
    requests = [repeat for m in result.measurements for repeat in m.repeats]
    if len({len(repeat.decode_step_s) for repeat in requests}) > 1:
        yield "replicates: their requests have different numbers of decode steps"
