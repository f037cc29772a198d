"""How near a measured time is to what the machine could do, and what stands in the way.

Two things bound a forward pass from below: the bytes that it has to read over the memory's
bandwidth, and the operations that it has to do over the rate of matrix products. The longer of the
two is the *floor*. Prefill reads the weights once for all tokens of the prompt and sits on the
second bound; a decode step reads them for one token of each sequence and sits on the first, until
the batch is large. Floor over time is the share of the machine that was used.

Peaks come from a data sheet (``mbu``: nothing can be above it) or were measured on this machine
(``bw_attained``: the best that simple kernels did here, and another kernel may do better). Bytes
and operations are the least that the arithmetic needs: copies of a growing cache, masks computed in
full and weights unpacked to memory come on top, which is why a low share is a question and not yet
an answer. ``bottleneck`` puts the usual answers in a table of rules.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.analysis import cost
from bench.record.result import Attestation, Peaks

Cause = Literal["bandwidth", "compute", "host overhead", "dequantization", "unclear"]

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_QUANTIZED_LAYERS = {"Linear4bit", "Linear8bitLt"}


def forward_flops(found: Attestation, prompt_tokens: int, batch: int) -> float:
    """Operations of a prefill whose logits are wanted at the last position only; a multiply-add
    counts as two.

    Causal attention: token i looks at i tokens, or at the window of its layer. Norms, softmax and
    the rest are left out. All experts of a mixture count, so there it is too much.
    Source: PaLM (arXiv 2204.02311), appendix B, without the backward pass and with half of the
    attention's square.
    """
    pairs = sum(
        _causal_pairs(prompt_tokens, window or prompt_tokens)
        for window in found.shape.sliding_windows
    )
    return batch * (
        2 * found.matmul_weights * prompt_tokens
        + _head_flops(found)
        + _attention_flops(found, pairs)
    )


def step_flops(found: Attestation, context_tokens: float, batch: int) -> float:
    """Operations of one decode step of the whole batch, each sequence with ``context_tokens`` in
    its cache."""
    pairs = sum(
        min(window or context_tokens, context_tokens) for window in found.shape.sliding_windows
    )
    return batch * (2 * found.matmul_weights + _head_flops(found) + _attention_flops(found, pairs))


def _causal_pairs(tokens: int, window: int) -> int:
    """Pairs of query and key in one layer."""
    within = min(tokens, window)
    return within * (within + 1) // 2 + (tokens - within) * window


def _head_flops(found: Attestation) -> int:
    return 2 * found.shape.hidden * found.shape.vocabulary


def _attention_flops(found: Attestation, pairs: float) -> float:
    """Of each pair and head a product with K and one with V."""
    return 4 * found.shape.heads * found.shape.head_dim * pairs


def is_quantized(found: Attestation) -> bool:
    """Whether bitsandbytes' layers are in memory."""
    return bool(_QUANTIZED_LAYERS & set(found.layers))


def executed_dtype(found: Attestation) -> str:
    """In which dtype most matrix products run; the head and outlier columns of int8 stay in 16 bits
    all the same."""
    if "Linear8bitLt" in found.layers:
        return "int8"
    if found.compute_dtypes:
        return _DTYPES[found.compute_dtypes[0].removeprefix("torch.")]
    floating = {name: size for name, size in found.bytes_by_dtype.items() if name in _DTYPES}
    return _DTYPES[max(floating, key=lambda name: floating[name])]


def mbu(peaks: Peaks, step_bytes: float, tpot_s: float) -> float | None:
    """Share of the data sheet's bandwidth that a decode step used; None where the peak was
    measured.

    Above 1 is a bug: the peak is of another device, or the bytes are counted wrongly.
    """
    return None if peaks.measured else step_bytes / tpot_s / peaks.read_bytes_s


def bw_attained(peaks: Peaks, step_bytes: float, tpot_s: float) -> float | None:
    """Share of the bandwidth measured here that a decode step used; None where the peak is a data
    sheet's."""
    return step_bytes / tpot_s / peaks.read_bytes_s if peaks.measured else None


def mfu(peaks: Peaks, flops: float, seconds: float, dtype: str) -> float | None:
    """Share of the peak rate of ``dtype`` that was used, of a prefill with its TTFT; None where
    that peak is unknown."""
    peak = peaks.flops.get(dtype)
    return None if peak is None else flops / seconds / peak


def floor_s(
    step_bytes: float, flops: float, read_bytes_s: float, peak_flops: float | None
) -> float:
    """The least time: reading and computing overlap, so the longer of the two. An unknown peak
    bounds nothing."""
    return max(step_bytes / read_bytes_s, flops / peak_flops if peak_flops else 0.0)


def ceiling_tok_s(peaks: Peaks, step_bytes: float, flops: float, batch: int, dtype: str) -> float:
    """Tokens/s of the whole batch that decoding cannot exceed on this device."""
    return batch / floor_s(step_bytes, flops, peaks.read_bytes_s, peaks.flops.get(dtype))


@dataclass(frozen=True, slots=True)
class StepReading:
    """What is known of the decode step of one cell. Units: seconds, bytes, operations, and those
    per second."""

    step_s: float  # the TPOT
    step_bytes: float
    step_flops: float
    read_bytes_s: float  # peaks
    peak_flops: float | None
    # The same step with 16-bit weights; None for a cell that has those
    unquantized_bytes: float | None = None
    # The TPOT of such a cell, alike in all else; None where there is none
    unquantized_step_s: float | None = None
    # What the host needs to enqueue a step on CUDA; None on a CPU, where host and device are one.
    # Read it of a step that finds the launch queue empty: the queue holds about a thousand kernels,
    # and a host that waits for room in it looks as slow as the device.
    host_s: float | None = None


