"""The data sheets that are shipped, and the peaks that are measured where there is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.engine.kernels import Kernel, PeakKernels, numpy_peaks
from bench.meter import peaks
from bench.record.result import Host, Peaks
from tests import fakes

ROWS: list[dict[str, Any]] = yaml.safe_load(peaks.SHEETS.read_text(encoding="utf-8"))
NAMES = [(name, row) for row in ROWS for name in row["names"]]
A100 = "NVIDIA A100-SXM4-80GB"
RTX_3060_TI = "NVIDIA GeForce RTX 3060 Ti"  # sold with two memories


def test_each_data_sheet_is_plausible() -> None:
    for row in ROWS:
        assert set(row) == {"names", "read_bytes_s", "flops", "source"}
        assert set(row["flops"]) <= {"fp32", "fp16", "bf16", "int8"}
        for number in (row["read_bytes_s"], *row["flops"].values()):
            assert isinstance(number, float)  # YAML reads 1e12 as a text and 1.0e+12 as a number
        assert 1e11 < row["read_bytes_s"] < 1e13
        fp32, fp16 = row["flops"]["fp32"], row["flops"]["fp16"]
        assert 5e12 < fp32 < fp16 < 3e15
        assert row["flops"].get("bf16", fp16) == fp16
        assert 1.99 * fp16 <= row["flops"].get("int8", 2 * fp16) <= 4.1 * fp16
        for name in row["names"]:
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


class Device:
    """Kernels that take no time but say what was run; ``answers`` are the dtypes it multiplies."""

    def __init__(self, *answers: str, bus_bytes_s: float | None = None) -> None:
        self.ran: list[str] = []
        self.answers = answers
        self.kernels = PeakKernels(
            readers={name: self.kernel(name) for name in ("slow", "fast")},
            product=self.product,
            where="2 threads of a toy",
            bus_bytes_s=bus_bytes_s,
        )

    def kernel(self, name: str) -> Kernel:
        # Adding up a list of ten thousand numbers takes far longer than one of ten
        work = list(range(10 if name == "fast" else 100_000))

        def run() -> None:
            self.ran.append(name)
            sum(work)

        return run

    def product(self, dtype: str, side: int) -> Kernel:
        if dtype not in self.answers:
            raise RuntimeError(f"not implemented for {dtype}")
        return self.kernel(f"{dtype} {side}")


def test_the_best_reader_counts_and_its_name_is_told() -> None:
    device = Device("fp32")
    found = peaks.measure_peaks(device.kernels)
    assert found.measured
    assert found.source.startswith("measured here: fast over 512 MiB, square matrix products; ")
    assert found.source.endswith("2 threads of a toy")
    # Once to warm up, then four rounds of three
    assert (device.ran.count("slow"), device.ran.count("fast")) == (13, 13)
    assert found.read_bytes_s > 0


def test_a_dtype_that_does_not_run_has_no_peak() -> None:
    assert set(peaks.measure_peaks(Device("fp32", "int8").kernels).flops) == {"fp32", "int8"}


def test_a_product_too_short_to_time_is_made_larger() -> None:
    device = Device("bf16")
    peaks.measure_peaks(device.kernels)
    sides = list(dict.fromkeys(name for name in device.ran if name.startswith("bf16")))
    assert sides == [f"bf16 {side}" for side in (512, 1024, 2048, 4096, 8192)]


def test_numpys_kernels_find_peaks_here() -> None:
    kernels = numpy_peaks()
    small = replace(kernels, product=lambda dtype, side: kernels.product(dtype, 64))
    found = peaks.measure_peaks(small)
    assert set(found.flops) == {"fp32"}
    assert found.read_bytes_s > 0
    assert "numpy" in found.source


def test_a_known_gpu_is_not_measured(tmp_path: Path) -> None:
    device = Device("fp32", bus_bytes_s=2.04e12)
    found = peaks.peaks_of(device.kernels, fakes.gpu_host(device_name=A100), "cuda", 2, tmp_path)
    assert not found.measured
    assert found.read_bytes_s == 2.039e12
    assert (device.ran, list(tmp_path.iterdir())) == ([], [])


def test_measured_peaks_are_kept_for_the_same_device_cpus_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    here = fakes.gpu_host(device_name="Some GPU")

    def is_measured(host: Host, device: str, threads: int) -> bool:
        made = Device("fp32")
        found = peaks.peaks_of(made.kernels, host, device, threads)
        assert found.measured
        return bool(made.ran)

    asked = [(here, "cpu", 2), (here, "cuda", 2), (here, "cpu", 1)]
    asked += [(fakes.host(cpus=4), "cpu", 2), (fakes.host(cpu_name="Another CPU"), "cpu", 2)]
    assert [is_measured(*each) for each in asked] == [True] * 5  # type: ignore[arg-type]
    assert [is_measured(*each) for each in asked] == [False] * 5  # type: ignore[arg-type]
    files = list((tmp_path / "peaks").iterdir())
    assert len(files) == 5
    assert json.loads(files[0].read_text())["source"].startswith("measured here: ")
