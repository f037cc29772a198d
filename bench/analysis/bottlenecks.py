"""What bounds the decode steps of each cell: ``roofline``'s rules, with a 16-bit cell beside each
quantized one."""

from collections.abc import Sequence
from statistics import median

from bench.analysis import readings
from bench.analysis.comparison import identity_without
from bench.analysis.roofline import Bottleneck, bottleneck, is_quantized, read_step
from bench.record.result import Result


def bottlenecks(results: Sequence[Result]) -> dict[str, Bottleneck]:
    """By cell_id; cells without a number, or on a device without known peaks, are left out."""
    measured = [
        each
        for each in results
        if each.measurements and each.attestation is not None and each.peaks is not None
    ]
    plain: dict[tuple[str, str], float] = {
        (identity_without(each.cell, {"quant"}), each.cell.quant.dtype): _tpot_s(each)
        for each in measured
        if each.attestation is not None and not is_quantized(each.attestation)
    }
    found = {}
    for each in measured:
        assert each.attestation is not None
        assert each.peaks is not None
        context, _ = readings.contexts(each, each.measurements[0])
        other = {"fp16": "bf16", "bf16": "fp16"}.get(each.cell.quant.dtype, "bf16")
        elsewhere = identity_without(each.cell, {"quant"})
        peers = [plain.get((elsewhere, dtype)) for dtype in (each.cell.quant.dtype, other)]
        peer_s = next((seconds for seconds in peers if seconds is not None), None)
        reading = read_step(
            each.attestation,
            each.peaks,
            context,
            each.cell.batch,
            _tpot_s(each),
            peer_s,
            _enqueue_s(each),
        )
        found[each.cell_id] = bottleneck(reading)
    return found


def _enqueue_s(result: Result) -> float | None:
    read = [found for m in result.measurements if (found := readings.enqueue_s(m)) is not None]
    return median(read) if read else None


def _tpot_s(result: Result) -> float:
    return median(readings.process_times_s(result.measurements)["tpot_s"])
