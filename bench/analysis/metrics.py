"""Every number that is derived from a result, defined once: key, unit, which way is better, what it is.

The scope is offline: one fixed batch, no queue and no arrivals; a TTFT here is never a server's TTFT. SI base units;
whoever prints them scales. A metric is None where its reading does not exist (no GPU, no such file), never 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.analysis import cost
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


def median_step_s(measurement: Measurement) -> list[float]:
    """For each position in the answer the median over the repeats of its decode step."""
    return [median(steps) for steps in zip(*(r.decode_step_s for r in measurement.repeats), strict=True)]


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
    Metric("n", "1", "neither", "timed requests behind the medians", lambda r, m, a: len(m.repeats)),
)


def derive(result: Result) -> dict[str, float]:
    """All metrics that this result has; empty for a cell without a number."""
    if result.measurement is None or result.attestation is None:
        return {}
    values = {row.key: row.value(result, result.measurement, result.attestation) for row in METRICS}
    return {key: float(value) for key, value in values.items() if value is not None}
