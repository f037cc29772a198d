"""What this device can do at most: by its data sheet where it is a known GPU, else as kernels find
it.

A measured peak is what the best of a few plain kernels reaches, not a law: adding up a block much
larger than the caches and a product of a matrix with a vector for the memory's read bandwidth;
products of two square matrices, the second one transposed like a layer's weights, for the rate of
each dtype. It is measured with the cell's number of threads, so a cell with one thread is compared
with what one thread can do. Whatever else runs can only make a kernel slower, so each kernel has
several rounds and the best round's median counts. All of it takes some seconds and is kept in the
cache folder: delete the file to measure again, which is right when the machine was busy all
through.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bench.config.cell import digest
from bench.engine.kernels import Kernel, PeakKernels
from bench.paths import DATA, cache_folder
from bench.record.result import Host, Peaks

SHEETS = DATA / "peaks.yaml"

_METHOD = 3  # part of the cache's key; another number when the kernels change
_DTYPES = ("fp32", "fp16", "bf16", "int8")
_ROUNDS, _RUNS = 4, 3
_FIRST_SIDE, _LAST_SIDE = 512, 8192
_LONG_ENOUGH_S = 0.03  # for a product: launching it is then nothing, twice its side under a second
_SHEET_TOLERANCE = 0.05  # sheets round: the H100 PCIe's 2 TB/s are 2.04


def peaks_of(
    kernels: PeakKernels, host: Host, device: str, threads: int, folder: Path | None = None
) -> Peaks:
    """The peaks of ``device`` (cpu, cuda) on this host: the data sheet's, or those measured here.

    ``folder`` is where measured ones are kept: by default in the cache folder.
    """
    name = host.device_name if device == "cuda" else host.cpu_name
    sheet = sheet_peaks(name, kernels.bus_bytes_s) if device == "cuda" else None
    if sheet is not None:
        return sheet
    key = [_METHOD, device, name, host.cpus, threads, kernels.where]
    file = (folder or cache_folder() / "peaks") / f"{digest(key)}.json"
    if file.is_file():
        return Peaks(**json.loads(file.read_text(encoding="utf-8")))
    peaks = measure_peaks(kernels)
    _write(file, peaks)
    return peaks


def sheet_peaks(device_name: str, bus_bytes_s: float | None) -> Peaks | None:
    """The data sheet's row for this device; None where there is none, or several fit.

    ``bus_bytes_s`` is what its memory clock and bus width come to, None if unknown: names alone do
    not tell the memory.
    """
    rows: list[dict[str, Any]] = yaml.safe_load(SHEETS.read_text(encoding="utf-8"))
    fitting = [
        row
        for row in rows
        if device_name in row["names"]
        and (bus_bytes_s is None or abs(bus_bytes_s / row["read_bytes_s"] - 1) <= _SHEET_TOLERANCE)
    ]
    if len(fitting) != 1:
        return None
    row = fitting[0]
    source = f"data sheet: {row['source']}"
    return Peaks(row["read_bytes_s"], row["flops"], source, measured=False)


def measure_peaks(kernels: PeakKernels) -> Peaks:
    """The peaks of this machine as plain kernels find them.

    For a process of its own: on a GPU the allocator keeps some GB, which would be counted as a
    cell's.
    """
    rates = {
        name: kernels.block_bytes / _best_s(kernels, kernel)
        for name, kernel in kernels.readers.items()
    }
    best = max(rates, key=lambda name: rates[name])
    flops = {
        dtype: rate for dtype in _DTYPES if (rate := _product_rate(kernels, dtype)) is not None
    }
    how = f"{best} over {kernels.block_bytes // 2**20} MiB, square matrix products"
    source = f"measured here: {how}; {kernels.where}"
    return Peaks(rates[best], flops, source, measured=True)


def _product_rate(kernels: PeakKernels, dtype: str) -> float | None:
    """Operations/s of a product that is large enough; None where the device has none in this dtype.

    Only trying tells what a device, a build and a shape support: the answer no is a RuntimeError.
    """
    side = _FIRST_SIDE
    while True:
        try:
            kernel = kernels.product(dtype, side)
            seconds = _round_s(kernels, kernel)
        except RuntimeError:
            return None
        if seconds >= _LONG_ENOUGH_S or side == _LAST_SIDE:
            return 2 * side**3 / _best_s(kernels, kernel)
        side *= 2


def _best_s(kernels: PeakKernels, kernel: Kernel) -> float:
    kernels.seconds(kernel)  # does not count: it loads and allocates
    return min(_round_s(kernels, kernel) for _ in range(_ROUNDS))


def _round_s(kernels: PeakKernels, kernel: Kernel) -> float:
    return median(kernels.seconds(kernel) for _ in range(_RUNS))


def _write(file: Path, peaks: Peaks) -> None:
    """Aside and renamed: two processes at once both win, and a killed one leaves nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        aside = Path(folder) / file.name
        aside.write_text(json.dumps(dataclasses.asdict(peaks), indent=1), encoding="utf-8")
        os.replace(aside, file)
