"""``python -m bench doctor``: what this machine is, and which values of quant, attn and decode work
on it.

With ``--calibrate`` the default cell runs in 8 processes; the spread between them is what a sweep
of a single pass is judged by from then on.
"""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bench.analysis.readings import least_times_s
from bench.analysis.verdict import COMPARED, spread
from bench.config.cell import Cell, cell_id
from bench.driver.lock import machine_lock, signals_as_interrupts
from bench.driver.places import try_places
from bench.driver.plan import engine_of, resolve, why_not, with_attention
from bench.driver.policy import Job, Records
from bench.driver.probe import Probe, find_peaks, hosts_of, start_server
from bench.driver.process import run_isolated
from bench.driver.worker import PhaseTimes, begin, take, task_of
from bench.errors import BenchError
from bench.meter import rapl
from bench.meter.interference import unreadable
from bench.record.result import Host, Peaks
from bench.report import terminal
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store import files

_PROCESSES, _REPEATS = 8, 5


def doctor(default: Cell, variants: Sequence[tuple[str, str, Cell]], calibrate: bool) -> int:
    """Print it; returns the exit code.

    Args:
        default: the cell that an empty command line describes.
        variants: axis, value and cell: the default with that one value.
    """
    try_places(None)
    with signals_as_interrupts(), machine_lock(say), ProgressLine() as progress:
        probe = Probe(run_isolated, progress.show)
        start_server([default.engine], progress.show, with_mlflow=False)
        host = hosts_of([default.engine], probe)[default.engine.name]
        peaks = find_peaks(default.engine, host, host.device, host.cpus, probe)
        if calibrate:
            _calibrate(default, host, progress)
    console = terminal.console()
    console.print(machine(host, peaks))
    console.print(_values(host, variants))
    return 0


def machine(host: Host, peaks: Peaks | None) -> Table:
    """What this machine is, a row for each of its parts."""
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
    if host.device_settings:
        settings = ", ".join(f"{name} {value}" for name, value in host.device_settings.items())
        rows["GPU settings"] = f"{settings}{_how_to_lock(host)}"
    if peaks is not None:
        flops = ", ".join(f"{dtype} {rate / 1e9:,.0f} G/s" for dtype, rate in peaks.flops.items())
        rows["peaks"] = (
            f"reads {peaks.read_bytes_s / 1e9:.1f} GB/s, matrix products {flops} ({peaks.source})"
        )
    found = files.read_calibration(host)
    rows["calibration"] = (
        ", ".join(
            f"{metric} {each.deviation:.1%} between processes" for metric, each in found.items()
        )
        or "none: python -m bench doctor --calibrate (a few minutes)"
    )
    if host.unsupported:
        rows["other devices"] = ", ".join(f"{n} {why}" for n, why in host.unsupported.items())
    if (energy := rapl.availability()) is not None:
        rows["energy of the CPU"] = energy
    if unread := unreadable():
        rows["not read here"] = ", ".join(unread)
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        shown.add_row(Text(name), Text(value))
    return shown


def _how_to_lock(host: Host) -> str:
    clock = host.device_settings.get("application clock, MHz")
    clock = clock or host.device_settings.get("highest clock, MHz")
    if clock is None:
        return ""
    return (
        f"; sudo nvidia-smi --lock-gpu-clocks={clock} keeps the clock at one value, so that a"
        " sweep compares configurations and not temperatures (undo: --reset-gpu-clocks)"
    )


def _values(host: Host, variants: Sequence[tuple[str, str, Cell]]) -> Table:
    shown = Table(box=None, pad_edge=False)
    for heading in ("axis", "value", "can run here"):
        shown.add_column(heading)
    for axis, value, cell in variants:
        if engine_of(cell).unknown_names(cell):
            continue  # another engine's
        obstacle = why_not(with_attention(resolve(cell, host), None), host, None)
        shown.add_row(axis, value, Text("yes" if obstacle is None else f"no: {obstacle.reason}"))
    return shown


def _calibrate(default: Cell, host: Host, progress: ProgressLine) -> None:
    progress.plan(_PROCESSES)
    folder = Path(tempfile.mkdtemp(prefix="bench-calibration-"))
    cell = with_attention(resolve(default, host), None)
    cell = replace(cell, measure=replace(cell.measure, repeats=_REPEATS))
    obstacle = why_not(cell, host, None)
    if obstacle is not None:
        raise BenchError(f"{cell.label} cannot run here: {obstacle.reason}")
    key = cell_id(default)
    records = Records(
        {key: begin(default, cell, host, "calibration")}, {cell.engine.name: host}, {}
    )
    for index in range(_PROCESSES):
        progress.cell(f"calibration {index + 1}/{_PROCESSES}, {cell.label}")
        job, times = Job("time", key, cell), PhaseTimes(progress.show)
        findings = run_isolated(task_of(job, host, folder), times.on_phase, folder / "log.txt")
        take(records, job, findings, times.until_now())
        outcome = records.results[key].outcome
        if outcome.status != "ok":
            text = f"{cell.label}: {outcome.status}: {outcome.reason}"
            raise BenchError(f"{text}; log in {folder}")
        progress.finished()
    times_s = least_times_s(records.results[key].measurements, _REPEATS)
    logs = {metric: [math.log(value) for value in times_s[metric]] for metric in COMPARED}
    spreads = {
        metric: noise
        for metric, row in logs.items()
        if (noise := spread([row], blocked=False)) is not None
    }
    say(f"calibrated: {files.write_calibration(host, spreads)}")
    shutil.rmtree(folder)
