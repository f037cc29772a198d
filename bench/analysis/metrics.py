"""Every number that is derived from a result, defined once: what it is, where it comes from, how it
is shown.

The scope is offline: one fixed batch, no queue and no arrivals; a TTFT here is never a server's
TTFT. SI base units; ``Metric.text`` scales them for people. A metric is None where its reading does
not exist (no GPU, no such file), never 0.

What a cell takes of a GPU's memory is what torch's allocator has reserved there: that is gone for
everybody else. What tensors occupied at once is less, and a metric of its own that no table shows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist, geometric_mean, median
from typing import Literal

from bench.analysis import choices, cost, price, readings
from bench.analysis.divergence import (
    answer_differences,
    by_text,
    equal_tokens,
    estimates,
    first_difference,
    strided_perplexity,
)
from bench.analysis.readings import Process
from bench.analysis.stats import (
    ALPHA,
    Estimate,
    geometric_interval,
    look_level,
    median_interval,
    share_interval,
)
from bench.record.measurement import TaskScore
from bench.record.result import Result

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. Without a heading no table shows it."""

    key: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    doc: str
    value: Callable[[Process], float | None]
    heading: str = ""
    factor: float = 1.0  # from SI to what is shown
    digits: int | None = None  # after the point; None: two significant ones, for what spans orders

    def text(self, value: float) -> str:
        """A value as it is shown."""
        shown = value * self.factor
        return f"{shown:.2g}" if self.digits is None else f"{shown:,.{self.digits}f}"


def _of_text(key: str, p: Process) -> float | None:
    divergence = p.result.divergence
    return None if divergence is None else estimates(divergence)[key].value


def _count_of_answers(field: str, p: Process) -> float | None:
    differences = answer_differences(p.result)
    return sum(getattr(answer, field) for answer in differences) if differences else None


def _of_flips(count: Callable[[choices.Flips], float], p: Process) -> float | None:
    flips = choices.flips_of(p.result)
    return None if flips is None else count(flips)


def _accuracy(p: Process, of_reference: bool) -> float | None:
    divergence = p.result.divergence
    theirs = () if divergence is None else divergence.choices
    chosen = theirs if of_reference else p.result.choices
    return choices.accuracy(chosen).value if chosen else None


# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric("ttft_s", "s", "lower", "prompt ids on the host to ids of the first token on the host",
           lambda p: readings.ttft(p.measurement), "TTFT ms", 1e3, 1),
    Metric("tpot_s", "s", "lower", "one decode step of the whole batch",
           lambda p: readings.tpot(p.measurement), "TPOT ms", 1e3, 2),
    Metric("e2e_s", "s", "lower", "call to last token", lambda p: readings.e2e(p.measurement)),
    Metric("prefill_tok_s", "tok/s", "higher", "batch x prompt tokens / TTFT",
           readings.prefill_tok_s, "prefill tok/s", 1, 0),
    Metric("decode_tok_s", "tok/s", "higher", "batch / TPOT",
           readings.decode_tok_s, "decode tok/s", 1, 1),
    Metric("output_tok_s", "tok/s", "higher", "batch x new tokens / end to end",
           lambda p: p.rows * p.result.cell.workload.new_tokens / readings.e2e(p.measurement),
           "output tok/s", 1, 1),
    Metric("cost/input_mtok", "price/Mtok", "lower",
           "price_per_hour / 3600 / prefill throughput, per million prompt tokens, in the currency"
           " of price_per_hour: of a machine that is always busy with prefill at this batch",
           lambda p: price.per_mtok(p.price_per_hour, readings.prefill_tok_s(p)),
           "cost/Mtok in", 1, 3),
    Metric("cost/output_mtok", "price/Mtok", "lower",
           "the same of decoding, per million output tokens: price_per_hour / 3600 / decode"
           " throughput of the whole batch",
           lambda p: price.per_mtok(p.price_per_hour, readings.decode_tok_s(p)),
           "cost/Mtok out", 1, 3),
    Metric("tokens_per_forward", "1", "higher",
           "tokens of a row that a decode forward brought, on average; only where some brought"
           " several", lambda p: readings.tokens_per_forward(p.measurement)),
    Metric("emission_gap_s", "s", "lower",
           "median time between arrivals of tokens, where several come at once",
           lambda p: readings.emission_gap_s(p.measurement)),
    Metric("accepted_share", "1", "higher",
           "of the tokens that a decode strategy guessed, those that the model chose too",
           lambda p: p.attestation.details.get("decode", {}).get("accepted_share")),
    Metric("ready_s", "s", "lower",
           "what the decode strategy prepares once before the first request: its cache, compiling",
           lambda p: p.measurement.ready_s),
    Metric("load_s", "s", "lower", "load, quantize and move, files on this disk",
           lambda p: p.measurement.load_s),
    Metric("first_ttft_s", "s", "lower", "TTFT of the process's very first request",
           lambda p: p.measurement.warmups[0].ttft_s),
    Metric("weight_bytes", "B", "lower",
           "parameters, buffers and quantization state as stored after the first forward",
           lambda p: p.attestation.weight_bytes, "weights MiB", 1 / MIB, 1),
    Metric("bits_per_weight", "bit", "lower", "stored bytes x 8 / weights before quantization",
           lambda p: p.attestation.weight_bytes * 8 / p.attestation.logical_weights),
    Metric("step_bytes", "B", "lower", "least bytes that a decode step reads, at the mean context",
           readings.step_bytes),
    Metric("head_share", "1", "neither",
           "share of the head among the weights that a step reads; bitsandbytes does not quantize"
           " it", lambda p: p.attestation.head_bytes / cost.weight_bytes_per_step(p.attestation)),
    Metric("kv_bytes", "B", "lower", "KV cache of the whole batch at the last token",
           readings.kv_bytes),
    Metric("predicted_bytes", "B", "neither",
           "weights and KV cache as predicted from the architecture before loading",
           lambda p: p.result.predicted_bytes),
    Metric("vram_peak_bytes", "B", "lower",
           "peak that torch's CUDA allocator took from the GPU in the timed requests; only on a"
           " GPU", lambda p: p.measurement.run_memory.reserved_peak_bytes,
           "VRAM peak MiB", 1 / MIB, 0),
    Metric("vram_allocated_peak_bytes", "B", "lower",
           "peak of what its tensors occupied at once; only on a GPU",
           lambda p: p.measurement.run_memory.allocated_peak_bytes),
    Metric("device_used_bytes", "B", "lower",
           "whole device by NVML, minus its reading before the process used it; not where that is"
           " less than the process reserved, as another one gave memory back meanwhile",
           lambda p: readings.device_used_bytes(p.measurement.run_memory)),
    Metric("rss_peak_bytes", "B", "lower",
           "peak resident set of the process in the timed requests, libraries and file pages"
           " included", lambda p: p.measurement.run_memory.rss_peak_bytes,
           "RSS peak MiB", 1 / MIB, 0),
    Metric("rss_growth_bytes", "B", "lower",
           "peak resident set in the timed requests, minus that before loading; freed memory that"
           " the heap keeps counts too", readings.rss_growth_bytes, "memory MiB", 1 / MIB, 0),
    Metric("enqueue_share", "1", "lower",
           "host time to enqueue the first decode step / TPOT; near 1 the device waits for the"
           " host; only on a GPU", readings.enqueue_share),
    Metric("load_peak_bytes", "B", "lower",
           "peak while loading: allocator on a GPU, resident set on a CPU",
           readings.load_peak_bytes),
    Metric("outlier_share", "1", "neither",
           "int8 with a threshold: activation columns above it, of all",
           lambda p: p.attestation.outlier_share),
    Metric("mbu", "1", "higher", "step_bytes / TPOT / bandwidth of the data sheet",
           partial(readings.bandwidth_share, measured=False), "MBU", 1, 2),
    Metric("bw_attained", "1", "higher",
           "step_bytes / TPOT / read bandwidth measured on this machine",
           partial(readings.bandwidth_share, measured=True), "bandwidth used", 1, 2),
    Metric("mfu", "1", "higher", "operations of the prefill / TTFT / peak of the executed dtype",
           readings.mfu),
    Metric("ceiling_tok_s", "tok/s", "neither",
           "decode throughput that this device's bandwidth and compute allow at most",
           readings.ceiling_tok_s),
    Metric("j_per_prompt_tok", "J", "lower",
           "energy of a prefill / its prompt tokens, idle power included: of the GPU by NVML's"
           " counter over 10 s and more, or of the CPU's packages by RAPL's, others' work included",
           readings.j_per_prompt_tok),
    Metric("j_per_output_tok", "J", "lower",
           "energy of a request beyond its prefill / the tokens after the first, idle power"
           " included", readings.j_per_output_tok, "J/token", 1, 3),
    Metric("j_per_output_tok_net", "J", "lower",
           "the same without what the idle process draws with the model in memory",
           readings.j_per_output_tok_net, "net J/token", 1, 3),
    Metric("idle_power_w", "W", "lower", "of the process that does nothing, model in memory",
           readings.idle_power_w),
    *(Metric(f"decode_step_p{round(q * 100)}_s", "s", "lower",
             f"{q:.0%} of all decode steps took no longer; only where they are enough to tell",
             partial(readings.step_quantile_s, quantile=q)) for q in (0.50, 0.95, 0.99)),
    Metric("n", "1", "neither", "timed requests of a process behind its medians",
           lambda p: len(p.measurement.repeats)),
    Metric("outliers", "1", "lower", "timed requests far from the others, all kept",
           lambda p: len(readings.outlying(p.measurement))),
    Metric("drift", "1", "neither",
           "change of the reference kernels over the cell; 0.1: slower by 10%",
           lambda p: readings.drift(p.measurement)),
    Metric("throttled_share", "1", "lower",
           "share of the timed requests' wall time in which the cgroup was throttled",
           partial(readings.share_of_time, field="throttled_s")),
    Metric("steal_share", "1", "lower",
           "CPU time that other virtual machines took, for each second of the timed requests",
           partial(readings.share_of_time, field="steal_s")),
    Metric("pressure_share", "1", "lower",
           "share of the timed requests' wall time in which some thread waited for a CPU",
           partial(readings.share_of_time, field="pressure_s")),
    Metric("switches_per_s", "1/s", "lower",
           "how often the scheduler took a CPU from this process",
           partial(readings.share_of_time, field="involuntary_switches")),
    Metric("kl_nats", "nat", "lower", "KL(reference || cell) of the next token, on the same text",
           partial(_of_text, "kl_nats"), "KL nat"),
    Metric("kl_median_nats", "nat", "lower", "its median over positions, mean of windows",
           partial(_of_text, "kl_median_nats")),
    Metric("kl_p99_nats", "nat", "lower", "its 99th percentile over positions, mean of windows",
           partial(_of_text, "kl_p99_nats")),
    Metric("kl_floor_nats", "nat", "neither",
           "the same of the reference in 16 bits against itself, at another batch size and"
           " attention", partial(_of_text, "kl_floor_nats")),
    Metric("top1_agreement", "1", "higher",
           "share of positions where both models rank the same token first",
           partial(_of_text, "top1_agreement"), "top-1 %", 1e2, 1),
    Metric("perplexity", "1", "lower", "of the text; exp of the mean NLL of a token",
           partial(_of_text, "perplexity"), "perplexity", 1, 2),
    Metric("reference_perplexity", "1", "lower", "the reference's, on the same windows",
           partial(_of_text, "reference_perplexity")),
    Metric("perplexity_ratio", "1", "lower", "the cell's / the reference's, paired by window",
           partial(_of_text, "perplexity_ratio")),
    Metric("perplexity_stride512", "1", "lower",
           "of the same texts in windows of 1,024 tokens that begin every 512, each token scored"
           " once; lower than perplexity, which gives less context",
           lambda p: strided_perplexity(p.result), "perplexity, stride 512", 1, 2),
    Metric("bits_per_byte", "bit", "lower",
           "NLL of the text / its bytes: comparable across tokenizers",
           partial(_of_text, "bits_per_byte")),
    Metric("choice_accuracy", "1", "higher",
           "share of multiple-choice items whose own continuation is the likeliest of four",
           partial(_accuracy, of_reference=False), "accuracy %", 1e2, 1),
    Metric("reference_choice_accuracy", "1", "higher", "the reference's, on the same items",
           partial(_accuracy, of_reference=True)),
    Metric("choice_flips", "1", "lower",
           "share of multiple-choice items on which cell and reference choose differently",
           partial(_of_flips, lambda f: f.changed / f.items), "flips %", 1e2, 1),
    Metric("choice_flips_worse", "1", "lower", "items that the reference alone has right",
           partial(_of_flips, lambda f: f.worse)),
    Metric("choice_flips_better", "1", "higher", "items that the cell alone has right",
           partial(_of_flips, lambda f: f.better)),
    Metric("choice_p", "1", "neither",
           "how often chance alone parts worse and better so far: McNemar's exact test",
           partial(_of_flips, lambda f: f.p)),
    Metric("choice_smallest_difference", "1", "neither",
           "difference in accuracy that so many items show four times out of five",
           partial(_of_flips, lambda f: f.smallest_difference)),
    Metric("equal_tokens", "1", "higher",
           "share of the tokens of greedy answers that are the reference's, mean of the prompts",
           lambda p: equal_tokens(p.result)),
    Metric("first_difference", "token", "higher",
           "median position at which an answer leaves the reference's; absent when most are equal",
           lambda p: first_difference(p.result)),
    Metric("answers_looping", "1", "lower", "answers that end in a repetition",
           partial(_count_of_answers, "is_loop")),
    Metric("answers_empty", "1", "lower", "answers without a word",
           partial(_count_of_answers, "is_empty")),
)
# fmt: on
# Over processes these are averaged as their intervals are: on the scale of logarithms
_OF_TIMES = (
    *("ttft_s", "tpot_s", "e2e_s", "prefill_tok_s", "decode_tok_s", "output_tok_s"),
    *("cost/input_mtok", "cost/output_mtok"),
)
METRIC = {metric.key: metric for metric in METRICS}


