"""What this machine is and what it can do at most, seen from within processes like those that will
be measured."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.driver import process as isolate
from bench.errors import CellFailure
from bench.record.result import Host, Peaks, Result, is_complete

_PROBE_LIMIT_S = 300.0


def look_around(show: Callable[[str], None], with_mlflow: bool = False) -> Host:
    """Start the fork server, and see from within one of its processes what this machine is."""
    show("starting")
    isolate.begin_server()
    if with_mlflow:
        importlib.import_module("bench.store.recorder")  # while the server imports torch
    notice = isolate.check_server(lambda *_: show("importing torch and transformers"))
    if notice:
        _say(notice)
    limits_s = {"start": _PROBE_LIMIT_S}
    host: Host = isolate.run_isolated(
        probe, (), limits_s, lambda *_: show("looking around"), Path("/dev/null")
    )
    return host


def probe(announce: isolate.Announce) -> Host:
    """This machine, from within a measured process."""
    from bench.meter.host import probe_host  # imports torch: not in this process

    return probe_host()


def with_peaks(records: Sequence[Result], show: Callable[[str], None]) -> list[Result]:
    """What the device can do at most, beside each cell that will run; measured once for each number
    of threads."""
    known: dict[tuple[str, int], Peaks | None] = {}
    for record in records:
        key = record.cell.device, int(record.cell.threads)
        if not is_complete(record) and key not in known:
            known[key] = find_peaks(record.host, *key, show)
    return [
        (
            record
            if is_complete(record)
            else replace(record, peaks=known[record.cell.device, int(record.cell.threads)])
        )
        for record in records
    ]


def find_peaks(host: Host, device: str, threads: int, show: Callable[[str], None]) -> Peaks | None:
    """The device's data sheet, or what simple kernels find here: in a process of its own, whose
    memory goes with it.

    None, and a word about it, where that fails: a sweep can do without.
    """
    show("measuring the peaks of this machine")
    task = probe_peaks, (host, device, threads)
    try:
        found: Peaks = isolate.run_isolated(
            *task, {"start": _PROBE_LIMIT_S}, lambda *_: None, Path(os.devnull)
        )
    except CellFailure as failure:
        _say(
            "the peaks of this machine cannot be measured, so what bounds a cell stays open:"
            f" {failure.reason}"
        )
        return None
    return found


def probe_peaks(announce: isolate.Announce, host: Host, device: str, threads: int) -> Peaks:
    """The task of that process."""
    import torch

    from bench.meter.peaks import host_peaks  # imports torch: not in this process

    torch.set_num_threads(threads)
    return host_peaks(host, device)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
