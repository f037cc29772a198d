"""One cell, from nothing to raw readings: the straight line that runs in the measured process.

provide -> prepare -> load -> ready -> warm up -> measure -> attest -> telemetry -> profile a step;
the reference kernels run before the load and after the timed requests. Profiles of whole requests,
answers and tries of a batch are tasks of their own, in processes of their own, so that nothing can
cost a cell its number. Nothing here knows torch: the engine is found by its place and asked through
its protocol. ``announce`` tells the parent where we are and returns when it has gone back to sleep.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.analysis.stopping import is_warm
from bench.config.cell import Cell
from bench.engine.clock import Untimed
from bench.engine.prompts import Ids, prompt_ids, prompt_lengths
from bench.engine.protocol import Announce, Engine, Files, Session, engine_at
from bench.errors import BenchError, CellFailure
from bench.meter import nvml, rapl
from bench.meter.canary import read_canary
from bench.meter.gpu_state import gpu_state
from bench.meter.host import host_of
from bench.meter.interference import counters, since
from bench.meter.memory import PhaseMemory, rss_bytes, settle_heap
from bench.meter.peaks import peaks_of
from bench.meter.requests import one_request, time_requests, until_known, until_warm
from bench.record.description import Description
from bench.record.measurement import Energy, Measurement, PhaseProfile, Profile, Stopped, Telemetry
from bench.record.result import Findings, Host, Peaks

Watch = Callable[[Callable[[], object], float], Telemetry | None]
# What reads idle power, and the shortest window that gives an energy, beside it
Instrument = tuple[Watch, Callable[..., float | None], float]


def measure_cell(announce: Announce, place: str, cell: Cell) -> Findings:
    """Time a resolved cell.

    Args:
        place: of the engine.
    Raises:
        CellFailure: when there is no number that deserves the cell's name.
    """
    heap = settle_heap()
    engine, files, provide_s = begin(announce, place, cell)
    new_tokens = cell.workload.new_tokens
    rss_before = rss_bytes()
    memory = PhaseMemory(engine.accelerator() if cell.device == "cuda" else None)
    before = read_canary(engine.canary_kernels(cell.device))

    announce("load")
    memory.begin()
    started = time.perf_counter()
    session = engine.open(cell, files)
    load_s = time.perf_counter() - started
    load_memory = memory.end(session)
    ids, given_tokens = ids_of(cell, session), prompt_lengths(cell, session.tokenizer)

    announce("warm-up", "preparing")
    started = time.perf_counter()
    session.ready(ids, new_tokens)
    ready_s = time.perf_counter() - started
    warmups, _ = time_requests(session, ids, new_tokens, until_warm(announce, cell.measure))
    session.allocated_peaks()  # what follows counts from here
    memory.begin()
    gpu_before, at_start = gpu_state(memory.uuid), counters()
    reasons: list[Stopped] = []
    more = until_known(announce, cell.measure, reasons)
    repeats, mismatch = time_requests(session, ids, new_tokens, more)
    interference, gpu_after = since(at_start), gpu_state(memory.uuid)
    run_memory = memory.end(session)
    after = read_canary(engine.canary_kernels(cell.device))

    # Not earlier: a profiler and other shapes just before slow the next requests by up to 20 %.
    announce("attest")
    attestation = session.attest(ids, new_tokens)
    if attestation.mismatches:
        return Findings(files.revision, attestation, None)
    measurement = Measurement(
        prompt_tokens=ids.shape[1],
        given_tokens=given_tokens,
        provide_s=provide_s,
        load_s=load_s,
        ready_s=ready_s,
        warmups=warmups,
        settled=is_warm(warmups, cell.measure),
        repeats=repeats,
        stopped=reasons[-1],
        before=before,
        after=after,
        interference=interference,
        load_memory=load_memory,
        run_memory=run_memory,
        rss_before_load_bytes=rss_before,
        clock_mismatch=mismatch,
        gpu_before=gpu_before,
        gpu_after=gpu_after,
        energy=_energy(announce, cell, memory.uuid, session, ids),
        step_profile=_step_profile(announce, session, ids),
        heap=heap,
    )
    return Findings(files.revision, attestation, measurement)


def begin(announce: Announce, place: str, cell: Cell) -> tuple[Engine, Files, float]:
    """How every task with a model begins: files on disk, the process as the cell wants it."""
    announce("prepare")
    engine = engine_at(place)
    if cell.cpus != "all":  # before anything that starts threads, which keep what they were given
        os.sched_setaffinity(0, cell.cpus)
    started = time.perf_counter()
    files = engine.provide(cell, lambda what: announce("prepare", what))
    provide_s = time.perf_counter() - started
    engine.prepare(cell)
    return engine, files, provide_s


def opened(announce: Announce, place: str, cell: Cell) -> Session:
    """The cell's model in memory, for a task that does not time how it got there."""
    engine, files, _ = begin(announce, place, cell)
    announce("load")
    return engine.open(cell, files)


