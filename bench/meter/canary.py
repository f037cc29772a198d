"""Reference kernels, timed before and after a cell: if they changed, it was the machine that
changed.

Each runs many times and the least time is kept: single readings of 64 MiB vary by a factor of three
on a virtual machine (1.2 to 4 ms: small pages or huge ones, a shared cache that fills), their least
by a tenth. All three together take about 0.15 s on two CPU cores. A GPU begins at idle clocks, so
there they wait half a second for them; the first call, which loads the kernel, is no part of it.
"""

import time

from bench.engine.kernels import CanaryKernels, Kernel
from bench.record.measurement import Canary

_TIMES = 40


def read_canary(kernels: CanaryKernels | None) -> Canary | None:
    """The three kernels, now; None where the device had no room for them. Their memory is given
    back, unless the caller keeps them."""
    if kernels is None:
        return None
    canary = Canary(
        read_s=_least_s(kernels, kernels.read),
        matmul_s=_least_s(kernels, kernels.matmul),
        steps_s=_least_s(kernels, kernels.steps),
    )
    release = kernels.release
    del kernels  # they hold what is to be given back
    release()
    return canary


def _least_s(kernels: CanaryKernels, kernel: Kernel) -> float:
    kernels.seconds(kernel)
    warm_until = time.monotonic() + kernels.warm_s
    while time.monotonic() < warm_until:
        kernels.seconds(kernel)
    return min(kernels.seconds(kernel) for _ in range(_TIMES))
