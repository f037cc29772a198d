"""torch's instruments: clocks, precision flags, the allocator, reference kernels, the profiler.

On a CPU every operation has finished when Python goes on, so the protocol's ``HostClock`` is the
truth. On CUDA the host runs ahead of the device: an event is recorded after each token and read
only after the last, so that nothing waits in between. The first token is the exception: its ids are
on the host, which is a synchronisation, and the host's clock is read there. Events of a request are
made before it starts and never used again.
"""

import itertools
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity
from transformers import PreTrainedModel

from bench.analysis.operators import DECODE_MARK, PREFILL_MARK, Span, by_kind
from bench.engine import kernels
from bench.engine.kernels import CanaryKernels, Kernel, PeakKernels
from bench.engine.prompts import Ids
from bench.engine.protocol import Accelerator, Clock, Untimed
from bench.engine.transformers.strategies import new_cache
from bench.record.measurement import PhaseProfile, Profile, Repeat

_PROFILED_STEPS = 4  # each does the same, and traces of whole answers are hundreds of megabytes
_PROFILED_S = 0.5  # as many of these as fit, at least one

Request = Callable[[Ids, int, Clock], Ids]


class CudaClock:
    """The host's clock for the first token, events on the current stream for the rest."""

    def __init__(self, new_tokens: int) -> None:
        self.stream = torch.cuda.current_stream()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(new_tokens)]
        for event in self.events:
            event.record(self.stream)  # only at its first record does torch make the CUDA event
        self.recorded = 0
        self.counts: list[int] = []
        self.started = self.first = self.enqueued = 0.0

    def start(self) -> None:
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def token(self, count: int = 1) -> None:
        if self.recorded == 0:
            self.first = time.perf_counter()
        self.events[self.recorded].record(self.stream)
        self.recorded += 1
        self.counts.append(count)
        if self.recorded == 2:  # the first step finds the queue empty; later the host may wait
            self.enqueued = time.perf_counter()

    def read(self) -> tuple[Repeat, float | None]:
        torch.cuda.synchronize()
        ended = time.perf_counter()
        used = self.events[: self.recorded]
        # elapsed_time is in ms
        steps = tuple(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(used))
        host_total, device_total = ended - self.first, sum(steps)
        ttft_s = self.first - self.started
        tokens = tuple(self.counts[1:]) if any(count != 1 for count in self.counts) else None
        enqueue_s = self.enqueued - self.first
        repeat = Repeat(ttft_s, steps, ttft_s + device_total, enqueue_s, tokens)
        return repeat, abs(host_total - device_total) / host_total


class _SyncWatch(Untimed):
    """Has torch warn of whatever waits for the device between the first token and the last."""

    def __init__(self, new_tokens: int) -> None:
        self.left = new_tokens

    def start(self) -> None:
        torch.cuda.synchronize()

    def token(self, count: int = 1) -> None:
        self.left -= count
        torch.cuda.set_sync_debug_mode("warn" if self.left else "default")


def decode_syncs(request: Request, ids: Ids, new_tokens: int) -> int:
    """How many operations of one request on CUDA wait for the device after its first token.

    int8 with a threshold (is any activation above it?) and transformers' eager attention (its mask
    takes a scalar from the host) do so by design; torch sees its own operations only, not those of
    other libraries' kernels.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        request(ids, new_tokens, _SyncWatch(new_tokens))
    sync = "called a synchronizing CUDA operation"
    return sum(sync in str(warning.message) for warning in caught)


def set_flags(threads: int) -> None:
    """Threads and precision: set, never left to the library's default."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")  # no TF32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True


