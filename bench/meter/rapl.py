"""Energy of the CPU's packages, by the counters that Linux shows of RAPL (Running Average Power
Limit; AMD's too).

``energy_uj`` of a zone below ``/sys/class/powercap`` counts microjoules. The processor refreshes it
about every millisecond, so a short window is enough. It begins anew at ``max_energy_range_uj``,
under load after minutes, on some processors after one: it is read all the time. Only zones called
``package`` count, one a socket or die, all added up: their sub-zones (cores, graphics, DRAM) are
parts of them or beside them, ``psys`` is the whole platform, and ``intel-rapl-mmio`` shows the same
packages once more (Documentation/power/powercap/powercap.rst of the kernel).

A package is more than our process: whatever else ran on the machine meanwhile is in its energy.
Subtracting the idle power takes away what others draw all the time, not what they do now and then.

Since CVE-2020-8694 only root may read the counters, unless the system says otherwise. Virtual
machines have none.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from bench.meter.watching import watched
from bench.record.measurement import Reading, Telemetry

POWERCAP = Path("/sys/class/powercap")

_Sample = tuple[float, tuple[int, ...]]  # when, and the counter of each package in microjoules


def counters() -> list[Path]:
    """The counter of each package; empty where the system has none."""
    # A colon more is a zone within a package
    zones = [zone for zone in POWERCAP.glob("intel-rapl:*") if zone.name.count(":") == 1]
    names = {zone: zone / "name" for zone in sorted(zones)}
    return [
        zone / "energy_uj"
        for zone, name in names.items()
        if name.is_file() and name.read_text().startswith("package")
    ]


def forbidden() -> list[Path]:
    """Those of the counters that this user may not read."""
    return [counter for counter in counters() if not _is_permitted(counter)]


def is_readable() -> bool:
    """Whether there are counters, and all of them may be read: some of the sockets are no sum."""
    return bool(counters()) and not forbidden()


def availability() -> str | None:
    """What can be read here, or what has to be typed before it can; None where there is nothing."""
    if files := forbidden():
        command = f"sudo chmod a+r {' '.join(map(str, files))}"
        return f"not permitted; until the next start of the machine: {command}"
    packages = len(counters())
    return f"RAPL, {packages} package{'s' if packages > 1 else ''}" if packages else None


def _is_permitted(file: Path) -> bool:
    try:
        file.open().close()
    except PermissionError:
        return False
    return True


def watch(work: Callable[[], object], window_s: float, every_s: float = 1.0) -> Telemetry:
    """Run ``work`` again and again for ``window_s`` and add up what all packages draw meanwhile;
    the energy of each reading is since the window began.

    Args:
        every_s: less than a counter takes to come around.
    """
    files = counters()
    ranges = [int((file.parent / "max_energy_range_uj").read_text()) for file in files]
    samples, rounds = watched(lambda: _sample(files), work, window_s, every_s)
    began_s, ended_s = samples[0][0], samples[-1][0]
    total_j, readings = 0.0, [_reading(0.0, 0.0)]
    for (_, before), (at_s, after) in pairwise(samples):
        total_j += sum(map(_gained_uj, before, after, ranges)) / 1e6
        readings.append(_reading(at_s - began_s, total_j))
    return Telemetry(
        window_s=ended_s - began_s,
        rounds=rounds,
        readings=tuple(readings),
        energy_j=total_j or None,  # a counter that stands still is no reading
        power_w_mean=total_j / (ended_s - began_s) or None,
        throttled=None,
    )


def idle_power_w(settle_s: float = 2.0, window_s: float = 10.0) -> float | None:
    """Mean power of the packages while this process does nothing; None where their counters stand
    still.

    Ask in the process that was measured, with the model in memory.

    Args:
        settle_s: before it counts: threads of a finished request spin for a while.
    """
    time.sleep(settle_s)
    return watch(lambda: time.sleep(0.1), window_s).power_w_mean


def _sample(files: list[Path]) -> _Sample:
    return time.perf_counter(), tuple(int(file.read_text()) for file in files)


def _gained_uj(before: int, after: int, range_uj: int) -> int:
    return after - before if after >= before else after - before + range_uj


def _reading(at_s: float, energy_j: float) -> Reading:
    return Reading(
        at_s=at_s,
        sm_clock_hz=None,
        memory_clock_hz=None,
        temperature_c=None,
        power_w=None,
        used_bytes=None,
        energy_j=energy_j,
        throttle=None,
    )
