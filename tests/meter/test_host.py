"""What a process may use of this machine, and what it says of itself."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from bench.config.parse import parse
from bench.engine.protocol import Accelerator
from bench.engine.scripted import Scripted
from bench.meter import host
from bench.record.result import Host

MIB = 2**20


LAYOUTS = [
    ("0::/", ".", "cpu.max", "memory.max"),  # in a container: version 2, a namespace of its own
    ("0::/slurm/job_1", "slurm/job_1", "cpu.max", "memory.max"),
    ("0::/slurm/job_1", "slurm", "cpu.max", "memory.max"),  # the limit is that of a group above
]


@pytest.mark.parametrize(("own", "folder", "cpu", "_"), LAYOUTS)
def test_a_quota_limits_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, folder: str, cpu: str, _: str
) -> None:
    place = cgroups(tmp_path, monkeypatch, own, folder)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert host.usable_cpus() == 8
    for text, cpus in (
        ("max 100000", 8),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("1600000 100000", 8),
    ):
        (place / cpu).write_text(text + "\n")
        assert host.usable_cpus() == cpus


@pytest.mark.parametrize(("own", "folder", "_", "memory_file"), LAYOUTS)
def test_a_limit_limits_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, folder: str, _: str, memory_file: str
) -> None:
    place = cgroups(tmp_path, monkeypatch, own, folder)
    machine = host.memory_limit_bytes()
    assert machine > 256 * MIB
    for text, limit in (("max", machine), (str(64 * MIB), 64 * MIB), (str(machine * 2), machine)):
        (place / memory_file).write_text(text + "\n")
        assert host.memory_limit_bytes() == limit


def test_version_1_of_cgroups_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups(tmp_path, monkeypatch, "4:memory:/docker\n1:cpu:/docker", "memory/docker")
    (tmp_path / "cpu" / "docker").mkdir(parents=True)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    for quota, cpus in (("-1", 8), ("150000", 2)):
        (tmp_path / "cpu" / "docker" / "cpu.cfs_quota_us").write_text(quota)
        (tmp_path / "cpu" / "docker" / "cpu.cfs_period_us").write_text("100000")
        assert host.usable_cpus() == cpus
    (tmp_path / "memory" / "docker" / "memory.limit_in_bytes").write_text(str(64 * MIB))
    assert host.memory_limit_bytes() == 64 * MIB


def cgroups(root: Path, monkeypatch: pytest.MonkeyPatch, own: str, folder: str) -> Path:
    """A hierarchy of control groups below ``root``, in which this process is in ``own``."""
    (root / "self").write_text(own + "\n")
    monkeypatch.setattr(host, "CGROUP", root)
    monkeypatch.setattr(host, "OWN_CGROUPS", root / "self")
    (root / folder).mkdir(parents=True, exist_ok=True)
    return root / folder


class OnGpu(Scripted):
    """An engine that finds a device, and needs packages of which one is broken."""

    packages = ("numpy", "no-such-package")
    optional = ("json", "no_such_module")

    def accelerator(self) -> Accelerator | None:
        return Accelerator("Some GPU", 80_000, "1234", 9.0, {"cuda": "13.0"})


def test_a_machine_is_what_an_engine_sees_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    found = host.host_of(OnGpu())
    assert (found.device, found.device_name, found.device_memory_bytes) == (
        "cuda",
        "Some GPU",
        80_000,
    )
    assert found.capability == 9.0
    assert str(found.device_uuid).endswith("-1234")
    assert set(found.versions) == {"numpy", "cuda", "env.CUBLAS_WORKSPACE_CONFIG"}
    assert "ModuleNotFoundError" in found.missing["no_such_module"]
    assert "json" not in found.missing


def test_without_a_device_it_is_the_cpu() -> None:
    found = host.host_of(Scripted())
    assert (found.device, found.device_name) == ("cpu", found.cpu_name)
    assert (found.device_memory_bytes, found.device_uuid, found.capability) == (None, None, None)
    assert found.cpu_ids == tuple(sorted(os.sched_getaffinity(0)))
    assert 1 <= found.cpus <= len(found.cpu_ids)
    mapping: dict[str, Any] = dataclasses.asdict(found)
    assert parse(Host, mapping) == found  # it survives being a record