def read_step(
    found: Attestation,
    peaks: Peaks,
    context_tokens: float,
    batch: int,
    step_s: float,
    unquantized_step_s: float | None = None,
    host_s: float | None = None,
) -> StepReading:
    """The reading of a cell with this attestation, at its mean context."""
    shape = found.shape
    weights_16_bit = 2 * (found.matmul_weights + shape.hidden * shape.vocabulary)
    quantized = is_quantized(found)
    return StepReading(
        step_s=step_s,
        step_bytes=cost.step_bytes(found, context_tokens, batch),
        step_flops=step_flops(found, context_tokens, batch),
        read_bytes_s=peaks.read_bytes_s,
        peak_flops=peaks.flops.get(executed_dtype(found)),
        unquantized_bytes=(
            weights_16_bit + cost.kv_bytes(found, context_tokens, batch) if quantized else None
        ),
        unquantized_step_s=unquantized_step_s if quantized else None,
        host_s=host_s,
    )


def bandwidth_share(r: StepReading) -> float:
    return r.step_bytes / r.read_bytes_s / r.step_s


def compute_share(r: StepReading) -> float | None:
    return r.step_flops / r.peak_flops / r.step_s if r.peak_flops else None


def host_share(r: StepReading) -> float | None:
    return None if r.host_s is None else r.host_s / r.step_s


def added_share(r: StepReading) -> float | None:
    """Time beyond the floor that the 16-bit cell beyond its own floor does not spend, as a share of
    the step."""
    if r.unquantized_bytes is None or r.unquantized_step_s is None:
        return None
    own = r.step_s - floor_s(r.step_bytes, r.step_flops, r.read_bytes_s, r.peak_flops)
    other = r.unquantized_step_s - floor_s(
        r.unquantized_bytes, r.step_flops, r.read_bytes_s, r.peak_flops
    )
    return (own - other) / r.step_s


def left_over_share(r: StepReading) -> float | None:
    """What the floor of a 16-bit cell would leave of this step, as a share; only where no such cell
    was measured."""
    if r.unquantized_bytes is None or r.unquantized_step_s is not None:
        return None
    return 1 - floor_s(r.unquantized_bytes, r.step_flops, r.read_bytes_s, r.peak_flops) / r.step_s


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: the cause is named when ``value`` reaches ``threshold``."""

    cause: Cause
    quantity: str  # what value is, for people
    threshold: float
    reason: str
    value: Callable[[StepReading], float | None]


RULES: tuple[Rule, ...] = (
    Rule(
        "bandwidth",
        "share of the read bandwidth in use",
        0.6,
        "reading fills more of the step than all else together: removing all else would make it 1.7"
        " times as fast at most",
        bandwidth_share,
    ),
    Rule(
        "compute",
        "share of the rate of matrix products in use",
        0.6,
        "likewise, with computing for reading",
        compute_share,
    ),
    Rule(
        "host overhead",
        "time to enqueue a step as a share of it",
        0.8,
        "the device waits for the host: kernels that take no time would make the step 1.25 times as"
        " fast at most",
        host_share,
    ),
    Rule(
        "dequantization",
        "share of the step that the 16-bit cell does not spend, reading apart",
        0.3,
        "about a third of three parts: the floor, what a 16-bit cell spends too, and this",
        added_share,
    ),
    Rule(
        "dequantization",
        "share of the step left over after reading 16-bit weights at full speed",
        0.4,
        "no 16-bit cell to compare with; one that is bound by bandwidth (0.6) would be no slower"
        " than this one",
        left_over_share,
    ),
)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What bounds a decode step, and the numbers that say so."""

    name: Cause
    evidence: str


def bottleneck(reading: StepReading) -> Bottleneck:
    """The cause of the first of ``RULES`` that holds, ``unclear`` when none does.

    The thresholds are judgements, with their reasons in the table. Dequantization stands for all
    the work that quantized storage adds: unpacking weights, quantizing activations, treating
    outliers apart. The rows about it come last, since a step that reads or computes at a good share
    of the peak, or waits for its host, cannot be slow because of it.
    """
    below = []
    for rule in RULES:
        value = rule.value(reading)
        if value is None:
            continue
        if value >= rule.threshold:
            return Bottleneck(
                rule.cause,
                f"{rule.quantity}: {value:.2f}, at least {rule.threshold:g}; {_numbers(reading)}",
            )
        below.append(f"{rule.quantity}: {value:.2f}, below {rule.threshold:g}")
    return Bottleneck("unclear", f"{'; '.join(below)}; {_numbers(reading)}")


def _numbers(r: StepReading) -> str:
    least = floor_s(r.step_bytes, r.step_flops, r.read_bytes_s, r.peak_flops)
    text = (
        f"a step takes {r.step_s * 1e3:.3g} ms, at least {least * 1e3:.3g} ms; "
        f"it reads {r.step_bytes / 1e9:.3g} GB at a peak of {r.read_bytes_s / 1e9:.4g} GB/s"
    )
    return (
        text
        if r.unquantized_step_s is None
        else f"{text}; with 16-bit weights it takes {r.unquantized_step_s * 1e3:.3g} ms"
    )
