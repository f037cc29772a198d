"""The reference kernels: the least of many times of each, on a clock that only they move."""

from collections.abc import Iterator

from bench.engine.kernels import CanaryKernels, numpy_canary
from bench.meter.canary import read_canary


class Machine:
    """A clock, and kernels that take the times of a list and then its last one again and again."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.released = 0
        self.waits = 0

    def kernel(self, *times_s: float) -> "Iterator[None]":
        left = list(times_s)

        def run() -> None:
            self.now_s += left.pop(0) if len(left) > 1 else left[0]

        return run  # type: ignore[return-value]

    def wait(self) -> None:
        self.waits += 1

    def release(self) -> None:
        self.released += 1


def kernels_of(machine: Machine, *reads_s: float) -> CanaryKernels:
    return CanaryKernels(
        read=machine.kernel(*reads_s),  # type: ignore[arg-type]
        matmul=machine.kernel(0.5),  # type: ignore[arg-type]
        steps=machine.kernel(0.25),  # type: ignore[arg-type]
        wait=machine.wait,
        release=machine.release,
        timer=lambda: machine.now_s,
    )


def test_the_least_time_of_each_kernel_counts() -> None:
    machine = Machine()
    canary = read_canary(kernels_of(machine, 9.0, 4.0, 2.0, 3.0))
    assert (canary.read_s, canary.matmul_s, canary.steps_s) == (2.0, 0.5, 0.25)
    assert machine.released == 1


def test_the_first_call_warms_up_and_is_no_reading() -> None:
    machine = Machine()
    canary = read_canary(kernels_of(machine, 1.0, 4.0))
    assert canary.read_s == 4.0


def test_the_device_has_finished_before_and_after_each_reading() -> None:
    machine = Machine()
    read_canary(kernels_of(machine, 1.0))
    assert machine.waits == 3 * 2 * 40


def test_numpys_kernels_take_some_time() -> None:
    canary = read_canary(numpy_canary())
    assert min(canary.read_s, canary.matmul_s, canary.steps_s) > 0
