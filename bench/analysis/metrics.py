"""Every number that is derived from a result, defined once: key, unit, which way is better, what it
is.

The scope is offline: one fixed batch, no queue and no arrivals; a TTFT here is never a server's
TTFT. SI base units; whoever prints them scales. A metric is None where its reading does not exist
(no GPU, no such file), never 0.
"""

import math
from statistics import median

from bench.analysis import cost, readings, roofline
from bench.analysis.divergence import QUALITY_METRICS, by_text, estimates
from bench.analysis.footprint import predict
from bench.analysis.metric import Metric
from bench.analysis.stats import ALPHA, Estimate, geometric_interval, look_level
from bench.record.result import Result

METRICS: tuple[Metric, ...] = (
    Metric(
        "ttft_s",
        "s",
        "lower",
        "prompt ids on the host to ids of the first token on the host",
        lambda r, m, a: readings.ttft(m),
    ),
    Metric(
        "tpot_s",
        "s",
        "lower",
        "one decode step of the whole batch",
        lambda r, m, a: readings.tpot(m),
    ),
    Metric("e2e_s", "s", "lower", "call to last token", lambda r, m, a: readings.e2e(m)),
    Metric(
        "prefill_tok_s",
        "tok/s",
        "higher",
        "batch x prompt tokens / TTFT",
        lambda r, m, a: r.cell.batch * m.prompt_tokens / readings.ttft(m),
    ),
    Metric(
        "decode_tok_s",
        "tok/s",
        "higher",
        "batch / TPOT",
        lambda r, m, a: r.cell.batch / readings.tpot(m),
    ),
    Metric(
        "output_tok_s",
        "tok/s",
        "higher",
        "batch x new tokens / end to end",
        lambda r, m, a: r.cell.batch * r.cell.workload.new_tokens / readings.e2e(m),
    ),
    Metric(
        "load_s",
        "s",
        "lower",
        "load, quantize and move, files on this disk",
        lambda r, m, a: m.load_s,
    ),
    Metric(
        "first_ttft_s",
        "s",
        "lower",
        "TTFT of the process's very first request",
        lambda r, m, a: m.warmups[0].ttft_s,
    ),
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
        lambda r, m, a: readings.step_bytes(r, m, a),
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
        lambda r, m, a: cost.kv_bytes(a, readings.contexts(r, m)[1], r.cell.batch),
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
        "rss_growth_bytes",
        "B",
        "lower",
        "peak resident set in the timed requests, minus that before loading; freed memory that the"
        " heap keeps counts too",
        lambda r, m, a: readings.rss_growth_bytes(m),
    ),
    Metric(
        "enqueue_share",
        "1",
        "lower",
        "host time to enqueue the first decode step / TPOT; near 1 the device waits for the host;"
        " only on a GPU",
        lambda r, m, a: (
            None if (host_s := readings.enqueue_s(m)) is None else host_s / readings.tpot(m)
        ),
    ),
    Metric(
        "load_peak_bytes",
        "B",
        "lower",
        "peak while loading: allocator on a GPU, resident set on a CPU",
        lambda r, m, a: readings.peak_bytes(m.load_memory),
    ),
    Metric(
        "outlier_share",
        "1",
        "neither",
        "int8 with a threshold: activation columns above it, of all",
        lambda r, m, a: a.outlier_share,
    ),
    Metric(
        "mbu",
        "1",
        "higher",
        "step_bytes / TPOT / bandwidth of the data sheet",
        lambda r, m, a: readings.of_peaks(
            r, lambda p: roofline.mbu(p, readings.step_bytes(r, m, a), readings.tpot(m))
        ),
    ),
    Metric(
        "bw_attained",
        "1",
        "higher",
        "step_bytes / TPOT / read bandwidth measured on this machine",
        lambda r, m, a: readings.of_peaks(
            r, lambda p: roofline.bw_attained(p, readings.step_bytes(r, m, a), readings.tpot(m))
        ),
    ),
    Metric(
        "mfu",
        "1",
        "higher",
        "operations of the prefill / TTFT / peak of the executed dtype",
        lambda r, m, a: readings.of_peaks(r, lambda p: readings.mfu(r, m, a, p)),
    ),
    Metric(
        "ceiling_tok_s",
        "tok/s",
        "neither",
        "decode throughput that this device's bandwidth and compute allow at most",
        lambda r, m, a: readings.of_peaks(r, lambda p: readings.ceiling(r, m, a, p)),
    ),
    Metric(
        "j_per_prompt_tok",
        "J",
        "lower",
        "energy of a prefill / its prompt tokens, idle power included; NVML's counter over 10 s and"
        " more",
        lambda r, m, a: readings.prompt_j(r, m, 0.0),
    ),
    Metric(
        "j_per_output_tok",
        "J",
        "lower",
        "energy of a request beyond its prefill / the tokens after the first, idle power included",
        lambda r, m, a: readings.output_j(r, m, 0.0),
    ),
    Metric(
        "j_per_output_tok_net",
        "J",
        "lower",
        "the same without what the idle process draws with the model in memory",
        lambda r, m, a: (
            None
            if readings.idle_w(m) is None
            else readings.output_j(r, m, readings.idle_w(m) or 0.0)
        ),
    ),
    Metric(
        "idle_power_w",
        "W",
        "lower",
        "of the process that does nothing, model in memory",
        lambda r, m, a: readings.idle_w(m),
    ),
    *(
        Metric(
            f"decode_step_p{round(q * 100)}_s",
            "s",
            "lower",
            f"{q:.0%} of all decode steps took no longer; only where they are enough to tell",
            lambda r, m, a, q=q: readings.step_quantile_s(m, q),  # type: ignore[misc]
        )
        for q in (0.50, 0.95, 0.99)
    ),
    Metric(
        "n",
        "1",
        "neither",
        "timed requests of a process behind its medians",
        lambda r, m, a: len(m.repeats),
    ),
    Metric(
        "outliers",
        "1",
        "lower",
        "timed requests far from the others, all kept",
        lambda r, m, a: len(readings.outlying(m)),
    ),
    Metric(
        "drift",
        "1",
        "neither",
        "change of the reference kernels over the cell; 0.1: slower by 10 %",
        lambda r, m, a: readings.drift(m),
    ),
    Metric(
        "throttled_share",
        "1",
        "lower",
        "share of the timed requests' wall time in which the cgroup was throttled",
        lambda r, m, a: readings.share_of_time(m, m.contamination.throttled_s),
    ),
    Metric(
        "steal_share",
        "1",
        "lower",
        "CPU time that other virtual machines took, for each second of the timed requests",
        lambda r, m, a: readings.share_of_time(m, m.contamination.steal_s),
    ),
    Metric(
        "pressure_share",
        "1",
        "lower",
        "share of the timed requests' wall time in which some thread waited for a CPU",
        lambda r, m, a: readings.share_of_time(m, m.contamination.pressure_s),
    ),
    Metric(
        "switches_per_s",
        "1/s",
        "lower",
        "how often the scheduler took a CPU from this process",
        lambda r, m, a: readings.share_of_time(m, m.contamination.involuntary_switches),
    ),
    *QUALITY_METRICS,
)


