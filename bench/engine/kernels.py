"""Small kernels by which a machine is judged: an engine gives its own, ``meter`` times them.

The canary's three take a fraction of a second and tell whether the machine has changed; the peaks'
take seconds and tell what it can do at most. numpy's stand in for engines that bring none.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

READ_BYTES = 64 * 2**20
SIDE = 512
LAYERS, WIDTH, STEPS = 2, 64, 16
BLOCK_BYTES = 512 * 2**20  # several times one's share of a CPU's largest cache
BLOCK_COLUMNS = 8192

Kernel = Callable[[], object]


def nothing() -> None:
    """For a device that keeps nothing of what its kernels took."""


def host_seconds(kernel: Kernel) -> float:
    """How long a kernel takes that has finished when Python goes on."""
    started = time.perf_counter()
    kernel()
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class CanaryKernels:
    """Three kinds of work, since a machine can lose one without the others.

    Memory bandwidth goes to a neighbour, clock frequency to heat, the interpreter's CPU to another
    process.
    """

    read: Kernel  # adds up memory, more than its caches hold
    matmul: Kernel  # a product of two square matrices, fp32
    steps: Kernel  # STEPS decode steps of a very small model: nothing but dispatch
    seconds: Callable[[Kernel], float] = host_seconds  # by the device's own clock
    warm_s: float = 0.02  # until threads are awake and clocks are up
    release: Kernel = nothing  # gives back the memory that the kernels took


def host_block(size: int) -> Any:
    """So many bytes of the host's memory, each written."""
    return np.ones(size, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class PeakKernels:
    """What finds out the most that a device can do."""

    readers: Mapping[str, Kernel]  # by name: each reads ``block_bytes`` once
    product: Callable[[str, int], Kernel]  # of a dtype and a side: side x side matrices, A B^T
    where: str  # like 2 threads, torch 2.13.0
    block_bytes: int = BLOCK_BYTES
    seconds: Callable[[Kernel], float] = host_seconds
    bus_bytes_s: float | None = None  # what the memory's clock and width come to, to pick a sheet
    # For the self-test: so many bytes of the device's memory, each written; and from one such block
    # to another, target first
    block: Callable[[int], Any] = host_block
    copy: Callable[[Any, Any], object] = np.copyto


def affinity() -> tuple[int, ...]:
    """The CPUs that this process may use; all of them on systems that pin none (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def huge_pages(size: int) -> mmap.mmap:
    """Memory to read in huge pages: its speed depends on which small pages it happens to get."""
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def numpy_canary() -> CanaryKernels:
    """The three kernels in numpy."""
    generator = np.random.default_rng(0)
    block = np.frombuffer(huge_pages(READ_BYTES), dtype=np.float32)
    block.fill(1)
    matrix = generator.standard_normal((SIDE, SIDE), dtype=np.float32)
    layers = [generator.standard_normal((WIDTH, WIDTH), dtype=np.float32) for _ in range(LAYERS)]

    def steps() -> None:
        state = np.ones((1, WIDTH), dtype=np.float32)
        for _ in range(STEPS):
            for weight in layers:
                state = np.tanh(state @ weight) + state
            state = state / np.linalg.norm(state)

    return CanaryKernels(read=block.sum, matmul=lambda: matrix @ matrix, steps=steps)


def numpy_peaks() -> PeakKernels:
    """Sums and products in numpy, with as many threads as its BLAS takes."""
    block = np.ones((BLOCK_BYTES // 4 // BLOCK_COLUMNS, BLOCK_COLUMNS), dtype=np.float32)
    vector = np.ones(BLOCK_COLUMNS, dtype=np.float32)
    readers: dict[str, Kernel] = {
        "numpy.sum": block.sum,
        "matrix-vector product": partial(np.matmul, block, vector),
    }

    def product(dtype: str, side: int) -> Kernel:
        if dtype != "fp32":
            raise RuntimeError(f"numpy has no fast product in {dtype}")
        matrix: Any = np.ones((side, side), dtype=np.float32)
        return partial(np.matmul, matrix, matrix.T)

    return PeakKernels(readers, product, f"numpy {np.__version__}")
