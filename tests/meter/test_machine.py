"""What is read off this machine: limits of the cgroup, peaks of memory phase by phase, the progress
line."""

from pathlib import Path

import pytest
import torch

from bench.meter import host, memory
from bench.report.progress import ProgressLine

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
    monkeypatch.setattr(host, "_CGROUP", root)
    monkeypatch.setattr(host, "_OWN_CGROUPS", root / "self")
    (root / folder).mkdir(parents=True, exist_ok=True)
    return root / folder


def test_this_machine_is_described() -> None:
    found = host.probe_host()
    assert found.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.versions["torch"] == torch.__version__
    assert 1 <= found.cpus <= len(found.cpu_ids)
    assert "bitsandbytes" not in found.missing
    assert ("flash_attn" in found.missing) == ("flash-attn" not in found.versions)


def test_a_peak_belongs_to_its_phase() -> None:
    assert memory.reset_peaks("cpu")
    torch.ones(400 * MIB, dtype=torch.uint8)
    high = memory.read_peaks("cpu", None, True).rss_peak_bytes
    memory.reset_peaks("cpu")
    torch.ones(10 * MIB, dtype=torch.uint8)
    low = memory.read_peaks("cpu", None, True).rss_peak_bytes
    assert high is not None
    assert low is not None
    assert high - low > 300 * MIB


def test_there_is_no_vram_on_a_cpu() -> None:
    found = memory.read_peaks("cpu", None, True)
    assert (found.allocated_peak_bytes, found.reserved_peak_bytes, found.device_used_bytes) == (
        None,
        None,
        None,
    )


def progress(capsys: pytest.CaptureFixture[str]) -> str:
    with ProgressLine() as line:
        line.plan(3)
        for label in ("tiny/nf4/sdpa/b1", "tiny/nf4/sdpa/b2"):
            line.cell(label)
            line.show("measure", "2/5")
            line.finished()
    return capsys.readouterr().err


def test_the_line_says_where_the_sweep_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown = progress(capsys)
    assert "cell 1/3 · tiny/nf4/sdpa/b1 · measure 2/5 · 0:00 elapsed" in shown
    assert "cell 2/3 · tiny/nf4/sdpa/b2 · measure 2/5 · 0:00 elapsed · about 0:00 left" in shown


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1", "CI": "true"}])
def test_pipes_and_ci_see_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str]
) -> None:
    for name in ("CI", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert progress(capsys) == ""


def test_a_peak_that_could_not_be_reset_is_no_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "no" / "such" / "file")
    assert not memory.reset_peaks("cpu")
    assert memory.read_peaks("cpu", None, False).rss_peak_bytes is None
