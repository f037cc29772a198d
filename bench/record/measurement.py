"""What one process read off a running model: raw, as it came; everything else is computed from
it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Known well enough, as many as allowed, out of time
Stopped = Literal["target", "repeats", "budget"]
ProfiledPhase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Repeat:
    """One timed request. Units: seconds."""

    ttft_s: float
    decode_step_s: tuple[float, ...]  # new_tokens - 1 gaps between consecutive tokens
    e2e_s: float
    # CUDA: what the host needed to enqueue the first decode step, the queue being empty
    enqueue_s: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks of one phase. Units: bytes; None where there is no such reading."""

    rss_peak_bytes: int | None  # resident set of the process, file pages included
    rss_anon_bytes: int | None  # anonymous part at the end of the phase
    rss_file_bytes: int | None
    allocated_peak_bytes: int | None  # torch's CUDA allocator
    reserved_peak_bytes: int | None
    # Of the whole device by NVML, minus its reading before the CUDA context
    device_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Reference kernels that no cell changes, only the state of the machine. Units: seconds, the
    least of many."""

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
    # What holds the clocks down, by power or heat; empty when nothing does
    throttle: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A GPU over a window in which the same work ran again and again.

    The first reading is from before the work and the last from after it: these two give the energy,
    those in between the power and the throttling.
    """

    window_s: float  # from the first reading to the last
    rounds: int  # how many times the work ran in it
    readings: tuple[Reading, ...]
    # Gross, idle power included; None when the window is too short for the counter
    energy_j: float | None
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
    # CUDA: operations of one request that wait for the device after the first token
    decode_syncs: int | None
    energy: Energy | None = None  # CUDA


@dataclass(frozen=True, slots=True)
class PhaseProfile:
    """Where the time of one phase of one request went, under a profiler. Units: seconds."""

    phase: ProfiledPhase
    wall_s: float
    steps: int  # decode steps in it; 1 for a prefill
    # By kind of operation, as ``bench.analysis.operators`` names them; they add up to wall_s
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Profile:
    """One request under torch's profiler, of the first process that took one."""

    phases: tuple[PhaseProfile, ...]
    slowdown: float  # how many times as long the request took under the profiler


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and the greedy answer to it."""

    prompt: str
    answer: str
    tokens: tuple[int, ...]  # of the answer
    ended: bool  # by the model's own end of sequence, not by the limit


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text, read by a cell's model and by the reference. All but counts: means over
    its positions."""

    text: str
    bytes: int  # of the scored tokens
    tokens: int  # scored
    kl_nats: float  # KL(reference || cell)
    kl_median_nats: float
    kl_p99_nats: float
    top1_agreement: float
    nll_nats: float
    reference_nll_nats: float
    # The reference in 16 bits against itself, at another batch size and attention
    floor_kl_nats: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """What a configuration does to the predictions of its model."""

    reference: str  # the quant that it is compared with, like fp32
    # Each window begins with the tokenizer's mark, so that its first token is scored too
    begins_with_bos: bool
    windows: tuple[Window, ...]
    answers: tuple[Sample, ...]  # the reference's, to the prompts of the cell's samples


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One number of one task of lm-evaluation-harness."""

    task: str
    metric: str  # as the harness calls it, like acc
    value: float
    standard_error: float | None
