"""What this device can do at most: by its data sheet where it is a known GPU, else as simple
kernels find it here.

A measured peak is what the best of a few plain kernels reaches, not a law: adding up a block much
larger than the caches and a product of a matrix with a vector for the memory's read bandwidth;
products of two square matrices, the second one transposed like a layer's weights, for the rate of
each dtype. It is measured with as many threads as torch has here, so a cell with one thread is
compared with what one thread can do. Whatever else runs can only make a kernel slower, so each
kernel has several rounds and the best round's median counts. All of it takes some seconds and is
kept in the cache folder: delete the file to measure again, which is right when the machine was busy
all through.
"""

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from bench.config.cell import digest
from bench.paths import DATA, cache_folder
from bench.record.result import Host, Peaks

SHEETS = DATA / "peaks.yaml"

_METHOD = 1  # part of the cache's key; another number when the kernels below change
# Several times the largest cache of a GPU, and of the share of a CPU's that one gets
_BLOCK_BYTES = 512 * 2**20
_ROUNDS, _RUNS = 4, 3
_FIRST_SIDE, _LAST_SIDE = 512, 8192
# For a product: launching it is then nothing, and one twice as wide takes less than a second
_LONG_ENOUGH_S = 0.03
_SHEET_TOLERANCE = 0.05  # sheets round: the H100 PCIe's 2 TB/s are 2.04

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}


def host_peaks(host: Host, device: str, folder: Path | None = None) -> Peaks:
    """The peaks of ``device`` (cpu, cuda) on this host: the data sheet's, or those measured here,
    now or earlier.

    ``folder`` is where measured ones are kept: by default in the cache folder.
    """
    name = host.device_name if device == "cuda" else host.cpu_name
    if device == "cuda":
        sheet = sheet_peaks(name, _bus_bytes_s())
        if sheet is not None:
            return sheet
    key = [_METHOD, device, name, host.cpus, torch.get_num_threads(), torch.__version__]
    file = (folder or cache_folder() / "peaks") / f"{digest(key)}.json"
    if file.is_file():
        return Peaks(**json.loads(file.read_text(encoding="utf-8")))
    found = measure_peaks(device)
    _write(file, found)
    return found


def sheet_peaks(device_name: str, bus_bytes_s: float | None) -> Peaks | None:
    """The data sheet's row for this device; None where there is none, or where the name leaves it
    open which one.

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
    return Peaks(row["read_bytes_s"], row["flops"], f"data sheet: {row['source']}", measured=False)


def _bus_bytes_s() -> float | None:
    """Two transfers a clock (kHz), each of the bus's width (bits); None where a virtual device
    hides them."""
    properties = torch.cuda.get_device_properties(0)
    return 2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 or None


def measure_peaks(device: str) -> Peaks:
    """The peaks of this machine as plain kernels find them, with the precision flags in force.

    For a process of its own: on CUDA its allocator keeps about 2 GB, which would be counted as a
    cell's.
    """
    with torch.inference_mode():
        kernel, read_bytes_s = _read_bytes_s(device)
        flops = {
            name: rate
            for name, dtype in _DTYPES.items()
            if (rate := _matmul_flops(device, dtype)) is not None
        }
    where = (
        f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    )
    how = f"{kernel} over {_BLOCK_BYTES // 2**20} MiB, square matrix products"
    source = f"measured here: {how}; {where}, torch {torch.__version__}"
    return Peaks(read_bytes_s, flops, source, measured=True)


def _read_bytes_s(device: str) -> tuple[str, float]:
    """The better of two kernels that read a block once, and its name."""
    columns = 8192
    block = torch.ones(_BLOCK_BYTES // 4 // columns, columns, device=device)
    vector = torch.ones(columns, device=device)
    product = partial(torch.mv, block, vector)
    kernels: dict[str, Callable[[], object]] = {
        "torch.sum": block.sum,
        "matrix-vector product": product,
    }
    rates = {name: _BLOCK_BYTES / _best_s(kernel, device) for name, kernel in kernels.items()}
    best = max(rates, key=lambda name: rates[name])
    return best, rates[best]


def _matmul_flops(device: str, dtype: torch.dtype) -> float | None:
    """Operations/s of a product that is large enough; None where the device has none in this dtype.

    Only trying tells what a device, a build and a shape support, and torch says no with a
    RuntimeError.
    """
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = (
        torch._int_mm if dtype is torch.int8 else torch.mm
    )
    side = _FIRST_SIDE
    while True:
        a, b = (torch.ones(side, side, device=device).to(dtype) for _ in range(2))
        kernel = partial(product, a, b.t())
        try:
            seconds = _round_s(kernel, device)
        except RuntimeError:
            return None
        if seconds >= _LONG_ENOUGH_S or side == _LAST_SIDE:
            return 2 * side**3 / _best_s(kernel, device)
        side *= 2


def _best_s(kernel: Callable[[], object], device: str) -> float:
    _timed_s(kernel, device)  # does not count: it loads and allocates
    return min(_round_s(kernel, device) for _ in range(_ROUNDS))


def _round_s(kernel: Callable[[], object], device: str) -> float:
    return median(_timed_s(kernel, device) for _ in range(_RUNS))


def _timed_s(kernel: Callable[[], object], device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    kernel()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _write(file: Path, peaks: Peaks) -> None:
    """Aside and renamed: two processes at once both win, and a killed one leaves nothing that
    counts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        aside = Path(folder) / file.name
        aside.write_text(json.dumps(dataclasses.asdict(peaks), indent=1), encoding="utf-8")
        os.replace(aside, file)
