"""What is read off this machine: limits of the cgroup, peaks of memory phase by phase, the progress line."""

from pathlib import Path

import pytest
import torch

from bench.meter import host, memory
from bench.output.progress import ProgressLine

MIB = 2**20


def test_the_quota_of_the_cgroup_limits_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert host.usable_cpus() == 8
    for text, cpus in (("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert host.usable_cpus() == cpus


def test_the_limit_of_the_cgroup_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    machine = host.memory_limit_bytes()
    assert machine > 256 * MIB
    for text, limit in (("max", machine), (str(64 * MIB), 64 * MIB), (str(machine * 2), machine)):
        (tmp_path / "memory.max").write_text(text + "\n")
        assert host.memory_limit_bytes() == limit


def test_this_machine_is_described() -> None:
    found = host.probe_host()
    assert found.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.versions["torch"] == torch.__version__
    assert 1 <= found.cpus <= len(found.cpu_ids)
    assert "bitsandbytes" not in found.missing
    assert ("flash_attn" in found.missing) == ("flash-attn" not in found.versions)


def test_a_peak_belongs_to_its_phase() -> None:
    memory.reset_peaks("cpu")
    torch.ones(400 * MIB, dtype=torch.uint8)
    high = memory.read_peaks("cpu", None).rss_peak_bytes
    memory.reset_peaks("cpu")
    torch.ones(10 * MIB, dtype=torch.uint8)
    low = memory.read_peaks("cpu", None).rss_peak_bytes
    assert high is not None
    assert low is not None
    assert high - low > 300 * MIB


def test_there_is_no_vram_on_a_cpu() -> None:
    found = memory.read_peaks("cpu", None)
    assert (found.allocated_peak_bytes, found.reserved_peak_bytes, found.device_used_bytes) == (None, None, None)


def progress(capsys: pytest.CaptureFixture[str]) -> str:
    with ProgressLine() as line:
        line.plan(3)
        for label in ("tiny/nf4/sdpa/b1", "tiny/nf4/sdpa/b2"):
            line.cell(label)
            line.show("measure", "2/5")
            line.finished()
    return capsys.readouterr().err


def test_the_line_says_where_the_sweep_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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
