"""Reference kernels, timed before and after a cell: if they have changed, it was the machine that changed.

Three kinds of work, because a machine can lose one without the others (memory bandwidth to a neighbour, clock frequency
to heat, the interpreter's CPU to another process): adding up a block of memory that no cache holds, a matrix product,
and decode steps of a very small model, which are nothing but dispatch. Each is run a few times and its median kept. All
three together take about 0.1 s on two CPU cores.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from bench.result import Sentinel

_READ_FLOATS = 16 * 2**20  # 64 MiB of fp32
_SIDE = 512
_LAYERS, _WIDTH, _STEPS = 2, 64, 16
_TIMES = 5


def read_sentinel(device: str) -> Sentinel:
    """The three kernels on the device, now."""
    generator = torch.Generator().manual_seed(0)
    block = torch.ones(_READ_FLOATS, device=device)
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
            read_s=_median_s(device, lambda: block.sum()),
            matmul_s=_median_s(device, lambda: matrix @ matrix),
            steps_s=_median_s(device, steps),
        )


def _median_s(device: str, kernel: Callable[[], object]) -> float:
    kernel()  # threads awake, memory mapped
    times = []
    for _ in range(_TIMES):
        _wait(device)
        started = time.perf_counter()
        kernel()
        _wait(device)
        times.append(time.perf_counter() - started)
    return median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
