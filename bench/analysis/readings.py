"""What is read off one process of a cell: typical times, shares of what is possible, energy,
outliers, drift.

A reading that does not exist (no GPU, no such file) is None, never 0. Units: SI.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from bench.analysis import cost
from bench.analysis.stats import expected_least, outliers, readings_needed
from bench.record.measurement import Measurement, Memory, Repeat, Telemetry
from bench.record.result import Attestation, Result

# Reference kernels move by some percent on a quiet machine
_STEADY_DRIFT, _LARGE_SCORE, _FEWEST_DRIFTS = 0.10, 3.0, 5
_HEAVY = 0.5  # of the time; beside the busy neighbour below, least times were the cell's own
# by field of Interference: what it means, and the share of the time that is harmless. A quiet
# machine of two CPUs shows a pressure of 0.3 to 1.2 % (60 processes measured), one with a busy
# neighbour 12 to 47 %.
_DISTURBANCES = {
    "throttled_s": ("the cgroup's CPU quota was used up for a share of the time", 0.01),
    "steal_s": ("other virtual machines took a share of the CPUs", 0.01),
    "pressure_s": ("threads waited for a CPU that others used, for a share of the time", 0.03),
}


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a cell, with all that its numbers are computed from."""

    result: Result
    measurement: Measurement
    attestation: Attestation
    price_per_hour: float | None = None  # of the machine; None: not known

    @property
    def rows(self) -> int:
        return self.result.cell.rows


def tpot_s(repeat: Repeat) -> float:
    """Time of one decode step of the whole batch, averaged over a request: (end to end - TTFT) /
    (new tokens - 1)."""
    return (repeat.e2e_s - repeat.ttft_s) / repeat.decoded_tokens


def median_step_s(measurements: Sequence[Measurement]) -> list[float]:
    """For each position in the answer the median of its decode step over all requests of all
    processes."""
    requests = [repeat.decode_step_s for m in measurements for repeat in m.repeats]
    return [median(steps) for steps in zip(*requests, strict=True)]


