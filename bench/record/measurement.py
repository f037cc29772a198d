"""What one process read off a running model: raw, as it came; everything else is computed from
it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.parse import COUNT, NOT_NEGATIVE, POSITIVE, within

Stopped = Literal[
    "target", "repeats", "budget"
]  # known well enough, as many as allowed, out of time
_LARGEST_NLL = 500.0  # whose perplexity is still a number
ProfiledPhase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Repeat:
    """One timed request. Units: seconds."""

    ttft_s: float = field(metadata=POSITIVE)
    # Gaps between consecutive arrivals of tokens
    decode_step_s: tuple[float, ...] = field(metadata=within(length=1, each=POSITIVE))
    e2e_s: float = field(metadata=POSITIVE)
    # CUDA: host time to enqueue the first decode step, queue empty
    enqueue_s: float | None = field(default=None, metadata=POSITIVE)
    # Tokens of a row that each gap brought; None: one
    step_tokens: tuple[int, ...] | None = field(default=None, metadata=within(each=COUNT))

    def __post_init__(self) -> None:
        if self.e2e_s <= self.ttft_s:
            raise ValueError(f"e2e_s={self.e2e_s:g}: want more than ttft_s={self.ttft_s:g}")
        if self.step_tokens is not None and len(self.step_tokens) != len(self.decode_step_s):
            raise ValueError("step_tokens: want as many as decode_step_s has")

    @property
    def decoded_tokens(self) -> int:
        """Tokens of a row after the first."""
        return len(self.decode_step_s) if self.step_tokens is None else sum(self.step_tokens)


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks of one phase. Units: bytes; None where there is no such reading."""

    # Resident set of the process, file pages included
    rss_peak_bytes: int | None = field(metadata=POSITIVE)
    # Anonymous part at the end of the phase
    rss_anon_bytes: int | None = field(metadata=NOT_NEGATIVE)
    rss_file_bytes: int | None = field(metadata=NOT_NEGATIVE)
    # The engine's allocator on a GPU
    allocated_peak_bytes: int | None = field(metadata=NOT_NEGATIVE)
    reserved_peak_bytes: int | None = field(metadata=NOT_NEGATIVE)
    # Whole device by NVML, minus its reading before the process: other processes count
    device_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Canary:
    """Reference kernels that no cell changes, only the state of the machine.

    Units: seconds, the least of many.
    """

    # Adding up memory: 64 MiB, of a GPU 8 times its L2 cache
    read_s: float = field(metadata=POSITIVE)
    # A product of two square matrices in fp32, 512 wide, on a GPU 4096
    matmul_s: float = field(metadata=POSITIVE)
    # 16 decode steps of a very small model: the interpreter and the dispatcher
    steps_s: float = field(metadata=POSITIVE)


@dataclass(frozen=True, slots=True)
class Interference:
    """What others did to the CPUs while requests were timed; None where the system does not
    tell."""

    wall_s: float = field(metadata=POSITIVE)
    throttled_s: float | None  # the cgroup had used up its quota
    steal_s: float | None  # the hypervisor gave the CPUs to others
    involuntary_switches: int | None  # of this process's threads
    pressure_s: float | None  # some thread of the cgroup, or of the machine, waited for a CPU


@dataclass(frozen=True, slots=True)
class GpuState:
    """A GPU right before or right after the timed requests; None where NVML does not tell."""

    sm_clock_hz: int | None
    memory_clock_hz: int | None
    power_limit_w: float | None
    # By limit, how long it has kept the clocks down since the driver was loaded
    held_down_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment of a GPU, or of the CPU's packages, which have an energy alone. None where NVML
    does not support or does not permit a reading."""

    at_s: float  # since the watching began
    sm_clock_hz: int | None
    memory_clock_hz: int | None
    temperature_c: int | None
    power_w: float | None
    used_bytes: int | None  # of the whole device
    # Of a GPU since the driver was loaded, of packages since the watching began
    energy_j: float | None
    throttle: tuple[str, ...] | None  # what holds the clocks down, by power or heat; empty: nothing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A GPU, or the CPU's packages, over a window in which the same work ran again and again.

    The first reading is from before the work and the last from after it: these two give the energy,
    those in between the power and the throttling.
    """

    window_s: float = field(metadata=POSITIVE)  # from the first reading to the last
    rounds: int = field(metadata=COUNT)  # how many times the work ran in it
    readings: tuple[Reading, ...]
    energy_j: float | None  # gross, idle power included; None: window too short for the counter
    power_w_mean: float | None
    throttled: tuple[str, ...] | None  # every reason that was seen; None when none could be read


@dataclass(frozen=True, slots=True)
class Energy:
    """What the GPU drew, or of a cell on a CPU its packages, with whatever else ran on them; in
    requests of their own after the timed ones."""

    prefill: Telemetry | None  # requests that end with their first token
    request: Telemetry | None  # whole requests
    idle_power_w: float | None  # the same process with the model in memory, doing nothing


