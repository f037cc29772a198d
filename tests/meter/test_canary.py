"""The reference kernels: what is kept of many readings."""

import itertools
import time
import weakref

from bench.engine.kernels import CanaryKernels, Kernel, numpy_canary
from bench.meter.canary import read_canary


class Machine:
    """A device whose kernels take the times that they are given, the last one again and again."""

    def __init__(self) -> None:
        self.released = 0
        self.calls = 0

    def kernel(self, *times_s: float) -> Kernel:
        times = itertools.chain(times_s, itertools.repeat(times_s[-1]))
        return lambda: next(times)

    def seconds(self, kernel: Kernel) -> float:
        self.calls += 1
        taken: float = kernel()  # type: ignore[assignment]
        return taken

    def release(self) -> None:
        self.released += 1


def kernels_of(machine: Machine, *reads_s: float, warm_s: float = 0) -> CanaryKernels:
    return CanaryKernels(
        read=machine.kernel(*reads_s),
        matmul=machine.kernel(0.5),
        steps=machine.kernel(0.25),
        seconds=machine.seconds,
        warm_s=warm_s,
        release=machine.release,
    )


def test_the_least_time_of_each_kernel_counts() -> None:
    machine = Machine()
    canary = read_canary(kernels_of(machine, 9.0, 4.0, 2.0, 3.0))
    assert canary is not None
    assert (canary.read_s, canary.matmul_s, canary.steps_s) == (2.0, 0.5, 0.25)
    assert machine.released == 1


def test_the_first_call_loads_the_kernel_and_is_no_reading() -> None:
    machine = Machine()
    canary = read_canary(kernels_of(machine, 1.0, 4.0))
    assert canary is not None
    assert canary.read_s == 4.0
    assert machine.calls == 3 * 41


def test_a_device_at_idle_clocks_is_given_time_before_a_reading_counts() -> None:
    machine = Machine()
    began = time.monotonic()
    # Idle for the first hundred calls of 41: only who waits reads the later ones alone
    canary = read_canary(kernels_of(machine, *[1.0] * 100, 3.0, warm_s=0.05))
    assert canary is not None
    assert time.monotonic() - began >= 3 * 0.05
    assert canary.read_s == 3.0


def test_what_the_kernels_hold_is_let_go_before_it_is_given_back() -> None:
    class Block:
        """As a tensor on the device."""

    held = []

    def kernels() -> CanaryKernels:
        block = Block()
        seen = weakref.ref(block)

        def kernel() -> float:
            return 1.0 if block is not None else 0.0

        machine = Machine()
        return CanaryKernels(
            read=kernel,
            matmul=kernel,
            steps=kernel,
            seconds=machine.seconds,
            warm_s=0,
            release=lambda: held.append(seen()),
        )

    read_canary(kernels())  # as a measured process does: nobody else holds them
    assert held == [None]


def test_a_device_without_room_for_them_has_no_canary() -> None:
    assert read_canary(None) is None


def test_numpys_kernels_take_some_time() -> None:
    canary = read_canary(numpy_canary())
    assert canary is not None
    assert min(canary.read_s, canary.matmul_s, canary.steps_s) > 0
