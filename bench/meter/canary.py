"""Reference kernels, timed before and after a cell: if they have changed, it was the machine that
changed.

Three kinds of work, because a machine can lose one without the others (memory bandwidth to a
neighbour, clock frequency to heat, the interpreter's CPU to another process): adding up a block of
memory, a matrix product, and decode steps of a very small model, which are nothing but dispatch.
Each runs many times and the least time is kept: single readings of 64 MiB vary by a factor of three
on a virtual machine (1.2 to 4 ms: small pages or huge ones, a shared cache that fills), their least
by a tenth. All three together take about 0.15 s on two CPU cores.
"""

import contextlib
import mmap
import time
from collections.abc import Callable

import torch

from bench.record.measurement import Sentinel

_READ_FLOATS = 16 * 2**20  # 64 MiB of fp32
_SIDE = 512
_LAYERS, _WIDTH, _STEPS = 2, 64, 16
_WARM_S = 0.02
_TIMES = 40


def read_sentinel(device: str) -> Sentinel:
    """The three kernels on the device, now."""
    generator = torch.Generator().manual_seed(0)
    block = _block(device)
    matrix = torch.randn(_SIDE, _SIDE, generator=generator).to(device)
    layers = [torch.randn(_WIDTH, _WIDTH, generator=generator).to(device) for _ in range(_LAYERS)]

    def steps() -> None:
        state = torch.ones(1, _WIDTH, device=device)
        for _ in range(_STEPS):
            for weight in layers:
                state = torch.nn.functional.silu(state @ weight) + state
            state = state / state.norm()

    with torch.inference_mode():
        return Sentinel(
            read_s=_least_s(device, lambda: block.sum()),
            matmul_s=_least_s(device, lambda: matrix @ matrix),
            steps_s=_least_s(device, steps),
        )


def _block(device: str) -> torch.Tensor:
    """Memory to read, on a CPU in huge pages: without them its speed depends on which small pages
    it happens to get."""
    if device == "cuda":
        return torch.ones(_READ_FLOATS, device=device)
    pages = mmap.mmap(-1, 4 * _READ_FLOATS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.float32).fill_(1)


def _least_s(device: str, kernel: Callable[[], object]) -> float:
    warm_until = time.perf_counter() + _WARM_S  # threads awake, clocks up
    while time.perf_counter() < warm_until:
        kernel()
    times = []
    for _ in range(_TIMES):
        _wait(device)
        started = time.perf_counter()
        kernel()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
