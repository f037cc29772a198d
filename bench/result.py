"""The record of one cell: what was asked, where it ran, what was really loaded, what was read, what it answered.

Raw readings are stored, everything else is computed from them (``bench.analysis.metrics``), so a corrected formula can
be applied to old results. Records are JSON on disk; ``from_json`` is as strict as the configuration's parser.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import ConfigError, StoreError
from bench.parse import parse
from bench.spec import Cell

SCHEMA = 2

Status = Literal["ok", "skipped", "oom", "timeout", "not_engaged", "failed", "killed"]
Stopped = Literal["target", "repeats", "budget"]  # known well enough, as many as allowed, out of time


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
class Repeat:
    """One timed request. Units: seconds."""

    ttft_s: float
    decode_step_s: tuple[float, ...]  # new_tokens - 1 gaps between consecutive tokens
    e2e_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks of one phase. Units: bytes; None where there is no such reading."""

    rss_peak_bytes: int | None  # resident set of the process, file pages included
    rss_anon_bytes: int | None  # anonymous part at the end of the phase
    rss_file_bytes: int | None
    allocated_peak_bytes: int | None  # torch's CUDA allocator
    reserved_peak_bytes: int | None
    device_used_bytes: int | None  # of the whole device by NVML, minus its reading before the CUDA context


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Reference kernels that no cell changes, only the state of the machine. Units: seconds, the least of many."""

    read_s: float  # adding up 64 MiB
    matmul_s: float  # a product of two 512 x 512 matrices, fp32
    steps_s: float  # 16 decode steps of a very small model: the interpreter and the dispatcher


@dataclass(frozen=True, slots=True)
class Contamination:
    """Who else was on the CPUs while requests were timed; None where the system does not tell."""

    wall_s: float
    throttled_s: float | None  # the cgroup had used up its quota
    steal_s: float | None  # the hypervisor gave the CPUs to others
    involuntary_switches: int | None  # of this process's threads
    pressure_s: float | None  # some thread of the cgroup, or of the machine, waited for a CPU


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of a GPU. None where NVML does not support or does not permit a reading."""

    at_s: float  # since the watching began
    sm_clock_hz: int | None
    memory_clock_hz: int | None
    temperature_c: int | None
    power_w: float | None
    used_bytes: int | None  # of the whole device
    energy_j: float | None  # since the driver was loaded
    throttle: tuple[str, ...] | None  # what holds the clocks down, by power or heat; empty when nothing does


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A GPU over a window in which the same work ran again and again.

    The first reading is from before the work and the last from after it: these two give the energy, those in between
    the power and the throttling.
    """

    window_s: float  # from the first reading to the last
    rounds: int  # how many times the work ran in it
    readings: tuple[Reading, ...]
    energy_j: float | None  # gross, idle power included; None when the window is too short for the counter
    power_w_mean: float | None
    throttled: tuple[str, ...] | None  # every reason that was seen; None when none could be read


@dataclass(frozen=True, slots=True)
class Energy:
    """What the GPU drew, in passes of their own after the timed ones."""

    prefill: Telemetry | None  # requests that end with their first token
    request: Telemetry | None  # whole requests
    idle_power_w: float | None  # the same process with the model in memory, doing nothing


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that one process read. ``warmups[0]`` is its very first request."""

    prompt_tokens: int
    load_s: float
    warmups: tuple[Repeat, ...]
    settled: bool  # whether two windows of the warm-ups agreed
    repeats: tuple[Repeat, ...]
    stopped: Stopped
    before: Sentinel
    after: Sentinel
    contamination: Contamination
    load_memory: Memory
    run_memory: Memory
    rss_before_load_bytes: int | None
    threads: int
    precision: Mapping[str, str]  # flags that were set in the measured process
    clock_mismatch: float | None  # CUDA: largest relative gap between host and device totals
    decode_syncs: int | None  # CUDA: operations of one request that wait for the device after the first token
    energy: Energy | None = None  # CUDA


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and the greedy answer to it."""

    prompt: str
    answer: str
    new_tokens: int
    ended: bool  # by the model's own end of sequence, not by the limit


@dataclass(frozen=True, slots=True)
class Findings:
    """What the measured process hands back, or leaves behind when it fails later on."""

    revision: str | None  # of the model: hub commit or package version
    attestation: Attestation
    measurement: Measurement | None  # None: what is in memory does not deserve the cell's name
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """One process of a cell: an independent reading of it. ``measurement`` is None where it gave none."""

    started_at: float  # seconds since 1970
    wall_s: float
    phases_s: Mapping[str, float]
    measurement: Measurement | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell ended; anything but ok has a reason and no number. An ok with a reason lacks samples or passes."""

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
    samples_from: str | None = None  # cell_id of the cell that answered for this one too
    reused_from: str | None = None  # sweep_id of the sweep that measured it

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of the passes that gave one; empty for a cell without a number."""
        return tuple(p.measurement for p in self.passes if p.measurement is not None) if self.outcome.status == "ok" else ()

    @property
    def ended_at(self) -> float:
        """When its last process ended, in seconds since 1970."""
        return max((each.started_at + each.wall_s for each in self.passes), default=self.started_at)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)


def is_complete(record: Result) -> bool:
    """Whether no further process is wanted: all have run, or one has given a reason why there is no number."""
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
