"""The passes of a grid: every cell in a fresh process, again and again, each pass in an order of
its own.

A drift of the machine so falls on all cells alike. What ends a cell ends no other; what ends the
sweep loses no process that is finished.
"""

import random
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.driver import signals
from bench.driver.shared_quality import share, still_to_ask
from bench.driver.worker import run_pass
from bench.meter.device import nvml_used_bytes, wait_until_free
from bench.meter.nvml import other_processes
from bench.record.result import Host, Result, is_complete
from bench.report.progress import ProgressLine
from bench.store import files as store

# It imports mlflow, which takes over a second: only after the configuration has been checked
if TYPE_CHECKING:
    from bench.store.recorder import Recorder


def run_all(
    begun: Sequence[Result],
    references: Mapping[str, str],
    wants_profiles: bool,
    folder: Path,
    recorder: "Recorder",
    progress: ProgressLine,
) -> bool:
    """Every pass of every cell; returns whether the user ended it.

    Args:
        references: by cell_id, the file of the model that its predictions are compared with.
    """
    records = {record.cell_id: replace(record, sweep_id=folder.name) for record in begun}
    answered: dict[str, Result] = {}
    status = "KILLED"
    try:
        _keep_what_is_there(records.values(), recorder)
        for record in records.values():
            share(record, answered)
        host = begun[0].host
        baseline_bytes = nvml_used_bytes(host.device_uuid)
        _name_neighbours(host)
        jobs = schedule(list(records.values()))
        progress.plan(len(jobs))
        for which in jobs:
            record, place = records[which], store.cell_folder(folder, which)
            if is_complete(record):  # an earlier pass of it failed
                progress.finished()
                continue
            progress.cell(record.cell.label)
            trace = str(place / store.TRACE) if wants_profiles and record.profile is None else None
            wanted = still_to_ask(record, answered, references.get(which), trace)
            record, interrupted = run_pass(record, wanted, place / "log.txt", progress.show)
            store.hide_secrets(place / "log.txt")
            records[which] = record = share(record, answered)
            with signals.deferred():
                recorder.keep(record)
            progress.finished()
            if interrupted:
                return True
            if held := wait_until_free(host.device_uuid, baseline_bytes):
                label = record.cell.label
                _say(
                    f"{held / 2**20:.0f} MiB of {host.device_name} stay in use after {label}: other"
                    " processes?"
                )
        status = "FINISHED"
    except KeyboardInterrupt:
        return True
    finally:
        signals.ignore()
        recorder.close(status, time.time())
    return False


def _keep_what_is_there(records: Collection[Result], recorder: "Recorder") -> None:
    complete = [record for record in records if is_complete(record)]
    for record in complete:
        recorder.keep(record)
    if reused := sum(record.reused_from is not None for record in complete):
        _say(
            f"{reused} of {len(records)} cells have a result already (resume=false measures them"
            " again)"
        )


def _name_neighbours(host: Host) -> None:
    """Other processes on the GPU."""
    for other in other_processes(host.device_uuid, []) if host.device_uuid is not None else []:
        _say(
            f"{host.device_name} is in use by {other.name or 'a process'} (pid {other.pid}): it"
            " disturbs what is measured"
        )


def schedule(records: Sequence[Result]) -> list[str]:
    """The cell_ids of all processes to come: pass by pass, each pass in an order of its own, the
    same for the same seed."""
    jobs: list[str] = []
    for index in range(max(record.cell.measure.passes for record in records)):
        due = [
            r.cell_id
            for r in records
            if not is_complete(r) and len(r.passes) <= index < r.cell.measure.passes
        ]
        random.Random(f"{records[0].cell.seed}/{index}").shuffle(due)
        jobs += due
    return jobs


def _say(text: str) -> None:
    print(text, file=sys.stderr)