@dataclass(frozen=True, slots=True)
class PhaseProfile:
    """Where the time of one phase of one request went, under a profiler. Units: seconds."""

    phase: ProfiledPhase
    wall_s: float = field(metadata=POSITIVE)
    steps: int = field(metadata=COUNT)  # decode steps in it; 1 for a prefill
    # By category of ``analysis.operators``; they add up to wall_s
    seconds: Mapping[str, float] = field(metadata=within(each=NOT_NEGATIVE))


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that one process read. ``warmups[0]`` is its very first request."""

    prompt_tokens: int = field(metadata=COUNT)
    # Getting the files ready: download, conversion; near 0 when they are cached
    provide_s: float = field(metadata=NOT_NEGATIVE)
    load_s: float = field(metadata=NOT_NEGATIVE)
    # What the strategy prepares once before the first request
    ready_s: float = field(metadata=NOT_NEGATIVE)
    warmups: tuple[Repeat, ...] = field(metadata=within(length=1))
    settled: bool  # whether two windows of the warm-ups agreed
    repeats: tuple[Repeat, ...] = field(metadata=within(length=1))
    stopped: Stopped
    before: Canary | None  # None where the device had no room for it
    after: Canary | None
    interference: Interference
    load_memory: Memory
    run_memory: Memory
    rss_before_load_bytes: int | None
    clock_mismatch: float | None  # CUDA: largest relative gap between host and device totals
    gpu_before: GpuState | None = None  # right before the timed requests, and right after them
    gpu_after: GpuState | None = None
    energy: Energy | None = None  # where NVML or RAPL can be read
    step_profile: PhaseProfile | None = None  # of decode steps, after the timed requests
    # State of the C library's heap, set for every process alike (``meter.memory``)
    heap: Mapping[str, int] = field(default_factory=dict)
    # Of each prompt of a file, before it was cut to prompt_tokens
    given_tokens: tuple[int, ...] | None = field(default=None, metadata=within(length=1))


@dataclass(frozen=True, slots=True)
class Profile:
    """One request under a profiler, of the first process that took one."""

    phases: tuple[PhaseProfile, ...]
    # How many times as long the request took under the profiler
    slowdown: float = field(metadata=POSITIVE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt and the greedy answer to it."""

    prompt: str
    answer: str
    tokens: tuple[int, ...]  # of the answer
    ended: bool  # by the model's own end of sequence, not by the limit


@dataclass(frozen=True, slots=True)
class Choice:
    """How likely a model holds each continuation of one multiple-choice item."""

    right: int = field(metadata=NOT_NEGATIVE)  # which one is the text's own, from 0
    # Given the context, summed over the continuation's tokens
    log_likelihood_nats: tuple[float, ...] = field(metadata=within(length=2))

    def __post_init__(self) -> None:
        if self.right >= len(self.log_likelihood_nats):
            raise ValueError(
                f"right={self.right}: want less than {len(self.log_likelihood_nats)},"
                " the number of continuations"
            )


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text, read by a cell's model and by the reference.

    All but counts are means over its positions.
    """

    text: str
    bytes: int = field(metadata=COUNT)  # of the scored tokens
    tokens: int = field(metadata=COUNT)  # scored
    kl_nats: float  # KL(reference || cell)
    kl_median_nats: float
    kl_p99_nats: float
    top1_agreement: float = field(metadata=within(minimum=0, maximum=1))
    nll_nats: float = field(metadata=within(minimum=0, maximum=_LARGEST_NLL))
    reference_nll_nats: float = field(metadata=within(minimum=0, maximum=_LARGEST_NLL))
    floor_kl_nats: float  # the reference in 16 bits against itself, at another batch and attention


@dataclass(frozen=True, slots=True)
class Divergence:
    """What a configuration does to the predictions of its model."""

    reference: str  # the quant that it is compared with, like fp32
    begins_with_bos: bool  # each window begins with the tokenizer's mark: its first token is scored
    windows: tuple[Window, ...] = field(metadata=within(length=1))
    answers: tuple[Sample, ...]  # the reference's, to the prompts of the cell's samples
    choices: tuple[Choice, ...] = ()  # the reference's, on the cell's multiple-choice items


@dataclass(frozen=True, slots=True)
class Strided:
    """A text, read by a cell's model in overlapping windows, each token scored once."""

    text: str
    window_tokens: int = field(metadata=COUNT)
    stride_tokens: int = field(metadata=COUNT)
    tokens: int = field(metadata=COUNT)  # scored
    # Mean over them
    nll_nats: float = field(metadata=within(minimum=0, maximum=_LARGEST_NLL))


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One number of one task of lm-evaluation-harness."""

    task: str
    metric: str  # as the harness calls it, like acc
    value: float
    standard_error: float | None


def read_scores(results: Mapping[str, Mapping[str, object]]) -> tuple[TaskScore, ...]:
    """lm-evaluation-harness names a number ``metric,filter``, its error
    ``metric_stderr,filter``."""
    scores = []
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, comma, kind = key.partition(",")
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not comma or metric.endswith("_stderr") or not is_number:
                continue
            error: Any = numbers.get(f"{metric}_stderr,{kind}")
            # One task may be read by several filters.
            name = metric if kind == "none" else f"{metric}_{kind}"
            known = float(error) if isinstance(error, int | float) else None
            scores.append(TaskScore(task, name, float(value), known))  # type: ignore[arg-type]
    return tuple(scores)
