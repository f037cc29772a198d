"""On a node: take one order from standard input, answer on standard output, end.

What runs is what runs on the driver's own machine: the machine's lock, the fork server, a fresh
process for each job, and the same policies; only that the records are kept elsewhere. A node of
another kind than the sweep was planned for refuses: its readings would be another machine's.
"""

import dataclasses
import math
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.analysis import differences
from bench.driver.launch import read_frame, write_frame
from bench.driver.lock import machine_lock
from bench.driver.machine import add_peaks, engines_of, look_around
from bench.driver.orders import (
    Answer,
    Block,
    Done,
    Look,
    Looked,
    Order,
    Refused,
    Sized,
    Step,
    unpacked,
)
from bench.driver.plan import USUAL_ENGINE
from bench.driver.policy import Job, Records, besides, largest, shuffle
from bench.driver.probe import Probe, hosts_of, start_server
from bench.driver.process import run_isolated
from bench.driver.worker import PhaseTimes, take, task_of
from bench.errors import BenchError, CellFailure
from bench.meter.nvml import used_bytes, wait_until_free
from bench.record.redact import redacted
from bench.record.result import Host, Origin, is_timed

Send = Callable[[Answer], None]


def main() -> int:
    """Returns the exit code; what goes wrong in a job is an answer, not an exit."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print is no answer
    order = read_frame(sys.stdin.buffer)
    if order is None:
        return 1
    threading.Thread(target=_end_with_input, daemon=True).start()
    answer(order, lambda each: write_frame(out, pickle.dumps(each)))
    return 0


def _end_with_input() -> None:
    # Nothing more is ever sent: this returns when whoever started us is gone. Not by sys.stdin,
    # whose lock the interpreter wants at its end.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)  # and with us, by their lifelines, what we started


def answer(order: bytes, send: Send) -> None:
    """Carry out an order."""
    try:
        asked = unpacked(order)
        with machine_lock(lambda text: None):  # its holder is as likely another job of this sweep
            _carry_out(asked, send)
        send(Done())
    except BenchError as error:
        send(Refused(socket.gethostname(), f"{socket.gethostname()} {error}"))


def _carry_out(order: Order, send: Send) -> None:
    probe = Probe(run_isolated, lambda text: None)
    if isinstance(order, Look):
        send(_looked(order, probe))
        return
    cells = [result.cell for result in order.results]
    engines = engines_of(cells, bool(order.asks) and USUAL_ENGINE in order.hosts)
    start_server(engines, probe.show, with_mlflow=False)
    here = hosts_of(engines, probe)
    for name, host in here.items():
        wanted = order.hosts[name]
        if kind(host) != kind(wanted):
            raise BenchError(
                "is another kind of machine than the sweep is planned for:"
                f" {_what_differs(kind(wanted), kind(host))}; where.constraint= names one kind"
            )
    folder = Path(tempfile.mkdtemp(prefix="bench-node-"))
    try:
        _run(order, here, folder, send)
    finally:
        shutil.rmtree(folder)


def _looked(order: Look, probe: Probe) -> Looked:
    machine = look_around(order.asked, probe, with_mlflow=False)
    peaks = {}
    if order.wants_peaks:
        records = machine.begun(order.asked)
        add_peaks(records, probe)
        peaks = {key: result.peaks for key, result in records.results.items()}
    hosts = {name: of_its_kind(host) for name, host in machine.hosts.items()}
    return Looked(hosts, machine.descriptions, peaks)


def of_its_kind(host: Host) -> Host:
    """What a sweep is planned for: resume finds what any node of the kind has measured. Of the
    memory two digits, since nodes of a kind differ by megabytes."""
    gib = host.memory_bytes / 2**30
    unit = 10 ** max(0, math.floor(math.log10(max(gib, 1))) - 1)
    memory_bytes = max(1, math.floor(gib / unit) * unit) * 2**30 if gib >= 1 else host.memory_bytes
    return replace(host, device_uuid=None, memory_bytes=memory_bytes)


def kind(host: Host) -> Host:
    """What a machine shares with others of its kind, as far as it can change a number. Which CPUs
    a job gets, and how many megabytes a node leaves to jobs, is different each time."""
    return replace(
        host,
        device_uuid=None,
        cpu_ids=(),
        os="",
        memory_bytes=0,
        device_memory_bytes=None,
        missing={},
        unsupported={},
    )


def _what_differs(wanted: Host, here: Host) -> str:
    named = "; ".join(map(str, differences.hosts(wanted, here)))
    fields = [f.name for f in dataclasses.fields(Host)]
    return named or ", ".join(f for f in fields if getattr(wanted, f) != getattr(here, f))


def _run(order: Block, hosts: dict[str, Host], folder: Path, send: Send) -> None:
    records = Records(
        {result.cell_id: result for result in order.results}, order.hosts, order.descriptions
    )
    uuid = next((host.device_uuid for host in hosts.values() if host.device_uuid), None)
    held_before = used_bytes(uuid)
    origin = Origin(socket.gethostname(), order.pass_index, order.number)
    for index, job in enumerate(_jobs(order, records, send)):
        log = folder / f"{index}.txt"
        log.touch()
        times = PhaseTimes(lambda *_: None)
        host = hosts.get(job.cell.engine.name, records.results[job.cell_id].host)
        try:
            value = run_isolated(task_of(job, host, folder), times.on_phase, log)
        except CellFailure as failure:
            value = failure
        timing = replace(times.until_now(), origin=origin)
        take(records, job, value, timing)
        send(Step(job, value, timing, str(redacted(log.read_text(errors="replace")))))
        held = wait_until_free(uuid, held_before)
        held_before = None if held_before is None else held_before + held  # as in a sweep here


def _jobs(order: Block, records: Records, send: Send) -> Iterator[Job]:
    for result in order.results:
        cell_id = result.cell_id
        if result.cell.is_to_be_sized and result.outcome.status == "ok":
            yield from largest(records, cell_id)
            sized = records.results[cell_id]
            if not sized.cell.is_to_be_sized:
                send(Sized(cell_id, sized.cell, sized.outcome))
    cells = [result.cell_id for result in order.results]
    shuffle(cells, order.results[0].cell.seed, order.pass_index)
    for cell_id in cells:
        if order.is_timed and not is_timed(records.results[cell_id]):
            yield Job("time", cell_id, records.results[cell_id].cell)
        if cell_id in order.asks:
            yield from besides(records, cell_id, wants_profiles=False)


if __name__ == "__main__":
    sys.exit(main())