def derive(result: Result) -> dict[str, float]:
    """All metrics that this result has, each the median over its processes; empty for a cell
    without a number.

    Of TTFT and TPOT also intervals at 95 %: ``_low`` and ``_high`` of the geometric mean over the
    processes, where there are several; ``_repeat_low`` and ``_repeat_high`` over the requests of
    the first one, which say nothing about others. Of what was read of a text, intervals over its
    windows.
    """
    measurements, attestation = result.measurements, result.attestation
    if not measurements or attestation is None:
        return {}
    found: dict[str, float] = {}
    for row in METRICS:
        values = [row.value(result, m, attestation) for m in measurements]
        kept = [value for value in values if value is not None]
        if kept and math.isfinite(typical := float(median(kept))):
            found[row.key] = typical
    found["processes"] = float(len(measurements))
    first = measurements[0].repeats
    requests = {"ttft_s": [r.ttft_s for r in first], "tpot_s": [readings.tpot_s(r) for r in first]}
    level = look_level(result.cell.measure.repeats)
    for key, processes in readings.process_times_s(measurements).items():
        if len(processes) > 1:
            found |= _ends(key, geometric_interval(processes, 1 - ALPHA))
        if len(first) > 1:
            found |= _ends(f"{key}_repeat", geometric_interval(requests[key], level))
    found |= {f"task_{score.task}_{score.metric}": score.value for score in result.tasks}
    if result.divergence is not None:
        for key, estimate in estimates(result.divergence).items():
            found |= _ends(key, estimate)
        for text, of_text in by_text(result.divergence).items():
            found |= {f"{key}_{text}": of_text[key].value for key in ("kl_nats", "perplexity")}
    return found


def _ends(key: str, found: Estimate) -> dict[str, float]:
    """An interval from a single reading has no end, and then none is given."""
    ends = {f"{key}_low": found.low, f"{key}_high": found.high}
    return {name: end for name, end in ends.items() if math.isfinite(end)}
