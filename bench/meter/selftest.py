"""What the checks of ``doctor --selftest`` run in their processes, and hand back as raw readings.

Each is a task like a cell's (``announce``, the engine's place, a resolved cell); what comes out is
judged in ``bench.analysis.selftest``. Known things are planted here: a delay, an allocation, a
signal.
"""

import itertools
import os
import signal
import time
from collections.abc import Sequence

import numpy as np

from bench.analysis.footprint import predict
from bench.config.cell import Cell
from bench.engine.clock import Clock
from bench.engine.kernels import PeakKernels
from bench.engine.prompts import Ids
from bench.engine.protocol import Announce, Floats, Session, engine_at
from bench.errors import CellFailure
from bench.meter.cell import begin, ids_of, opened
from bench.meter.memory import PhaseMemory, rss_bytes, settle_heap
from bench.meter.nvml import SHORTEST_ENERGY_WINDOW_S, nvml_uuid, watch
from bench.record.measurement import Memory, Repeat, Telemetry

BLOCK_BYTES = 256 * 2**20
COPY_BYTES = 2**30
_REQUESTS, _WARM_UPS = 20, 3
_LEAST_WAIT_S = 0.002
_COPY_ROUNDS = 20
_SETTLE_S = 5.0  # more than the second over which NVML averages power


def time_by_two_clocks(
    announce: Announce, place: str, cell: Cell
) -> tuple[list[float], list[float], list[float]]:
    """Requests end to end by the engine's clock and by the kernel's, which nobody adjusts; and by
    how much host and device disagree, empty with one clock."""
    session, ids = _warm(announce, place, cell)
    e2e_s, other_s, mismatches = [], [], []
    announce("measure")
    for _ in range(_REQUESTS):
        clock = session.clock(cell.workload.new_tokens)
        started_s = _raw_s()
        session.request(ids, cell.workload.new_tokens, clock)
        other_s.append(_raw_s() - started_s)
        repeat, mismatch = clock.read()
        e2e_s.append(repeat.e2e_s)
        mismatches += [] if mismatch is None else [mismatch]
    return e2e_s, other_s, mismatches


class _LateClock:
    """A clock that hears of each token after the first later by ``wait_s``, as if the step had
    taken longer; and beside it the kernel's clock."""

    def __init__(self, clock: Clock, wait_s: float) -> None:
        self._clock, self._wait_s = clock, wait_s
        self._stamps_s: list[float] = []

    def start(self) -> None:
        self._clock.start()

    def token(self, count: int = 1) -> None:
        until_s = _raw_s() + self._wait_s
        while self._stamps_s and _raw_s() < until_s:
            pass
        self._clock.token(count)
        self._stamps_s.append(_raw_s())

    def read(self) -> tuple[Repeat, float | None]:
        return self._clock.read()

    def other_steps_s(self) -> tuple[float, ...]:
        """The decode steps by the kernel's clock."""
        return tuple(after - before for before, after in itertools.pairwise(self._stamps_s))


def plant_a_slowdown(
    announce: Announce, place: str, cell: Cell
) -> tuple[dict[str, list[tuple[float, ...]]], float]:
    """Decode steps of requests as they are and with a delay in each step, in turns, by the engine's
    clock and by the kernel's; and the delay: about a step's own time."""
    session, ids = _warm(announce, place, cell)
    announce("measure")
    # The least: a longer delay is more likely to be broken by others
    wait_s = max(_LEAST_WAIT_S, min(_steps_s(session, ids, cell, 0.0)[0]))
    steps_s: dict[str, list[tuple[float, ...]]] = {
        "plain": [],
        "plain_other": [],
        "slowed": [],
        "slowed_other": [],
    }
    for _ in range(_REQUESTS):
        for name, planted_s in (("plain", 0.0), ("slowed", wait_s)):
            by_engine, by_kernel = _steps_s(session, ids, cell, planted_s)
            steps_s[name].append(by_engine)
            steps_s[f"{name}_other"].append(by_kernel)
    return steps_s, wait_s


