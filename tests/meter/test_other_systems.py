"""Where there is no /proc, no cgroup and no affinity, as on macOS: a sweep runs, and what cannot be
read there is absent. The files are hidden, and the functions of Linux taken away."""

import os
from pathlib import Path

import pytest

from bench.analysis.metrics import derive
from bench.engine.kernels import affinity
from bench.meter import host, interference, memory
from bench.meter.interference import unreadable
from tests.scripted import in_this_process, scripted, sweep

HIDDEN = (
    (memory, "STATUS"),
    (memory, "CLEAR_REFS"),
    (interference, "STATUS"),
    (interference, "STAT"),
    (interference, "PRESSURE"),
    (interference, "OWN_CGROUPS"),
    (host, "OWN_CGROUPS"),
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in HIDDEN:
        monkeypatch.setattr(module, name, tmp_path / "no such folder" / name)
    for name in ("sched_getaffinity", "sched_setaffinity", "pidfd_open"):
        monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("elsewhere")
def test_a_sweep_runs_without_what_linux_tells(tmp_path: Path) -> None:
    code, (result,) = sweep(tmp_path, scripted(), worker=in_this_process)
    assert (code, result.outcome.status) == (0, "ok")
    (measurement,) = result.measurements
    assert measurement.run_memory.rss_peak_bytes is None
    assert measurement.rss_before_load_bytes is None
    seen = measurement.interference
    assert (seen.throttled_s, seen.steal_s, seen.pressure_s) == (None, None, None)
    assert "rss_growth_bytes" not in derive(result)
    assert result.host.cpu_ids == affinity() == tuple(range(os.cpu_count() or 1))
    assert result.host.memory_bytes > 2**20


@pytest.mark.usefixtures("elsewhere")
def test_cpus_cannot_be_chosen_there(tmp_path: Path) -> None:
    code, (result,) = sweep(tmp_path, scripted(cpus=[0]), worker=in_this_process)
    assert (code, result.outcome.status) == (2, "skipped")
    assert result.outcome.reason == ("cpus=[0]: this system pins no process to CPUs; want cpus=all")


@pytest.mark.usefixtures("elsewhere")
def test_the_doctor_names_what_is_absent() -> None:
    assert unreadable() == [
        "a process's memory",
        "limits of a cgroup",
        "time that other virtual machines took",
        "waiting for CPUs",
        "CPU affinity",
    ]


def test_here_all_of_it_is_read() -> None:
    assert "a process's memory" not in unreadable()
