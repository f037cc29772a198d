"""Every number that is derived from a result, defined once: key, unit, which way is better, what it is.

The scope is offline: one fixed batch, no queue and no arrivals; a TTFT here is never a server's TTFT. SI base units;
whoever prints them scales. A metric is None where its reading does not exist (no GPU, no such file), never 0.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.analysis import cost
from bench.analysis.footprint import predict
from bench.analysis.stats import ALPHA, Estimate, geometric_interval, look_level, outliers, step_quantile
from bench.result import Attestation, Measurement, Memory, Repeat, Result


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    key: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    doc: str
    value: Callable[[Result, Measurement, Attestation], float | None]


def tpot_s(repeat: Repeat) -> float:
    """Time of one decode step of the whole batch, averaged over a request: (end to end - TTFT) / (new tokens - 1)."""
    return (repeat.e2e_s - repeat.ttft_s) / len(repeat.decode_step_s)


def median_step_s(measurements: Sequence[Measurement]) -> list[float]:
    """For each position in the answer the median of its decode step over all requests of all processes."""
    requests = [repeat.decode_step_s for m in measurements for repeat in m.repeats]
    return [median(steps) for steps in zip(*requests, strict=True)]


def process_times_s(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """TTFT and TPOT of each process (the median of its requests): the independent readings that verdicts stand on."""
    return {"ttft_s": [_ttft(m) for m in measurements], "tpot_s": [_tpot(m) for m in measurements]}


def outlying(measurement: Measurement) -> list[int]:
    """Which timed requests (from 0) lie far from the others, in TTFT or TPOT."""
    times = ([r.ttft_s for r in measurement.repeats], [tpot_s(r) for r in measurement.repeats])
    return sorted({index for each in times for index in outliers(each)})


def drift(measurement: Measurement) -> float:
    """By how much the reference kernel that changed most was slower (or faster) after the cell than before it."""
    before, after = dataclasses.astuple(measurement.before), dataclasses.astuple(measurement.after)
    changes: list[float] = [late / early - 1 for early, late in zip(before, after, strict=True)]
    return max(changes, key=abs)


def _quantile(m: Measurement, quantile: float) -> float | None:
    found = step_quantile([r.decode_step_s for r in m.repeats], quantile)
    return None if found is None else found.value


def _share(m: Measurement, part: float | None) -> float | None:
    return None if part is None else part / m.contamination.wall_s


def _ttft(m: Measurement) -> float:
    return median(r.ttft_s for r in m.repeats)


def _tpot(m: Measurement) -> float:
    return median(tpot_s(r) for r in m.repeats)


def _e2e(m: Measurement) -> float:
    return median(r.e2e_s for r in m.repeats)


def _contexts(r: Result, m: Measurement) -> tuple[float, int]:
    """Mean context of the decode steps, and the cache's length when the last token is out."""
    new_tokens = r.cell.workload.new_tokens
    return m.prompt_tokens + new_tokens / 2, m.prompt_tokens + new_tokens - 1


def _peak(memory: Memory) -> float | None:
    return memory.allocated_peak_bytes if memory.allocated_peak_bytes is not None else memory.rss_peak_bytes