def typical_times_s(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """TTFT and TPOT of each process: the median of its requests. They describe; verdicts stand on
    ``least_times_s``."""
    return {"ttft_s": [ttft(m) for m in measurements], "tpot_s": [tpot(m) for m in measurements]}


def fewest_requests(results: Iterable[Result]) -> int:
    """Timed requests of the process that has fewest: over so many all of them can be compared."""
    return min(len(m.repeats) for result in results for m in result.measurements)


def least_times_s(measurements: Sequence[Measurement], requests: int) -> dict[str, list[float]]:
    """TTFT and TPOT of each process when nobody interferes: the independent readings that verdicts
    stand on.

    Of ``requests`` requests the quickest prefill, and the quickest decode step at each position of
    the answer, on average over the positions. Others on the same hardware only ever add time, in
    bursts, and the kernel counts none of it: the least of many times is the robust estimate of
    what the program itself takes (Chen and Revels, Robust benchmarking in noisy environments, arXiv
    1608.04295). It falls with their number, so that is the same for all that are compared.
    """
    return {
        "ttft_s": [expected_least([r.ttft_s for r in m.repeats], requests) for m in measurements],
        "tpot_s": [_least_step_s(m, requests) for m in measurements],
    }


def _least_step_s(measurement: Measurement, requests: int) -> float:
    """Of one token, where a gap brings several."""
    first = measurement.repeats[0]
    positions = zip(*(r.decode_step_s for r in measurement.repeats), strict=True)
    whole_s = sum(expected_least(steps_s, requests) for steps_s in positions)
    return whole_s / first.decoded_tokens


def outlying(measurement: Measurement) -> list[int]:
    """Which timed requests (from 0) lie far from the others, in TTFT or TPOT."""
    times = ([r.ttft_s for r in measurement.repeats], [tpot_s(r) for r in measurement.repeats])
    return sorted({index for values in times for index in outliers(values)})


def drift(measurement: Measurement) -> float:
    """By how much the reference kernels were slower (or faster) after the cell than before it: the
    middle one of the three changes. 0 where the device had no room for them.

    What holds the whole machine back shows in all of them. One alone has states of its own: part of
    the memory that is read may lie in a cache or not.
    """
    if measurement.before is None or measurement.after is None:
        return 0.0
    before, after = dataclasses.astuple(measurement.before), dataclasses.astuple(measurement.after)
    changes: list[float] = [late / early - 1 for early, late in zip(before, after, strict=True)]
    return median(changes)


def steady_drift(measured: Sequence[Measurement]) -> float:
    """By how much reference kernels may move over a process before it means a change: by 10 %, or
    by three times what they usually move in these processes (1.4826 x median absolute deviation).

    Where other machines share the hardware, they move by that much all the time: on an AMD EPYC
    whose system saw nobody else, 10 % was exceeded in 24 of 72 processes (sweeps/LOG.md).
    """
    if len(measured) < _FEWEST_DRIFTS:
        return _STEADY_DRIFT
    drifts = [drift(m) for m in measured]
    centre = median(drifts)
    usual = 1.4826 * median(abs(each - centre) for each in drifts)
    return max(_STEADY_DRIFT, _LARGE_SCORE * usual)


def has_drifted(measurement: Measurement, steady: float) -> bool:
    """Whether the machine's speed changed over a process. ``steady``: as ``steady_drift``."""
    return abs(drift(measurement)) > steady


def disturbances(measured: Sequence[Measurement]) -> list[tuple[str, float]]:
    """Who else had the CPUs while requests were timed: what, and the share of the time; of the
    process that had it worst."""
    shares = {
        text: max((getattr(m.interference, field) or 0) / m.interference.wall_s for m in measured)
        for field, (text, _) in _DISTURBANCES.items()
    }
    harmless = dict(_DISTURBANCES.values())
    return [(text, share) for text, share in shares.items() if share > harmless[text]]


def is_disturbed(measured: Sequence[Measurement]) -> bool:
    """Whether others had half of the time of every process, so that not even the least times are
    the cell's own."""
    heavy = [any(share > _HEAVY for _, share in disturbances([m])) for m in measured]
    return bool(heavy) and all(heavy)


def ttft(m: Measurement) -> float:
    return median(r.ttft_s for r in m.repeats)


def tpot(m: Measurement) -> float:
    return median(tpot_s(r) for r in m.repeats)


def e2e(m: Measurement) -> float:
    return median(r.e2e_s for r in m.repeats)


def prefill_tok_s(p: Process) -> float:
    """Of the whole batch, as ``decode_tok_s``."""
    return p.rows * p.measurement.prompt_tokens / ttft(p.measurement)


def decode_tok_s(p: Process) -> float:
    return p.rows / tpot(p.measurement)


def step_quantile_s(p: Process, quantile: float) -> float | None:
    """Of all decode steps of all requests; None where they are too few to tell."""
    steps = [step for repeat in p.measurement.repeats for step in repeat.decode_step_s]
    return float(np.quantile(steps, quantile)) if len(steps) >= readings_needed(quantile) else None


def share_of_time(p: Process, field: str) -> float | None:
    """A field of Interference for each second of the timed requests."""
    part, whole = getattr(p.measurement.interference, field), p.measurement.interference.wall_s
    return None if part is None else part / whole


def enqueue_s(m: Measurement, a: Attestation) -> float | None:
    """What the host needs to enqueue one decode step; None on a CPU, where it computes the step
    itself.

    None too where something in a step waits for the device: the host is then as slow as the device
    by design.
    """
    if a.decode_syncs:
        return None
    seconds = [r.enqueue_s for r in m.repeats if r.enqueue_s is not None]
    return median(seconds) if seconds else None


def enqueue_share(p: Process) -> float | None:
    host_s = enqueue_s(p.measurement, p.attestation)
    return None if host_s is None else host_s / tpot(p.measurement)


def rss_growth_bytes(p: Process) -> float | None:
    peak, before = p.measurement.run_memory.rss_peak_bytes, p.measurement.rss_before_load_bytes
    return None if peak is None or before is None else peak - before


def load_peak_bytes(p: Process) -> float | None:
    memory = p.measurement.load_memory
    allocated = memory.allocated_peak_bytes
    return memory.rss_peak_bytes if allocated is None else allocated


def contexts(r: Result, m: Measurement) -> tuple[float, int]:
    """Mean context of the decode steps, and the cache's length when the last token is out."""
    new_tokens = r.cell.workload.new_tokens
    return m.prompt_tokens + new_tokens / 2, m.prompt_tokens + new_tokens - 1


def kv_bytes(p: Process) -> float:
    return cost.kv_bytes(p.attestation, contexts(p.result, p.measurement)[1], p.rows)


def tokens_per_forward(m: Measurement) -> float | None:
    """Over all requests; None where each forward brought one token."""
    if all(repeat.step_tokens is None for repeat in m.repeats):
        return None
    forwards = sum(len(repeat.decode_step_s) for repeat in m.repeats)
    return sum(repeat.decoded_tokens for repeat in m.repeats) / forwards


def emission_gap_s(m: Measurement) -> float | None:
    """None where tokens came one by one: then it is the decode step."""
    if all(repeat.step_tokens is None for repeat in m.repeats):
        return None
    return median(gap for repeat in m.repeats for gap in repeat.decode_step_s)


def device_used_bytes(memory: Memory) -> int | None:
    """None where the device held less than this process reserved of it: another one gave memory
    back between the two readings, and the difference is no one's (seen with six processes on an
    H200, 2026-11-26)."""
    used = memory.device_used_bytes
    return None if used is None or used < (memory.reserved_peak_bytes or 0) else used


def step_bytes(p: Process) -> float:
    return cost.step_bytes(p.attestation, contexts(p.result, p.measurement)[0], p.rows)


def bandwidth_share(p: Process, measured: bool) -> float | None:
    """Of the peak that was measured on this machine, or of the data sheet's."""
    peaks = p.result.peaks
    if peaks is None or peaks.measured is not measured:
        return None
    return cost.bandwidth_share(peaks, step_bytes(p), tpot(p.measurement))


def mfu(p: Process) -> float | None:
    m, dtype = p.measurement, p.attestation.executed_dtype
    flops = cost.forward_flops(p.attestation, m.prompt_tokens, p.rows)
    return None if p.result.peaks is None else cost.mfu(p.result.peaks, flops, ttft(m), dtype)


def ceiling_tok_s(p: Process) -> float | None:
    if p.result.peaks is None:
        return None
    flops = cost.step_flops(p.attestation, contexts(p.result, p.measurement)[0], p.rows)
    dtype = p.attestation.executed_dtype
    return cost.ceiling_tok_s(p.result.peaks, step_bytes(p), flops, p.rows, dtype)


def idle_power_w(p: Process) -> float | None:
    return None if p.measurement.energy is None else p.measurement.energy.idle_power_w


def j_per_prompt_tok(p: Process) -> float | None:
    energy = p.measurement.energy
    whole = None if energy is None else _round_j(energy.prefill, 0.0)
    return None if whole is None else whole / (p.rows * p.measurement.prompt_tokens)


def j_per_output_tok(p: Process, less_w: float = 0.0) -> float | None:
    """Energy of one token after the first of one row, without ``less_w`` of power."""
    energy = p.measurement.energy
    if energy is None:
        return None
    whole, prefill = _round_j(energy.request, less_w), _round_j(energy.prefill, less_w)
    if whole is None or prefill is None:
        return None
    return (whole - prefill) / (p.rows * (p.result.cell.workload.new_tokens - 1))


def j_per_output_tok_net(p: Process) -> float | None:
    idle_w = idle_power_w(p)
    return None if idle_w is None else j_per_output_tok(p, idle_w)


def _round_j(window: Telemetry | None, less_w: float) -> float | None:
    if window is None or window.energy_j is None:
        return None
    return (window.energy_j - less_w * window.window_s) / window.rounds
