"""``python -m bench doctor``: what this machine is, and which values of quant, attn and decode work
on it.

With ``--calibrate`` the default cell runs in 8 processes; the spread between them is what a sweep
of a single pass is judged by from then on.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bench.analysis.comparison import COMPARED
from bench.analysis.readings import process_times_s
from bench.analysis.verdict import spread
from bench.config.cell import Cell
from bench.driver import plan, signals
from bench.driver.lock import machine_lock
from bench.driver.probe import find_peaks, look_around
from bench.driver.worker import begin, run_pass
from bench.errors import BenchError
from bench.record.afterwards import Afterwards
from bench.record.result import Host, Peaks
from bench.report import terminal as table
from bench.report.progress import ProgressLine
from bench.store import calibration

_PROCESSES, _REPEATS = 8, 5


def doctor(default: Cell, variants: Sequence[tuple[str, str, Cell]], calibrate: bool) -> int:
    """Print it; returns the exit code.

    Args:
        default: the cell that an empty command line describes.
        variants: axis, value and cell: the default with that one value.
    """
    with signals.as_interrupts(), machine_lock(_say), ProgressLine() as progress:
        host = look_around(progress.show)
        peaks = find_peaks(host, host.device, host.cpus, progress.show)
        if calibrate:
            _calibrate(plan.resolve(default, host), host, progress)
    console = table.console()
    console.print(_machine(host, peaks))
    console.print(_values(host, variants))
    return 0


def _machine(host: Host, peaks: Peaks | None) -> Table:
    rows = {
        "device": host.device_name,
        "CPU": f"{host.cpu_name}, {host.cpus} usable",
        "memory": f"{host.memory_bytes / 2**30:.1f} GiB usable",
        "system": f"{host.os}, Python {host.python}",
        "versions": ", ".join(f"{name} {version}" for name, version in host.versions.items()),
    }
    if host.device_memory_bytes is not None:
        rows["device memory"] = (
            f"{host.device_memory_bytes / 2**30:.1f} GiB, driver {host.driver}, capability"
            f" {host.capability}"
        )
    if peaks is not None:
        flops = ", ".join(f"{dtype} {rate / 1e9:,.0f} G/s" for dtype, rate in peaks.flops.items())
        rows["peaks"] = (
            f"reads {peaks.read_bytes_s / 1e9:.1f} GB/s, matrix products {flops} ({peaks.source})"
        )
    found = calibration.read(host)
    rows["calibration"] = (
        ", ".join(
            f"{metric} {each.deviation:.1%} between processes" for metric, each in found.items()
        )
        or "none: python -m bench doctor --calibrate (a few minutes)"
    )
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        shown.add_row(Text(name), Text(value))
    return shown


def _values(host: Host, variants: Sequence[tuple[str, str, Cell]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for heading in ("axis", "value", "can run here"):
        shown.add_column(heading)
    for axis, value, cell in variants:
        obstacle = plan.why_not(plan.resolve(cell, host), host)
        shown.add_row(axis, value, Text("yes" if obstacle is None else f"no: {obstacle.reason}"))
    return shown


def _calibrate(cell: Cell, host: Host, progress: ProgressLine) -> None:
    progress.plan(_PROCESSES)
    folder = Path(tempfile.mkdtemp(prefix="bench-calibration-"))
    record = begin(
        replace(cell, measure=replace(cell.measure, repeats=_REPEATS)), host, "calibration"
    )
    for index in range(_PROCESSES):
        progress.cell(f"calibration {index + 1}/{_PROCESSES}, {cell.label}")
        record, interrupted = run_pass(record, Afterwards(), folder / "log.txt", progress.show)
        if interrupted:
            raise KeyboardInterrupt
        if record.outcome.status != "ok":
            raise BenchError(
                f"{cell.label}: {record.outcome.status}: {record.outcome.reason}; log in {folder}"
            )
        progress.finished()
    times = process_times_s(record.measurements)
    logs = {metric: [math.log(value) for value in times[metric]] for metric in COMPARED}
    found = {
        metric: noise
        for metric, row in logs.items()
        if (noise := spread([row], blocked=False)) is not None
    }
    _say(f"calibrated: {calibration.write(host, found)}")
    shutil.rmtree(folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