def ids_of(cell: Cell, session: Session) -> Ids:
    """The cell's prompts."""
    return prompt_ids(cell, session.tokenizer, session.vocabulary)


def _step_profile(announce: Announce, session: Session, ids: Ids) -> PhaseProfile | None:
    """The last of all: a profiler changes what comes after it."""
    announce("profile")
    return session.profile_step(ids)


def _energy(
    announce: Announce, cell: Cell, uuid: str | None, session: Session, ids: Ids
) -> Energy | None:
    """What the GPU draws, or on a CPU its packages, prefill and whole requests apart, so that
    decoding is the difference."""
    window_s, new_tokens = cell.measure.telemetry_s, cell.workload.new_tokens
    instrument = _instrument(cell, uuid) if window_s else None
    if instrument is None:
        return None
    announce("telemetry")
    watch, idle_power_w, shortest_s = instrument
    prefill = watch(lambda: session.request(ids, 1, Untimed()), window_s)
    request = watch(lambda: session.request(ids, new_tokens, Untimed()), window_s)
    counts = window_s >= shortest_s  # else there is no energy to subtract it from
    return Energy(prefill, request, idle_power_w(window_s=window_s) if counts else None)


def _instrument(cell: Cell, uuid: str | None) -> Instrument | None:
    """Of the cell's device, a GPU by NVML's name of it; None where nothing can be read."""
    if cell.device == "cpu":
        return (rapl.watch, rapl.idle_power_w, 0.0) if rapl.is_readable() else None
    if uuid is None:
        return None
    idle_power_w = partial(nvml.idle_power_w, uuid)
    return partial(nvml.watch, uuid), idle_power_w, nvml.SHORTEST_ENERGY_WINDOW_S


def profile_cell(announce: Announce, place: str, cell: Cell, trace: str) -> Profile | None:
    """Where one request of the cell spends its time; ``trace`` gets the profiler's own record."""
    session = opened(announce, place, cell)
    ids = ids_of(cell, session)
    announce("profile")
    session.ready(ids, cell.workload.new_tokens)
    one_request(cell, session, ids)
    return session.profile(ids, cell.workload.new_tokens, Path(trace))


def try_cell(announce: Announce, place: str, cell: Cell) -> None:
    """Load a cell and answer one request, measuring nothing: does it fit?

    Raises:
        CellFailure: when it does not, ``oom`` for more tokens than the model has positions too; or
            as it fails otherwise.
    """
    session = opened(announce, place, cell)
    announce("warm-up")
    ids, positions = ids_of(cell, session), session.context_tokens
    if positions is not None and ids.shape[1] + cell.workload.new_tokens > positions:
        raise CellFailure("oom", f"model={cell.model.name} has {positions} positions")
    one_request(cell, session, ids)


def probe_host(announce: Announce, place: str) -> Host:
    """This machine, as a process of this engine sees it."""
    return host_of(engine_at(place))


def probe_peaks(
    announce: Announce, place: str, host: Host, device: str, threads: int
) -> Peaks | None:
    """What the device can do at most: in a process of its own, whose memory goes with it."""
    engine = engine_at(place)
    kernels = engine.peak_kernels(device, threads)
    return None if kernels is None else peaks_of(kernels, host, device, threads)


def describe_cells(
    announce: Announce, place: str, cells: tuple[Cell, ...]
) -> list[Description | str | None]:
    """What the models of these cells are, without loading them; a text says why one is not."""
    engine = engine_at(place)
    descriptions: list[Description | str | None] = []
    for cell in cells:
        try:
            descriptions.append(engine.describe(cell))
        except BenchError as error:
            descriptions.append(str(error))
    return descriptions
