"""Everything that NVML tells: memory, processes, driver; clocks, power and energy while a cell
runs.

Without torch, so that the driver process may ask too. Energy is the difference of the driver's
counter and not the sum of power readings: since Ampere (GA100 apart) a power reading is the mean of
the last second, and some chips look at their power only part of the time. The counter refreshes
about every 100 ms, so a window below 10 s gives no energy at all, rather than one that is up to
20 % off.

What the device does not support or this user may not see is None, never 0. A MIG instance has
neither clocks nor power of its own, so there almost everything is None. A GPU that is gone is the
only error: nothing read before it counts.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from bench.errors import CellFailure
from bench.meter.watching import watched
from bench.record.measurement import Reading, Telemetry

SHORTEST_ENERGY_WINDOW_S = 10.0

# Bits of nvmlClocksEventReasons in nvml.h. Left out: 0x1 idle, 0x2 application clocks and 0x100
# display clocks, which are choices and no distress. 0x200 and 0x400 are new; older bindings have no
# names for them.
_THROTTLING = {
    0x4: "sw_power_cap",
    # By a half or more; also set for a moment when the performance state changes
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x200: "board_limit",
    0x400: "reliability",
}
_TOLERANCE_BYTES = 64 * 2**20  # what else may come and go on a device in a while
_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    name: str | None
    used_bytes: int | None


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None without one. Asks no CUDA."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def used_bytes(uuid: str | None) -> int | None:
    """Memory in use on the whole device; None where NVML is absent, refuses, or knows no such
    device."""
    if uuid is None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).used)
    except pynvml.NVMLError:  # NOT_SUPPORTED is no reading, not 0
        return None
    finally:
        pynvml.nvmlShutdown()


def nvml_uuid(uuid: str) -> str:
    """NVML's name of a device whose UUID CUDA gives without saying what it is of."""
    instance = f"MIG-{uuid}"
    return instance if used_bytes(instance) is not None else f"GPU-{uuid}"


def wait_until_free(uuid: str | None, baseline_bytes: int | None, limit_s: float = 30.0) -> int:
    """Wait until the device holds no more than before the first cell; returns what stays held.

    A process that has ended may still hold memory for a moment: the next cell would start from a
    false baseline. Units: bytes.
    """
    deadline = time.monotonic() + limit_s
    while True:
        used = used_bytes(uuid)
        if used is None or baseline_bytes is None or used <= baseline_bytes + _TOLERANCE_BYTES:
            return 0
        if time.monotonic() > deadline:
            return used - baseline_bytes
        time.sleep(0.2)


def watch(
    uuid: str, work: Callable[[], object], window_s: float = 10.0, every_s: float = 0.1
) -> Telemetry | None:
    """Run ``work`` again and again for ``window_s`` and read the GPU meanwhile; None, and no work,
    where NVML is absent.

    Args:
        uuid: NVML's name of the device, like GPU-5f4c....
        work: has to wait for the device before it returns, or the window ends before its last round
            does.

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    with opened(uuid) as handle:
        if handle is None:
            return None
        started_s = time.perf_counter()
        return _summary(*watched(lambda: _read(handle, started_s), work, window_s, every_s))


def idle_power_w(
    uuid: str, settle_s: float = 5.0, window_s: float = 10.0, every_s: float = 0.1
) -> float | None:
    """Mean power while this process does nothing; None where NVML cannot tell.

    Ask in the process that was measured, with the model in memory: a CUDA context alone keeps the
    clocks up. By the energy counter where there is one, so that it can be subtracted from an energy
    that was read the same way.

    Args:
        settle_s: before it counts; more than the second over which NVML averages power.

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    time.sleep(settle_s)
    idle = watch(uuid, lambda: time.sleep(every_s), window_s, every_s)
    if idle is None:
        return None
    return idle.power_w_mean if idle.energy_j is None else idle.energy_j / idle.window_s