def derive(result: Result, price_per_hour: float | None = None) -> dict[str, float]:
    """All metrics that this result has, each the median over its processes (of times and rates the
    geometric mean, as their intervals); empty for a cell without a number.

    ``_low`` and ``_high`` are intervals at 95 %: of TTFT and TPOT over the processes, where there
    are several; ``_repeat_low`` and ``_repeat_high`` over the requests of a single one, which say
    nothing about others; of prices as of their times; of divergence over the windows of the text;
    of multiple choice exact ones over its items; of tasks by the standard error that the harness
    gives.
    """
    measurements, attestation = result.measurements, result.attestation
    if not measurements or attestation is None:
        return {}
    processes = [Process(result, m, attestation, price_per_hour) for m in measurements]
    values: dict[str, float] = {}
    for metric in METRICS:
        read = [value for p in processes if (value := metric.value(p)) is not None]
        average = geometric_mean if metric.key in _OF_TIMES else median
        if read and math.isfinite(typical := float(average(read))):
            values[metric.key] = typical
    of_times = _intervals_of_times(result)
    return (
        values
        | {"processes": float(len(measurements))}
        | of_times
        | price.intervals(values, of_times)
        | task_values(result.tasks)
        | _intervals_of_texts(result)
        | _intervals_of_choices(result)
    )


