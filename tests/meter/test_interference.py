"""Who else had the CPUs, read off files of our own making."""

import os
from pathlib import Path

import pytest

from bench.meter import host, interference
from bench.meter.interference import counters, since

STAT = "cpu  100 0 50 900 5 0 1 {steal} 0 0\ncpu0 1 2 3\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a version 2 cgroup of our own making."""
    group = tmp_path / "cgroup" / "ours"
    group.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/ours\n")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(interference, "STAT", tmp_path / "stat")
    monkeypatch.setattr(interference, "PRESSURE", tmp_path / "pressure")
    write(tmp_path, throttled_us=1_000_000, steal=200, stalled_us=3_000_000)
    return tmp_path


def write(system: Path, throttled_us: int, steal: int, stalled_us: int) -> None:
    group = system / "cgroup" / "ours"
    (group / "cpu.stat").write_text(
        f"usage_usec 9\nnr_throttled 3\nthrottled_usec {throttled_us}\n"
    )
    (group / "cpu.pressure").write_text(
        f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled_us}\nfull total=1\n"
    )
    (system / "stat").write_text(STAT.format(steal=steal))


def test_interference_is_what_came_on_top(system: Path) -> None:
    before = counters()
    write(
        system, throttled_us=1_500_000, steal=200 + os.sysconf("SC_CLK_TCK"), stalled_us=3_250_000
    )
    found = since(before)
    assert (found.throttled_s, found.steal_s, found.pressure_s) == (0.5, 1.0, 0.25)
    assert found.wall_s > 0
    assert found.involuntary_switches is not None
    assert found.involuntary_switches >= 0


def test_version_1_of_cgroups_counts_in_nanoseconds(system: Path) -> None:
    group = system / "cgroup" / "ours"
    (group / "cpu.stat").write_text("nr_periods 4\nnr_throttled 3\nthrottled_time 2000000000\n")
    assert counters().throttled_s == 2.0


def test_the_machines_pressure_stands_in_for_the_cgroups(system: Path) -> None:
    (system / "cgroup" / "ours" / "cpu.pressure").unlink()
    assert counters().pressure_s is None
    (system / "pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7000000\n")
    assert counters().pressure_s == 7.0


def test_what_the_system_does_not_tell_is_none_and_not_zero(system: Path) -> None:
    group = system / "cgroup" / "ours"
    before = counters()
    for file in (group / "cpu.stat", group / "cpu.pressure", system / "stat"):
        file.unlink()
    found = since(before)
    assert (found.throttled_s, found.steal_s, found.pressure_s) == (None, None, None)