METRICS: tuple[Metric, ...] = (
    Metric("ttft_s", "s", "lower", "prompt ids on the host to ids of the first token on the host", lambda r, m, a: _ttft(m)),
    Metric("tpot_s", "s", "lower", "one decode step of the whole batch", lambda r, m, a: _tpot(m)),
    Metric("e2e_s", "s", "lower", "call to last token", lambda r, m, a: _e2e(m)),
    Metric(
        "prefill_tok_s",
        "tok/s",
        "higher",
        "batch x prompt tokens / TTFT",
        lambda r, m, a: r.cell.batch * m.prompt_tokens / _ttft(m),
    ),
    Metric("decode_tok_s", "tok/s", "higher", "batch / TPOT", lambda r, m, a: r.cell.batch / _tpot(m)),
    Metric(
        "output_tok_s",
        "tok/s",
        "higher",
        "batch x new tokens / end to end",
        lambda r, m, a: r.cell.batch * r.cell.workload.new_tokens / _e2e(m),
    ),
    Metric("load_s", "s", "lower", "load, quantize and move, files on this disk", lambda r, m, a: m.load_s),
    Metric("first_ttft_s", "s", "lower", "TTFT of the process's very first request", lambda r, m, a: m.warmups[0].ttft_s),
    Metric(
        "weight_bytes",
        "B",
        "lower",
        "parameters, buffers and quantization state as stored after the first forward",
        lambda r, m, a: a.weight_bytes,
    ),
    Metric(
        "bits_per_weight",
        "bit",
        "lower",
        "stored bytes x 8 / weights before quantization",
        lambda r, m, a: a.weight_bytes * 8 / a.logical_weights,
    ),
    Metric(
        "step_bytes",
        "B",
        "lower",
        "least bytes that a decode step reads, at the mean context",
        lambda r, m, a: cost.step_bytes(a, _contexts(r, m)[0], r.cell.batch),
    ),
    Metric(
        "head_share",
        "1",
        "neither",
        "share of the head among the weights that a step reads; bitsandbytes does not quantize it",
        lambda r, m, a: a.head_bytes / cost.weight_bytes_per_step(a),
    ),
    Metric(
        "kv_bytes",
        "B",
        "lower",
        "KV cache of the whole batch at the last token",
        lambda r, m, a: cost.kv_bytes(a, _contexts(r, m)[1], r.cell.batch),
    ),
    Metric(
        "predicted_bytes",
        "B",
        "neither",
        "weights and KV cache as predicted from the architecture before loading",
        lambda r, m, a: None if (found := predict(r.cell)) is None else found.least_bytes,
    ),
    Metric(
        "vram_peak_bytes",
        "B",
        "lower",
        "peak of torch's CUDA allocator in the timed requests; only on a GPU",
        lambda r, m, a: m.run_memory.allocated_peak_bytes,
    ),
    Metric(
        "vram_peak_reserved_bytes",
        "B",
        "lower",
        "peak that the allocator held; only on a GPU",
        lambda r, m, a: m.run_memory.reserved_peak_bytes,
    ),
    Metric(
        "device_used_bytes",
        "B",
        "lower",
        "whole device by NVML, minus its reading before the process used it",
        lambda r, m, a: m.run_memory.device_used_bytes,
    ),
    Metric(
        "rss_peak_bytes",
        "B",
        "lower",
        "peak resident set of the process in the timed requests, libraries and file pages included",
        lambda r, m, a: m.run_memory.rss_peak_bytes,
    ),
    Metric(
        "load_peak_bytes",
        "B",
        "lower",
        "peak while loading: allocator on a GPU, resident set on a CPU",
        lambda r, m, a: _peak(m.load_memory),
    ),
    Metric(
        "outlier_share",
        "1",
        "neither",
        "int8 with a threshold: activation columns above it, of all",
        lambda r, m, a: a.outlier_share,
    ),
    *(
        Metric(
            f"decode_step_p{round(q * 100)}_s",
            "s",
            "lower",
            f"{q:.0%} of all decode steps took no longer; only where they are enough to tell",
            lambda r, m, a, q=q: _quantile(m, q),  # type: ignore[misc]
        )
        for q in (0.50, 0.95, 0.99)
    ),
    Metric("n", "1", "neither", "timed requests of a process behind its medians", lambda r, m, a: len(m.repeats)),
    Metric("outliers", "1", "lower", "timed requests far from the others, all kept", lambda r, m, a: len(outlying(m))),
    Metric(
        "drift",
        "1",
        "neither",
        "change of the reference kernels over the cell; 0.1: slower by 10 %",
        lambda r, m, a: drift(m),
    ),
    Metric(
        "throttled_share",
        "1",
        "lower",
        "share of the timed requests' wall time in which the cgroup was throttled",
        lambda r, m, a: _share(m, m.contamination.throttled_s),
    ),
    Metric(
        "steal_share",
        "1",
        "lower",
        "CPU time that other virtual machines took, for each second of the timed requests",
        lambda r, m, a: _share(m, m.contamination.steal_s),
    ),
    Metric(
        "pressure_share",
        "1",
        "lower",
        "share of the timed requests' wall time in which some thread waited for a CPU",
        lambda r, m, a: _share(m, m.contamination.pressure_s),
    ),
    Metric(
        "switches_per_s",
        "1/s",
        "lower",
        "how often the scheduler took a CPU from this process",
        lambda r, m, a: _share(m, m.contamination.involuntary_switches),
    ),
)


def derive(result: Result) -> dict[str, float]:
    """All metrics that this result has, each the median over its processes; empty for a cell without a number.

    Of TTFT and TPOT also intervals at 95 %: ``_low`` and ``_high`` of the geometric mean over the processes, where there
    are several; ``_repeat_low`` and ``_repeat_high`` over the requests of the first one, which say nothing about others.
    """
    measurements, attestation = result.measurements, result.attestation
    if not measurements or attestation is None:
        return {}
    found: dict[str, float] = {}
    for row in METRICS:
        values = [row.value(result, m, attestation) for m in measurements]
        kept = [value for value in values if value is not None]
        if kept:
            found[row.key] = float(median(kept))
    found["processes"] = float(len(measurements))
    first = measurements[0].repeats
    requests = {"ttft_s": [r.ttft_s for r in first], "tpot_s": [tpot_s(r) for r in first]}
    level = look_level(result.cell.measure.repeats)
    for key, processes in process_times_s(measurements).items():
        if len(processes) > 1:
            found |= _ends(key, geometric_interval(processes, 1 - ALPHA))
        if len(first) > 1:
            found |= _ends(f"{key}_repeat", geometric_interval(requests[key], level))
    return found


def _ends(key: str, found: Estimate) -> dict[str, float]:
    return {f"{key}_low": found.low, f"{key}_high": found.high}