def other_processes(uuid: str, own_pids: Collection[int]) -> list[GpuProcess]:
    """Whoever else holds memory of the GPU, as far as it can be told; empty where NVML lists nobody
    or may not say.

    In a container the driver lists the host's pids, by which our own processes look foreign. So
    nobody is named unless one of our own is on the list too.

    Args:
        own_pids: of our processes that have a CUDA context on it now. With none, everybody on the
            list is another.

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    with opened(uuid) as handle:
        if handle is None:
            return []
        listed = [
            *(answer(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)) or ()),
            *(answer(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle)) or ()),
        ]
    # One may compute and draw
    held = {process.pid: process.usedGpuMemory for process in listed}
    if own_pids and held.keys().isdisjoint(own_pids):
        return []
    return [
        GpuProcess(pid, _name(pid), used)
        for pid, used in sorted(held.items())
        if pid not in own_pids
    ]


@contextmanager
def opened(uuid: str) -> Iterator[Any]:
    """NVML's handle of the device; None where there is no NVML or it does not know the device."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield answer(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid))
    finally:
        pynvml.nvmlShutdown()


def answer(*questions: Callable[[], Any]) -> Any:
    """The first answer that NVML gives; None when it refuses them all.

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    for question in questions:
        try:
            return question()
        except pynvml.NVMLError as error:
            if error.value in _GONE:
                raise CellFailure(
                    "failed",
                    f"the GPU dropped out (NVML: {error}); the kernel log has its Xid, a reset or"
                    " reboot helps",
                ) from error
    return None


def clock_hz(handle: Any, kind: int) -> int | None:
    """One of the device's clocks now; None where NVML does not tell. ``kind``: NVML_CLOCK_SM, ...

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    clock_mhz = answer(lambda: pynvml.nvmlDeviceGetClockInfo(handle, kind))
    return None if clock_mhz is None else clock_mhz * 1_000_000


def _read(handle: Any, started_s: float) -> Reading:
    at_s = time.perf_counter() - started_s
    # First: it belongs to at_s
    energy_mj = answer(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    power_mw = answer(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
    sm_clock_hz = clock_hz(handle, pynvml.NVML_CLOCK_SM)
    memory_clock_hz = clock_hz(handle, pynvml.NVML_CLOCK_MEM)
    memory = answer(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    temperature_c = answer(
        lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        # Replaces it in CUDA 14
        lambda: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),
    )
    reasons = answer(
        lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        # Its name before driver 535
        lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    return Reading(
        at_s=at_s,
        sm_clock_hz=sm_clock_hz,
        memory_clock_hz=memory_clock_hz,
        temperature_c=temperature_c,
        power_w=None if power_mw is None else power_mw / 1e3,
        used_bytes=None if memory is None else memory.used,
        energy_j=None if energy_mj is None else energy_mj / 1e3,
        throttle=(
            None
            if reasons is None
            else tuple(name for bit, name in _THROTTLING.items() if reasons & bit)
        ),
    )


def _summary(readings: list[Reading], rounds: int) -> Telemetry:
    first, *between, last = readings
    powers_w = [reading.power_w for reading in between if reading.power_w is not None]
    throttles = [reading.throttle for reading in between if reading.throttle is not None]
    seen = {name for throttle in throttles for name in throttle}
    return Telemetry(
        window_s=last.at_s - first.at_s,
        rounds=rounds,
        readings=tuple(readings),
        energy_j=_energy_j(first, last),
        power_w_mean=sum(powers_w) / len(powers_w) if powers_w else None,
        throttled=(
            tuple(name for name in _THROTTLING.values() if name in seen) if throttles else None
        ),
    )


def _energy_j(first: Reading, last: Reading) -> float | None:
    if (
        first.energy_j is None
        or last.energy_j is None
        or last.at_s - first.at_s < SHORTEST_ENERGY_WINDOW_S
    ):
        return None
    energy_j = last.energy_j - first.energy_j
    # A counter that stands still or begins anew is no reading
    return energy_j if energy_j > 0 else None


def _name(pid: int) -> str | None:
    """What a process is called; None where it is gone, hidden, or numbered in another namespace."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return None
