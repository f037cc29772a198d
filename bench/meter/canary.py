"""Reference kernels, timed before and after a cell: if they changed, it was the machine that
changed.

Each runs many times and the least time is kept: single readings of 64 MiB vary by a factor of three
on a virtual machine (1.2 to 4 ms: small pages or huge ones, a shared cache that fills), their least
by a tenth. All three together take about 0.15 s on two CPU cores.
"""

from bench.engine.kernels import CanaryKernels, Kernel
from bench.record.measurement import Canary

_WARM_S = 0.02
_TIMES = 40


def read_canary(kernels: CanaryKernels) -> Canary:
    """The three kernels, now; their memory is given back."""
    canary = Canary(
        read_s=_least_s(kernels, kernels.read),
        matmul_s=_least_s(kernels, kernels.matmul),
        steps_s=_least_s(kernels, kernels.steps),
    )
    kernels.release()
    return canary


def _least_s(kernels: CanaryKernels, kernel: Kernel) -> float:
    warm_until = kernels.timer() + _WARM_S  # threads awake, clocks up
    while kernels.timer() < warm_until:
        kernel()
    times = []
    for _ in range(_TIMES):
        kernels.wait()
        started = kernels.timer()
        kernel()
        kernels.wait()
        times.append(kernels.timer() - started)
    return min(times)
