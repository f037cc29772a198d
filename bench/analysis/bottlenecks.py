"""What bounds a decode step: measured times beside the floor of ``cost``, and a table of rules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.analysis import cost, readings
from bench.analysis.columns import identity_without
from bench.record.result import Attestation, Peaks, Result

Cause = Literal["bandwidth", "compute", "host overhead", "dequantization", "unclear"]


@dataclass(frozen=True, slots=True)
class StepReading:
    """The decode step of one cell. Units: seconds, bytes, operations, and those per second."""

    step_s: float  # the TPOT
    step_bytes: float
    step_flops: float
    read_bytes_s: float  # peaks
    peak_flops: float | None
    # The same step with 16-bit weights; None for a cell that has those
    unquantized_bytes: float | None = None
    # The TPOT of such a cell, alike in all else; None where there is none
    unquantized_step_s: float | None = None
    # What the host needs to enqueue a step on CUDA, read of a step that finds the launch queue
    # empty: a host that waits for room in the queue looks as slow as the device
    host_s: float | None = None

    def beyond_floor_s(self, step_s: float, step_bytes: float) -> float:
        """The part of a time that reading and computing do not explain."""
        floor_s = cost.floor_s(step_bytes, self.step_flops, self.read_bytes_s, self.peak_flops)
        return step_s - floor_s


def read_step(
    model: Attestation,
    peaks: Peaks,
    context_tokens: float,
    batch: int,
    step_s: float,
    unquantized_step_s: float | None = None,
    host_s: float | None = None,
) -> StepReading:
    """The reading of a cell with this attestation, at its mean context."""
    unquantized_bytes = None
    if model.is_quantized:
        head = model.shape.hidden * model.shape.vocabulary
        kv_bytes = cost.kv_bytes(model, context_tokens, batch)
        unquantized_bytes = 2 * (model.matmul_weights + head) + kv_bytes
    return StepReading(
        step_s=step_s,
        step_bytes=cost.step_bytes(model, context_tokens, batch),
        step_flops=cost.step_flops(model, context_tokens, batch),
        read_bytes_s=peaks.read_bytes_s,
        peak_flops=peaks.flops.get(model.executed_dtype),
        unquantized_bytes=unquantized_bytes,
        unquantized_step_s=unquantized_step_s if model.is_quantized else None,
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
    own = r.beyond_floor_s(r.step_s, r.step_bytes)
    return (own - r.beyond_floor_s(r.unquantized_step_s, r.unquantized_bytes)) / r.step_s


def left_over_share(r: StepReading) -> float | None:
    """What the floor of a 16-bit cell would leave of this step, as a share; only where no such cell
    was measured."""
    if r.unquantized_bytes is None or r.unquantized_step_s is not None:
        return None
    return r.beyond_floor_s(r.step_s, r.unquantized_bytes) / r.step_s


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: the cause is named when ``value`` reaches ``threshold``."""

    cause: Cause
    quantity: str  # what value is, for people
    threshold: float  # a judgement, with its reason beside it
    value: Callable[[StepReading], float | None]


# fmt: off
RULES: tuple[Rule, ...] = (
    # Memory reads take at least 60 % of the step
    Rule("bandwidth", "share of the read bandwidth in use", 0.6, bandwidth_share),
    # Matrix products take at least 60 % of the step
    Rule("compute", "share of the rate of matrix products in use", 0.6, compute_share),
    # The device waits for the host: kernels that take no time would make the step 1.25 times as
    # fast at most
    Rule("host overhead", "time to enqueue a step as a share of it", 0.8, host_share),
    # About a third of three parts: the floor, what a 16-bit cell spends too, and this
    Rule("dequantization", "share of the step that the 16-bit cell does not spend, reading apart",
         0.3, added_share),
    # No 16-bit cell to compare with; one that is bound by bandwidth (0.6) would be no slower
    Rule("dequantization", "share of the step left over after reading 16-bit weights at full speed",
         0.4, left_over_share),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What bounds a decode step, and the numbers that say so."""

    name: Cause
    evidence: str


def bottleneck(reading: StepReading) -> Bottleneck:
    """The cause of the first of ``RULES`` that holds, ``unclear`` when none does.

    Dequantization stands for all
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
    least = cost.floor_s(r.step_bytes, r.step_flops, r.read_bytes_s, r.peak_flops)
    text = (
        f"a step takes {r.step_s * 1e3:.3g} ms, at least {least * 1e3:.3g} ms; "
        f"it reads {r.step_bytes / 1e9:.3g} GB at a peak of {r.read_bytes_s / 1e9:.4g} GB/s"
    )
    return (
        text
        if r.unquantized_step_s is None
        else f"{text}; with 16-bit weights it takes {r.unquantized_step_s * 1e3:.3g} ms"
    )


def bottlenecks(results: Sequence[Result]) -> dict[str, Bottleneck]:
    """By cell_id; cells without a number, or on a device without known peaks, are left out.

    A quantized cell is read beside the 16-bit one that is equal to it in all else.
    """
    measured = [
        (result, result.attestation, result.peaks)
        for result in results
        if result.measurements and result.attestation is not None and result.peaks is not None
    ]
    plain_s: dict[tuple[str, str], float] = {
        (identity_without(result.cell, {"quant"}), result.cell.quant.dtype): _tpot_s(result)
        for result, attestation, _ in measured
        if not attestation.is_quantized
    }
    causes = {}
    for result, attestation, peaks in measured:
        context, _ = readings.contexts(result, result.measurements[0])
        dtype = result.cell.quant.dtype
        other = {"fp16": "bf16", "bf16": "fp16"}.get(dtype, "bf16")
        elsewhere = identity_without(result.cell, {"quant"})
        peers_s = [plain_s.get((elsewhere, name)) for name in (dtype, other)]
        peer_s = next((seconds for seconds in peers_s if seconds is not None), None)
        host_s = _enqueue_s(result, attestation)
        step = read_step(
            attestation, peaks, context, result.cell.rows, _tpot_s(result), peer_s, host_s
        )
        causes[result.cell_id] = bottleneck(step)
    return causes


def _enqueue_s(result: Result, attestation: Attestation) -> float | None:
    seconds = [readings.enqueue_s(m, attestation) for m in result.measurements]
    return median(s for s in seconds if s is not None) if None not in seconds else None


def _tpot_s(result: Result) -> float:
    return median(readings.process_times_s(result.measurements)["tpot_s"])
