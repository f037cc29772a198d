"""Who else had the CPUs while something was timed, as the kernel counted it.

Four counters, read before and after, never in between: time in which the cgroup was throttled,
having used up its quota (``cpu.stat``); time that the hypervisor gave to other machines (steal,
``/proc/stat``); how often the scheduler took a CPU from one of our threads (``getrusage``); time in
which some thread waited for a CPU (pressure stall information, Linux 4.20). They do not correct a
reading; they say whether to trust it.
"""

import dataclasses
import os
import resource
import time
from pathlib import Path
from typing import Any

from bench.meter.host import OWN_CGROUPS, cgroup_files
from bench.meter.memory import STATUS
from bench.record.measurement import Interference

STAT = Path("/proc/stat")
PRESSURE = Path("/proc/pressure/cpu")
_STEAL = 8  # column of the line "cpu" (proc_stat(5)), in clock ticks of all CPUs together


def unreadable() -> list[str]:
    """What this system tells nobody, so that it is absent from every record."""
    places = (
        ("a process's memory", STATUS),
        ("limits of a cgroup", OWN_CGROUPS),
        ("time that other virtual machines took", STAT),
        ("waiting for CPUs", PRESSURE),
    )
    absent = [what for what, file in places if not file.exists()]
    return absent if hasattr(os, "sched_getaffinity") else [*absent, "CPU affinity"]


def counters() -> Interference:
    """Totals since some moment; their differences are readings."""
    return Interference(
        wall_s=time.perf_counter(),
        throttled_s=_throttled_s(),
        steal_s=_steal_s(),
        involuntary_switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        pressure_s=_pressure_s(),
    )


def since(before: Interference) -> Interference:
    """What has come on top of ``before``."""
    now, then = dataclasses.asdict(counters()), dataclasses.asdict(before)
    gained: dict[str, Any] = {
        name: None if now[name] is None else now[name] - then[name] for name in now
    }
    return Interference(**gained)


def _throttled_s() -> float | None:
    found = []
    for file in cgroup_files("cpu.stat"):
        values = dict(line.split() for line in file.read_text().splitlines())
        if "throttled_usec" in values:  # version 2 of cgroups
            found.append(int(values["throttled_usec"]) / 1e6)
        elif "throttled_time" in values:  # version 1
            found.append(int(values["throttled_time"]) / 1e9)
    # At whichever level: the largest total need not be the one that grows
    return sum(found) if found else None


def _steal_s() -> float | None:
    if not STAT.is_file():
        return None
    return int(STAT.read_text().split("\n", 1)[0].split()[_STEAL]) / os.sysconf("SC_CLK_TCK")


def _pressure_s() -> float | None:
    for file in (*cgroup_files("cpu.pressure")[:1], PRESSURE):
        try:
            # Some avg10=0.00 avg60=0.00 avg300=0.00 total=123
            some = file.read_text().splitlines()[0]
        except OSError:  # absent, or compiled in and switched off: reading it is an error then
            continue
        return int(some.rpartition("total=")[2]) / 1e6
    return None
