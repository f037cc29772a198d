"""A device before any model: precision flags, what there is, the allocator, reference kernels."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.engine import kernels
from bench.engine.kernels import CanaryKernels, Kernel, PeakKernels
from bench.engine.protocol import Accelerator

# Of a GPU: a read of less than a millisecond and a product of 512 would be launches above all
_CUDA_BLOCK_BYTES, _CUDA_SIDE, _CUDA_WARM_S = 4 * 2**30, 4096, 0.5


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
    """The current CUDA device, found without making a context; None without one that can be
    used. ROCm answers to the name of CUDA, and is none."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    if _refusal(torch.cuda.init) is not None:
        return None
    properties = _properties()
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


def _refusal(call: Callable[[], object]) -> str | None:
    """Why CUDA refuses it, in torch's words. ``is_available`` asks NVML alone, which counts devices
    for which the driver is too old, or whose device file is missing."""
    try:
        call()
    except RuntimeError as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _properties() -> Any:
    return torch.cuda.get_device_properties(torch.cuda.current_device())


def unsupported() -> dict[str, str]:
    """Devices that are here and cannot be used, or that this tool has no clock, counters and data
    sheets for. Makes a context, which a device in a prohibited compute mode refuses."""
    is_rocm, has_gpu = torch.version.hip is not None, torch.cuda.is_available()
    found: dict[str, str] = {}
    if has_gpu and not is_rocm:
        obstacle = _refusal(torch.cuda.init) or _refusal(lambda: torch.zeros(1, device="cuda"))
        if obstacle is not None:
            found["CUDA"] = f"cannot be used: {obstacle}"
    others = {"ROCm": is_rocm and has_gpu, "MPS": torch.backends.mps.is_available()}
    reason = "is not supported yet; device=cpu measures this machine's CPU"
    return found | {name: reason for name, is_here in others.items() if is_here}


def allocated_peaks() -> tuple[int, int]:
    """What the CUDA allocator gave out and held at most since the last call. Units: bytes."""
    torch.cuda.synchronize()
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return peaks


def _device_seconds(kernel: Kernel) -> float:
    """By the device's clock: on the host's the launch and the wait would count, a tenth of a
    millisecond and more."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    kernel()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3  # ms


def _release() -> None:
    torch._C._cuda_clearCublasWorkspaces()  # the kernels' memory is not the model's
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def canary_kernels(device: str) -> CanaryKernels | None:
    """The three kernels on the device: what they read is more than its L2 cache holds. None where
    the device has no room for them: nothing is allocated later."""
    try:
        return _canary_kernels(device)
    except torch.OutOfMemoryError:
        return None


def _canary_kernels(device: str) -> CanaryKernels:
    generator = torch.Generator().manual_seed(0)
    side, width = kernels.SIDE, kernels.WIDTH
    if device == "cuda":
        side = _CUDA_SIDE
        read_bytes = canary_read_bytes(_properties().L2_cache_size)
        block = torch.ones(read_bytes // 4, device=device)
    else:
        block = torch.frombuffer(kernels.huge_pages(kernels.READ_BYTES), dtype=torch.float32)
        block.fill_(1)
    matrix = torch.randn(side, side, generator=generator).to(device)
    product = torch.empty_like(matrix)
    layers = [
        torch.randn(width, width, generator=generator).to(device) for _ in range(kernels.LAYERS)
    ]

    def steps() -> None:
        state = torch.ones(1, width, device=device)
        for _ in range(kernels.STEPS):
            for weight in layers:
                state = torch.nn.functional.silu(state @ weight) + state
            state = state / state.norm()

    of_device = (
        {"seconds": _device_seconds, "warm_s": _CUDA_WARM_S, "release": _release}
        if device == "cuda"
        else {}
    )
    return CanaryKernels(
        read=torch.inference_mode()(block.sum),
        matmul=torch.inference_mode()(lambda: torch.mm(matrix, matrix, out=product)),
        steps=torch.inference_mode()(steps),
        **of_device,  # type: ignore[arg-type]
    )


def canary_read_bytes(l2_bytes: int) -> int:
    """What the canary reads of a GPU with such a cache: most of it has to come from memory."""
    return max(kernels.READ_BYTES, 8 * l2_bytes)


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
    on_cpu = device == "cpu"
    block_bytes = kernels.BLOCK_BYTES if on_cpu else peak_block_bytes(_properties().total_memory)

    @functools.cache  # made when it is read: a known data sheet needs none of it
    def block() -> torch.Tensor:
        return torch.ones(block_bytes // 4 // columns, columns, device=device)

    @functools.cache
    def vector() -> torch.Tensor:
        return torch.ones(columns, device=device)

    def product(dtype: str, side: int) -> Kernel:
        # Equal numbers switch few transistors: a GPU then draws less power and clocks higher
        a, b = ((8 * torch.randn(side, side, device=device)).to(_DTYPES[dtype]) for _ in range(2))
        multiply: Callable[..., torch.Tensor] = torch._int_mm if dtype == "int8" else torch.mm
        return torch.inference_mode()(partial(multiply, a, b.t()))

    where = f"{threads} threads" if on_cpu else torch.cuda.get_device_name()
    return PeakKernels(
        readers={
            "torch.sum": torch.inference_mode()(lambda: block().sum()),
            "matrix-vector product": torch.inference_mode()(lambda: torch.mv(block(), vector())),
        },
        product=product,
        where=f"{where}, torch {torch.__version__}",
        block_bytes=block_bytes,
        seconds=kernels.host_seconds if on_cpu else _device_seconds,
        bus_bytes_s=None if on_cpu else _bus_bytes_s(),
        block=partial(torch.ones, dtype=torch.uint8, device=device),
        copy=torch.Tensor.copy_,
    )


def peak_block_bytes(memory_bytes: int) -> int:
    """What a peak of reading reads of a GPU with so much memory: some of its milliseconds, and no
    more than an eighth of it."""
    row = 4 * kernels.BLOCK_COLUMNS
    return min(_CUDA_BLOCK_BYTES, memory_bytes // 8) // row * row


def _bus_bytes_s() -> float | None:
    """Two transfers a clock (kHz), each of the bus's width (bits); None where it is hidden."""
    properties = _properties()
    return 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 or None