def _steps_s(
    session: Session, ids: Ids, cell: Cell, wait_s: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    clock = _LateClock(session.clock(cell.workload.new_tokens), wait_s)
    session.request(ids, cell.workload.new_tokens, clock)
    repeat, _ = clock.read()
    return repeat.decode_step_s, clock.other_steps_s()


def _warm(announce: Announce, place: str, cell: Cell) -> tuple[Session, Ids]:
    session = opened(announce, place, cell)
    ids = ids_of(cell, session)
    announce("warm-up")
    session.ready(ids, cell.workload.new_tokens)
    for _ in range(_WARM_UPS):
        _steps_s(session, ids, cell, 0.0)
    return session, ids


def _raw_s() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


def fill_memory(announce: Announce, place: str, cell: Cell, size: int, most: int) -> str:
    """Take blocks of ``size`` bytes until there are no more, or ``most`` of them.

    Raises:
        whatever the engine's allocator raises.
    """
    kernels = _kernels(place, cell)
    announce("measure")
    held = [kernels.block(size) for _ in range(most)]
    return f"{len(held)} blocks of {size} bytes were given"


def die_by_signal(announce: Announce, place: str, cell: Cell) -> None:
    """SIGKILL, with a model in memory."""
    opened(announce, place, cell)
    announce("measure")
    os.kill(os.getpid(), signal.SIGKILL)


def allocate(announce: Announce, place: str, cell: Cell) -> tuple[int | None, int, Memory]:
    """Take BLOCK_BYTES of the device's memory and give them back; what the process held before
    (resident set, and of the allocator), and the peaks."""
    settle_heap()
    on_device = cell.device == "cuda"
    phase = PhaseMemory(engine_at(place).accelerator() if on_device else None)
    session, kernels = opened(announce, place, cell), _kernels(place, cell)
    announce("measure")
    session.allocated_peaks()
    allocated_before, _ = session.allocated_peaks()  # nothing in between: what is held now
    resident_before = rss_bytes()
    phase.begin()
    block = kernels.block(BLOCK_BYTES)
    del block
    return resident_before, allocated_before or 0, phase.end(session)


def copy_rates(announce: Announce, place: str, cell: Cell) -> list[float]:
    """Bytes/s that copies of COPY_BYTES on the device move: each byte is read and written."""
    kernels = _kernels(place, cell)
    source, target = kernels.block(COPY_BYTES), kernels.block(COPY_BYTES)
    announce("measure")
    kernels.copy(target, source)  # loads the kernel
    seconds = [kernels.seconds(lambda: kernels.copy(target, source)) for _ in range(_COPY_ROUNDS)]
    return [2 * COPY_BYTES / each_s for each_s in seconds]


def _kernels(place: str, cell: Cell) -> PeakKernels:
    kernels = engine_at(place).peak_kernels(cell.device, int(cell.threads))
    if kernels is None:
        raise CellFailure("skipped", "this engine brings no kernels")
    return kernels


def compare_logits(
    announce: Announce, place: str, cell: Cell, plain: Cell
) -> tuple[int, float, float, Sequence[str]]:
    """Layers, the largest logit of ``plain``, the largest difference from it at any position of one
    row, and why what ran is not the attention that the cell names."""
    wanted = _logits(opened(announce, place, plain), plain)
    session = opened(announce, place, cell)
    announce("attest")
    attestation = session.attest(ids_of(cell, session)[:1], 2)
    difference = np.abs(_logits(session, cell) - wanted).max()
    largest = np.abs(wanted).max()
    return attestation.shape.layers, float(largest), float(difference), attestation.mismatches


def _logits(session: Session, cell: Cell) -> Floats:
    rows = session.logits(ids_of(cell, session)[:1])
    if rows is None:
        raise CellFailure("skipped", "this engine shows no logits")
    logits: Floats = np.concatenate(list(rows[0]))
    return logits


def count_weights(
    announce: Announce, place: str, cell: Cell
) -> tuple[int | None, int, Sequence[str]]:
    """Bytes of weights as predicted and as counted, and why they are not the cell's."""
    session = opened(announce, place, cell)
    announce("attest")
    attestation = session.attest(ids_of(cell, session), 2)
    description = engine_at(place).describe(cell)
    predicted = None if description is None else predict(cell, description).weight_bytes
    return predicted, attestation.weight_bytes, attestation.mismatches


def watch_idling(announce: Announce, place: str, cell: Cell) -> Telemetry | None:
    """The GPU while this process, with a model in its memory, does nothing."""
    accelerator = engine_at(place).accelerator()
    _, _ = _warm(announce, place, cell)
    announce("telemetry")
    time.sleep(_SETTLE_S)
    assert accelerator is not None, "asked on a GPU only"
    uuid = nvml_uuid(accelerator.uuid)
    return watch(uuid, lambda: time.sleep(0.1), SHORTEST_ENERGY_WINDOW_S)


def provide(announce: Announce, place: str, cell: Cell) -> None:
    """The model's files, fetched if need be."""
    begin(announce, place, cell)
