"""How the driver runs a GPU, and what held its clocks down while requests were timed.

The driver counts for how long each limit kept the clocks lower than they would have been. Reading
these counters and the clocks right before and right after the timed requests costs them nothing and
misses nothing in between, unlike a reading in requests of their own. What NVML does not tell is
None, or absent. Source: nvml.h, nvmlDeviceGetViolationStatus (nanoseconds since the driver was
loaded) and nvmlDeviceGetEnforcedPowerLimit (milliwatts).
"""

from functools import partial

import pynvml

from bench.meter.nvml import answer, clock_hz, opened
from bench.record.measurement import GpuState

# Left out: low utilization, which is idleness, and the two that mean clocks set by a person
_LIMITS = {
    "power": pynvml.NVML_PERF_POLICY_POWER,
    "heat": pynvml.NVML_PERF_POLICY_THERMAL,
    "sync boost": pynvml.NVML_PERF_POLICY_SYNC_BOOST,
    "the board's limit": pynvml.NVML_PERF_POLICY_BOARD_LIMIT,
    "reliability": pynvml.NVML_PERF_POLICY_RELIABILITY,
}


def gpu_state(uuid: str | None) -> GpuState | None:
    """Clocks, limit and counters now; None where there is no NVML or no such device.

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    if uuid is None:
        return None
    with opened(uuid) as handle:
        if handle is None:
            return None
        sm_clock_hz = clock_hz(handle, pynvml.NVML_CLOCK_SM)
        memory_clock_hz = clock_hz(handle, pynvml.NVML_CLOCK_MEM)
        limit_mw = answer(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        held = {
            name: answer(partial(pynvml.nvmlDeviceGetViolationStatus, handle, policy))
            for name, policy in _LIMITS.items()
        }
    return GpuState(
        sm_clock_hz=sm_clock_hz,
        memory_clock_hz=memory_clock_hz,
        power_limit_w=None if limit_mw is None else limit_mw / 1e3,
        held_down_s={
            name: status.violationTime / 1e9 for name, status in held.items() if status is not None
        },
    )


def device_settings(uuid: str) -> dict[str, str]:
    """How this device is set up, as far as NVML tells: what makes it another one for its numbers.
    Clocks are those of its multiprocessors."""
    with opened(uuid) as handle:
        if handle is None:
            return {}
        limit_mw = answer(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        ecc = answer(lambda: pynvml.nvmlDeviceGetEccMode(handle))
        chosen_mhz = answer(
            lambda: pynvml.nvmlDeviceGetClock(
                handle, pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_ID_APP_CLOCK_TARGET
            )
        )
        most_mhz = answer(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM))
    told = {
        "power limit, W": None if limit_mw is None else f"{limit_mw / 1e3:g}",
        "ECC": None if ecc is None else "on" if ecc[0] else "off",
        "application clock, MHz": chosen_mhz,
        "highest clock, MHz": most_mhz,
    }
    return {name: str(value) for name, value in told.items() if value is not None}