def flags_in_force() -> dict[str, str]:
    """Threads and precision as torch has them now, for the record."""
    matmul = torch.backends.cuda.matmul
    return {
        "threads": str(torch.get_num_threads()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": str(torch.backends.cudnn.allow_tf32),
        "allow_fp16_reduced": str(matmul.allow_fp16_reduced_precision_reduction),
        "allow_bf16_reduced": str(matmul.allow_bf16_reduced_precision_reduction),
    }


def accelerator() -> Accelerator | None:
    """The current CUDA device, found without making a context; None without one. ROCm answers to
    the name of CUDA, and is none."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Accelerator(
        name=properties.name,
        memory_bytes=properties.total_memory,
        uuid=str(properties.uuid),
        capability=float(f"{properties.major}.{properties.minor}"),
        versions={
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        },
    )


def unsupported() -> dict[str, str]:
    """Devices that torch sees and this tool has no clock, counters and data sheets for."""
    found = {
        "ROCm": torch.version.hip is not None and torch.cuda.is_available(),
        "MPS": torch.backends.mps.is_available(),
    }
    reason = "is not supported yet; device=cpu measures this machine's CPU"
    return {name: reason for name, is_here in found.items() if is_here}


def allocated_peaks() -> tuple[int, int]:
    """What the CUDA allocator gave out and held at most since the last call. Units: bytes."""
    torch.cuda.synchronize()
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return peaks


def _wait(device: str) -> Kernel:
    return torch.cuda.synchronize if device == "cuda" else kernels.nothing


def _release() -> None:
    torch._C._cuda_clearCublasWorkspaces()  # the kernels' memory is not the model's
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def canary_kernels(device: str) -> CanaryKernels:
    """The three kernels on the device."""
    generator = torch.Generator().manual_seed(0)
    if device == "cuda":
        block = torch.ones(kernels.READ_BYTES // 4, device=device)
    else:
        block = torch.frombuffer(kernels.huge_pages(kernels.READ_BYTES), dtype=torch.float32)
        block.fill_(1)
    side, width = kernels.SIDE, kernels.WIDTH
    matrix = torch.randn(side, side, generator=generator).to(device)
    layers = [
        torch.randn(width, width, generator=generator).to(device) for _ in range(kernels.LAYERS)
    ]

    def steps() -> None:
        state = torch.ones(1, width, device=device)
        for _ in range(kernels.STEPS):
            for weight in layers:
                state = torch.nn.functional.silu(state @ weight) + state
            state = state / state.norm()

    return CanaryKernels(
        read=torch.inference_mode()(block.sum),
        matmul=torch.inference_mode()(lambda: matrix @ matrix),
        steps=torch.inference_mode()(steps),
        wait=_wait(device),
        release=_release if device == "cuda" else kernels.nothing,
    )


_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}


def peak_kernels(device: str, threads: int) -> PeakKernels:
    """Sums and products on the device, with so many threads."""
    torch.set_num_threads(threads)
    columns = kernels.BLOCK_COLUMNS
    block = torch.ones(kernels.BLOCK_BYTES // 4 // columns, columns, device=device)
    vector = torch.ones(columns, device=device)

    def product(dtype: str, side: int) -> Kernel:
        a, b = (torch.ones(side, side, device=device).to(_DTYPES[dtype]) for _ in range(2))
        multiply: Callable[..., torch.Tensor] = torch._int_mm if dtype == "int8" else torch.mm
        return torch.inference_mode()(partial(multiply, a, b.t()))

    on_cpu = device == "cpu"
    where = f"{threads} threads" if on_cpu else torch.cuda.get_device_name()
    return PeakKernels(
        readers={
            "torch.sum": torch.inference_mode()(block.sum),
            "matrix-vector product": torch.inference_mode()(partial(torch.mv, block, vector)),
        },
        product=product,
        where=f"{where}, torch {torch.__version__}",
        wait=_wait(device),
        bus_bytes_s=None if on_cpu else _bus_bytes_s(),
        block=partial(torch.ones, dtype=torch.uint8, device=device),
        copy=torch.Tensor.copy_,
    )


def _bus_bytes_s() -> float | None:
    """Two transfers a clock (kHz), each of the bus's width (bits); None where it is hidden."""
    properties = torch.cuda.get_device_properties(0)
    return 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 or None


class _Marks(Untimed):
    """Marks prefill and decode in a trace."""

    def __init__(self) -> None:
        self._mark = torch.profiler.record_function(PREFILL_MARK)
        self._is_decoding = False

    def start(self) -> None:
        self._mark.__enter__()

    def token(self, count: int = 1) -> None:
        if not self._is_decoding:
            self._mark.__exit__(None, None, None)
            self._mark = torch.profiler.record_function(DECODE_MARK)
            self._mark.__enter__()
        self._is_decoding = True

    def end(self) -> None:
        self._mark.__exit__(None, None, None)


def profile_request(
    request: Request, ids: Ids, new_tokens: int, device: str, trace: Path
) -> Profile:
    """One request with its first few decode steps under torch's profiler.

    ``trace`` gets the gzipped trace for Perfetto or Chrome.
    """
    steps = min(new_tokens - 1, _PROFILED_STEPS)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    bare_s = _request_s(request, ids, steps, device)
    with torch.profiler.profile(activities=activities) as recorded:
        profiled_s = _request_s(request, ids, steps, device)
    recorded.export_chrome_trace(str(trace))
    return Profile(_phases(recorded, steps), profiled_s / bare_s)


def profile_step(model: PreTrainedModel, ids: Ids, device: str) -> PhaseProfile | None:
    """A decode step of the whole batch under torch's profiler, or a few where they are quick.

    The prompt is read by one row, whose cache all others get, since only the steps count; each row
    goes on with a token of its own, so that experts are chosen as in a real batch.
    """
    cache = new_cache(model)
    on_device = torch.from_numpy(ids).to(model.device)
    model(on_device[:1], **cache, use_cache=True, logits_to_keep=1)
    for kept in cache.values():
        kept.batch_repeat_interleave(len(ids))
    token = on_device[:, -1:]

    def step() -> torch.Tensor:
        logits = model(token, **cache, use_cache=True, logits_to_keep=1).logits
        following: torch.Tensor = logits[:, -1].argmax(-1, keepdim=True)
        return following

    started = time.perf_counter()
    step()
    _wait(device)()
    step_s = time.perf_counter() - started
    steps = max(1, min(_PROFILED_STEPS, int(_PROFILED_S / step_s)))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with (
        torch.profiler.profile(activities=activities) as recorded,
        torch.profiler.record_function(DECODE_MARK),
    ):
        for _ in range(steps):
            token = step()
        token.tolist()
    return next((p for p in _phases(recorded, steps) if p.phase == "decode"), None)


def _phases(recorded: Any, steps: int) -> tuple[PhaseProfile, ...]:
    # profile.events() would build a tree of them, for seconds
    events = [e for e in recorded.profiler.kineto_results.events() if not _is_shadow(e)]
    origin_ns = min(event.start_ns() for event in events)
    return by_kind([_span(e, origin_ns) for e in events], steps)


def _request_s(request: Request, ids: Ids, steps: int, device: str) -> float:
    marks = _Marks()
    started = time.perf_counter()
    request(ids, steps + 1, marks)
    marks.end()
    _wait(device)()
    return time.perf_counter() - started


def _span(event: Any, origin_ns: int) -> Span:
    on_device = event.device_type() == DeviceType.CUDA
    start_s = (event.start_ns() - origin_ns) / 1e9
    # To an operator; of the host, only calls of the CUDA runtime have one.
    linked = event.linked_correlation_id()
    operator = linked if on_device else 0 if linked else event.correlation_id()
    end_s = start_s + event.duration_ns() / 1e9
    return Span(event.name(), start_s, end_s, event.start_thread_id(), operator, on_device)


def _is_shadow(event: Any) -> bool:
    """The device's copy of a mark of the host: no kernel."""
    on_device = event.device_type() == DeviceType.CUDA
    return on_device and event.name() in (PREFILL_MARK, DECODE_MARK)