def _intervals_of_times(result: Result) -> dict[str, float]:
    ends: dict[str, float] = {}
    if len(result.measurements) > 1:
        for key, processes in readings.typical_times_s(result.measurements).items():
            ends |= _ends(key, geometric_interval(processes, 1 - ALPHA))
        return ends
    only = result.measurements[0].repeats
    requests = {"ttft_s": [r.ttft_s for r in only], "tpot_s": [readings.tpot_s(r) for r in only]}
    for key, times in requests.items() if len(only) > 1 else ():
        low, high = median_interval(times, look_level(result.cell.measure.repeats))
        ends |= {f"{key}_repeat_low": low, f"{key}_repeat_high": high}
    return ends


def task_key(score: TaskScore) -> str:
    """Under which a task's number is found."""
    return f"task_{score.task}_{score.metric}"


def task_values(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Scores of tasks by key, with intervals by the standard errors that the harness gives."""
    values = {}
    z = NormalDist().inv_cdf(1 - ALPHA / 2)
    for score in scores:
        key = task_key(score)
        values[key] = score.value
        if score.standard_error is not None:
            values[f"{key}_low"] = score.value - z * score.standard_error
            values[f"{key}_high"] = score.value + z * score.standard_error
    return values


def _intervals_of_texts(result: Result) -> dict[str, float]:
    if result.divergence is None:
        return {}
    values: dict[str, float] = {}
    for key, estimate in estimates(result.divergence).items():
        values |= _ends(key, estimate)
    for text, of_text in by_text(result.divergence).items():
        values |= {f"{key}_{text}": of_text[key].value for key in ("kl_nats", "perplexity")}
    return values


def _intervals_of_choices(result: Result) -> dict[str, float]:
    values: dict[str, float] = {}
    if result.choices:
        values |= _ends("choice_accuracy", choices.accuracy(result.choices))
    if (flips := choices.flips_of(result)) is not None:
        interval = share_interval(flips.changed, flips.items, 1 - ALPHA)
        values |= _ends("choice_flips", interval)
    return values


def _ends(key: str, estimate: Estimate) -> dict[str, float]:
    """An interval from a single reading has no end, and then none is given."""
    ends = {f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return {name: end for name, end in ends.items() if math.isfinite(end)}


def peak_memory_bytes(result: Result, values: Mapping[str, float]) -> float:
    """What the model needs to run: the GPU's memory; on a CPU what the process has grown by, since
    its libraries take memory for any model. nan without a reading. ``values``: as derived."""
    if result.cell.device == "cuda":
        return values.get("vram_peak_bytes", math.nan)
    grown = values.get("rss_growth_bytes", values.get("rss_peak_bytes", math.nan))
    return max(grown, 1.0)  # of a tiny model the libraries may give back more


def in_words(result: Result, values: Mapping[str, float]) -> str:
    """A measured cell in one sentence. ``values``: as derived."""
    parts = [
        f"{values['output_tok_s']:,.1f} output tok/s, TTFT {values['ttft_s'] * 1e3:,.1f} ms, "
        f"TPOT {values['tpot_s'] * 1e3:,.2f} ms"
    ]
    if (paid := values.get("cost/output_mtok")) is not None:
        parts.append(f"{METRIC['cost/output_mtok'].text(paid)} per million output tokens")
    if (joules := values.get("j_per_output_tok_net")) is not None:
        text = METRIC["j_per_output_tok_net"].text(joules)
        parts.append(f"{text} J per output token without idle power")
    if not math.isnan(peak := peak_memory_bytes(result, values)):
        parts.append(f"{peak / MIB:,.0f} MiB at peak")
    if "kl_nats" in values:
        parts.append(
            f"KL {values['kl_nats']:.3g} nat, {values['top1_agreement']:.1%} of next tokens as"
            " unquantized"
        )
    if (flips := choices.flips_of(result)) is not None:
        parts.append(choices.sentence(flips))
    if choices.is_distinguishable(result) is False:
        parts.append("not distinguishable from unquantized")
    return ", ".join(parts)
