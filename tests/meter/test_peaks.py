"""The data sheets that are shipped, and the peaks that are measured where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.meter import peaks
from bench.record.result import Peaks
from tests import fakes

ROWS: list[dict[str, Any]] = yaml.safe_load(peaks.SHEETS.read_text(encoding="utf-8"))
NAMES = [(name, row) for row in ROWS for name in row["names"]]
A100 = "NVIDIA A100-SXM4-80GB"
RTX_3060_TI = "NVIDIA GeForce RTX 3060 Ti"  # sold with two memories
MADE_UP = Peaks(10.0, {"fp32": 20.0}, "measured here: not at all", measured=True)


@pytest.mark.parametrize(
    ("name", "row"), NAMES, ids=[f"{name} {row['read_bytes_s']:.3g}" for name, row in NAMES]
)
def test_a_data_sheet_is_complete_and_plausible(name: str, row: dict[str, Any]) -> None:
    assert set(row) == {"names", "read_bytes_s", "flops", "source"}
    assert set(row["flops"]) <= {"fp32", "fp16", "bf16", "int8"}
    for number in (row["read_bytes_s"], *row["flops"].values()):
        assert isinstance(number, float)  # YAML reads 1e12 as a text and 1.0e+12 as a number
    assert 1e11 < row["read_bytes_s"] < 1e13
    fp32, fp16 = row["flops"]["fp32"], row["flops"]["fp16"]
    assert 5e12 < fp32 < fp16 < 3e15
    assert row["flops"].get("bf16", fp16) == fp16
    assert 1.99 * fp16 <= row["flops"].get("int8", 2 * fp16) <= 4.1 * fp16
    assert name == name.strip()
    assert name.startswith(("NVIDIA ", "Tesla "))
    assert len(row["source"].split()) >= 4


def test_a_name_and_a_bandwidth_belong_to_one_row() -> None:
    for name, row in NAMES:
        found = peaks.sheet_peaks(name, row["read_bytes_s"])
        assert found == Peaks(
            row["read_bytes_s"], row["flops"], f"data sheet: {row['source']}", measured=False
        )


def test_the_form_factor_is_part_of_the_name() -> None:
    bandwidths = {
        name: found.read_bytes_s
        for name in (
            "NVIDIA H100 80GB HBM3",
            "NVIDIA H100 PCIe",
            A100,
            "NVIDIA A100 80GB PCIe",
            "NVIDIA A100-PCIE-40GB",
        )
        if (found := peaks.sheet_peaks(name, None)) is not None
    }
    assert list(bandwidths.values()) == [3.35e12, 2.0e12, 2.039e12, 1.935e12, 1.555e12]


@pytest.mark.parametrize(
    "name", [A100.lower(), f"{A100} MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Some GPU"]
)
def test_an_unknown_name_has_no_sheet(name: str) -> None:
    assert peaks.sheet_peaks(name, None) is None


def test_the_memory_decides_between_cards_of_one_name() -> None:
    by_memory = [peaks.sheet_peaks(RTX_3060_TI, bus) for bus in (2 * 7001e6 * 32, 2 * 9501e6 * 32)]
    assert [found and found.read_bytes_s for found in by_memory] == [448e9, 608e9]
    assert peaks.sheet_peaks(RTX_3060_TI, None) is None  # nothing tells which one it is
    # The one with 12 GB
    assert peaks.sheet_peaks("NVIDIA GeForce RTX 3080", 2 * 9501e6 * 48) is None


def test_a_known_gpu_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "_bus_bytes_s", lambda: 2.04e12)
    monkeypatch.setattr(peaks, "measure_peaks", lambda device: pytest.fail("measured"))
    found = peaks.host_peaks(fakes.gpu_host(device_name=A100), "cuda", tmp_path)
    assert not found.measured
    assert found.read_bytes_s == 2.039e12
    assert list(tmp_path.iterdir()) == []


def test_the_cpu_of_a_gpu_machine_and_an_unknown_gpu_are_measured_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(peaks, "_bus_bytes_s", lambda: None)
    monkeypatch.setattr(peaks, "measure_peaks", lambda device: devices.append(device) or MADE_UP)
    host = fakes.gpu_host(device_name="Some GPU")
    for device in ("cpu", "cuda", "cpu", "cuda"):
        assert peaks.host_peaks(host, device, tmp_path) == MADE_UP
    assert devices == ["cpu", "cuda"]
    assert len(list(tmp_path.iterdir())) == 2


def test_measured_peaks_are_kept_for_a_machine_with_the_same_cpus_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(peaks, "measure_peaks", lambda device: taken.append(1) or MADE_UP)
    here = fakes.host()
    assert peaks.host_peaks(here, "cpu") == MADE_UP
    assert peaks.host_peaks(here, "cpu") == MADE_UP
    assert len(taken) == 1
    (file,) = (tmp_path / "peaks").iterdir()
    assert json.loads(file.read_text())["source"] == MADE_UP.source
    peaks.host_peaks(fakes.host(cpus=4), "cpu")
    peaks.host_peaks(fakes.host(cpu_name="Another CPU"), "cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    peaks.host_peaks(here, "cpu")
    assert len(taken) == 4


def test_what_is_measured_here_is_sensible(monkeypatch: pytest.MonkeyPatch) -> None:
    # The block stays as large as it is: a small one is read from a cache
    monkeypatch.setattr(peaks, "_LAST_SIDE", 1024)
    found = peaks.measure_peaks("cpu")
    assert found.measured
    assert found.source.startswith("measured here: ")
    assert "torch.sum" in found.source or "matrix-vector" in found.source
    assert found.read_bytes_s > 0
    # Several operations a byte, on whatever machine
    assert found.flops["fp32"] > found.read_bytes_s
    assert set(found.flops) <= {"fp32", "fp16", "bf16", "int8"}
    assert min(found.flops.values()) > 0


def test_a_dtype_that_does_not_run_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("_int_mm is not implemented for this device")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert peaks._matmul_flops("cpu", torch.int8) is None
