"""What is read off one process, before it becomes a metric: typical times, outliers, drift, shares
of what is possible."""

import dataclasses
from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np

from bench.analysis import cost, roofline
from bench.analysis.stats import outliers, readings_needed
from bench.record.measurement import Measurement, Memory, Repeat, Telemetry
from bench.record.result import Attestation, Peaks, Result

# by field of Contamination: what it means, and the share of the time that is harmless. A quiet
# machine of two CPUs shows a pressure of 0.3 to 1.2 % (60 processes measured), one with a busy
# neighbour 12 to 47 %.
_DISTURBANCES = {
    "throttled_s": ("the cgroup's CPU quota was used up for a share of the time", 0.01),
    "steal_s": ("other virtual machines took a share of the CPUs", 0.01),
    "pressure_s": ("threads waited for a CPU that others used, for a share of the time", 0.03),
}


def tpot_s(repeat: Repeat) -> float:
    """Time of one decode step of the whole batch, averaged over a request: (end to end - TTFT) /
    (new tokens - 1)."""
    return (repeat.e2e_s - repeat.ttft_s) / len(repeat.decode_step_s)


def median_step_s(measurements: Sequence[Measurement]) -> list[float]:
    """For each position in the answer the median of its decode step over all requests of all
    processes."""
    requests = [repeat.decode_step_s for m in measurements for repeat in m.repeats]
    return [median(steps) for steps in zip(*requests, strict=True)]


def process_times_s(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """TTFT and TPOT of each process (the median of its requests): the independent readings that
    verdicts stand on."""
    return {"ttft_s": [ttft(m) for m in measurements], "tpot_s": [tpot(m) for m in measurements]}


def quickest_times_s(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """TTFT and TPOT of each process when nobody interferes: its quickest prefill, and the quickest
    decode step at each position of the answer, on average over the positions."""
    return {
        "ttft_s": [min(r.ttft_s for r in m.repeats) for m in measurements],
        "tpot_s": [
            fmean(min(s) for s in zip(*(r.decode_step_s for r in m.repeats), strict=True))
            for m in measurements
        ],
    }


def outlying(measurement: Measurement) -> list[int]:
    """Which timed requests (from 0) lie far from the others, in TTFT or TPOT."""
    times = ([r.ttft_s for r in measurement.repeats], [tpot_s(r) for r in measurement.repeats])
    return sorted({index for each in times for index in outliers(each)})


def drift(measurement: Measurement) -> float:
    """By how much the reference kernel that changed most was slower (or faster) after the cell than
    before it."""
    before, after = dataclasses.astuple(measurement.before), dataclasses.astuple(measurement.after)
    changes: list[float] = [late / early - 1 for early, late in zip(before, after, strict=True)]
    return max(changes, key=abs)


def disturbances(measured: Sequence[Measurement]) -> list[tuple[str, float]]:
    """Who else had the CPUs while requests were timed: what, and the share of the time; of the
    process that had it worst."""
    found = []
    for field, (text, harmless) in _DISTURBANCES.items():
        share = max(
            (getattr(m.contamination, field) or 0.0) / m.contamination.wall_s for m in measured
        )
        if share > harmless:
            found.append((text, share))
    return found


def step_quantile_s(m: Measurement, quantile: float) -> float | None:
    """Of all decode steps of all requests; None where they are too few to tell."""
    steps = [step for repeat in m.repeats for step in repeat.decode_step_s]
    return float(np.quantile(steps, quantile)) if len(steps) >= readings_needed(quantile) else None


def share_of_time(m: Measurement, part: float | None) -> float | None:
    return None if part is None else part / m.contamination.wall_s


def ttft(m: Measurement) -> float:
    return median(r.ttft_s for r in m.repeats)


def tpot(m: Measurement) -> float:
    return median(tpot_s(r) for r in m.repeats)


def e2e(m: Measurement) -> float:
    return median(r.e2e_s for r in m.repeats)


def enqueue_s(m: Measurement) -> float | None:
    """What the host needs to enqueue one decode step; None on a CPU, where it computes the step
    itself.

    None too where something in a step waits for the device: the host is then as slow as the device
    by design.
    """
    if m.decode_syncs:
        return None
    read = [r.enqueue_s for r in m.repeats if r.enqueue_s is not None]
    return median(read) if read else None


def rss_growth_bytes(m: Measurement) -> float | None:
    peak, before = m.run_memory.rss_peak_bytes, m.rss_before_load_bytes
    return None if peak is None or before is None else peak - before


def contexts(r: Result, m: Measurement) -> tuple[float, int]:
    """Mean context of the decode steps, and the cache's length when the last token is out."""
    new_tokens = r.cell.workload.new_tokens
    return m.prompt_tokens + new_tokens / 2, m.prompt_tokens + new_tokens - 1


def step_bytes(r: Result, m: Measurement, a: Attestation) -> float:
    return cost.step_bytes(a, contexts(r, m)[0], r.cell.batch)


def of_peaks(r: Result, value: Callable[[Peaks], float | None]) -> float | None:
    return None if r.peaks is None else value(r.peaks)


def mfu(r: Result, m: Measurement, a: Attestation, peaks: Peaks) -> float | None:
    flops = roofline.forward_flops(a, m.prompt_tokens, r.cell.batch)
    return roofline.mfu(peaks, flops, ttft(m), roofline.executed_dtype(a))


def ceiling(r: Result, m: Measurement, a: Attestation, peaks: Peaks) -> float:
    flops = roofline.step_flops(a, contexts(r, m)[0], r.cell.batch)
    return roofline.ceiling_tok_s(
        peaks, step_bytes(r, m, a), flops, r.cell.batch, roofline.executed_dtype(a)
    )


def peak_bytes(memory: Memory) -> float | None:
    return (
        memory.allocated_peak_bytes
        if memory.allocated_peak_bytes is not None
        else memory.rss_peak_bytes
    )


def idle_w(m: Measurement) -> float | None:
    return None if m.energy is None else m.energy.idle_power_w


def prompt_j(r: Result, m: Measurement, less_w: float) -> float | None:
    """Energy of prefilling one token of one row, without ``less_w`` of power."""
    whole = None if m.energy is None else _round_j(m.energy.prefill, less_w)
    return None if whole is None else whole / (r.cell.batch * m.prompt_tokens)


def output_j(r: Result, m: Measurement, less_w: float) -> float | None:
    """Energy of one token after the first of one row, without ``less_w`` of power."""
    if m.energy is None:
        return None
    whole, prefill = _round_j(m.energy.request, less_w), _round_j(m.energy.prefill, less_w)
    if whole is None or prefill is None:
        return None
    return (whole - prefill) / (r.cell.batch * (r.cell.workload.new_tokens - 1))


def _round_j(found: Telemetry | None, less_w: float) -> float | None:
    if found is None or found.energy_j is None:
        return None
    return (found.energy_j - less_w * found.window_s) / found.rounds
