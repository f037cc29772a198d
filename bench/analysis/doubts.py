"""What a reader should doubt of one cell's numbers, at its worst over the cell's processes.

A doubt is a sentence, which many cells may share, and how much of it there is in this one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.analysis.choices import flips_of, is_distinguishable
from bench.analysis.readings import disturbances, drift, has_drifted, outlying
from bench.config.prompt_file import label_of
from bench.record.measurement import Measurement
from bench.record.result import Result

Doubt = tuple[str, str]  # the sentence, and how much of it; "" where there is no more to say

_HELD_DOWN = 0.01  # of the timed requests' time: less is a moment
_GPU_ALIKE = 0.05  # clocks move in steps of 15 MHz
_GPU_STATES = {"sm_clock_hz": "the GPU's clock", "power_limit_w": "the GPU's power limit"}
_CLOCKS_AGREE = 0.01
_PROFILED_ALIKE = 1.5
_LIBRARY = {"answers_looping": "answers that end in a loop", "answers_empty": "empty answers"}


def doubts_about(
    results: Sequence[Result], values: Mapping[str, Mapping[str, float]], steady: float
) -> Iterator[dict[str, list[Doubt]]]:
    """Of cells with numbers, by cell_id; what others did to them first, since a person reads few.

    Args:
        values: derived, by cell_id.
        steady: what a drift is on this machine (``readings.steady_drift``).
    """
    measured = {result.cell_id: result for result in results if result.measurements}
    yield {cell: list(_of_machine(r, steady)) for cell, r in measured.items()}
    yield {cell: list(_of_record(r)) for cell, r in measured.items()}
    yield {cell: list(_of_requests(r)) for cell, r in measured.items()}
    yield {cell: list(_of_instruments(r, values[cell])) for cell, r in measured.items()}
    yield {cell: list(_of_attestation(r)) for cell, r in measured.items()}
    yield {cell: list(_of_quality(r, values[cell])) for cell, r in measured.items()}


def _of_requests(result: Result) -> Iterator[Doubt]:
    """At its worst over the processes, as all doubts."""
    measured, measure = result.measurements, result.cell.measure
    could_settle = measure.warmups >= 2 * measure.window
    if could_settle and not all(m.settled for m in measured):
        yield "the warm-ups never settled", ""
    if measure.target is not None and any(m.stopped != "target" for m in measured):
        yield (
            "stopped at its request or time limit before TTFT and TPOT were known to"
            f" +-{measure.target:.0%}",
            "",
        )
    outliers, of = max((len(outlying(m)), len(m.repeats)) for m in measured)
    if outliers:
        yield "requests that are outliers, kept", f"{outliers} of {of}"


def _of_machine(result: Result, steady: float) -> Iterator[Doubt]:
    worst = max(result.measurements, key=lambda m: abs(drift(m)))
    if has_drifted(worst, steady):
        yield (
            "the machine's speed changed during this cell, by its reference kernels",
            f"{drift(worst):+.0%}",
        )
    for text, share in disturbances(result.measurements):
        yield text, f"{share:.0%}"
    held = _held_down(result.measurements)
    if held:
        yield "the GPU's clocks were held down", ", ".join(held)
    for state in ("sm_clock_hz", "power_limit_w"):
        moved = max((abs(_moved(m, state)) for m in result.measurements), default=0.0)
        if moved > _GPU_ALIKE:
            yield f"{_GPU_STATES[state]} was another one after the timed requests", f"{moved:.0%}"


def _held_down(measured: Sequence[Measurement]) -> list[str]:
    """What kept the GPU's clocks down: for which share of the time, by the driver's counters; where
    it has none, what was seen in the requests that were watched."""
    shares: dict[str, float] = {}
    for m in measured:
        before, after = m.gpu_before, m.gpu_after
        if before is None or after is None:
            continue
        for limit in before.held_down_s.keys() & after.held_down_s.keys():
            share = (after.held_down_s[limit] - before.held_down_s[limit]) / m.interference.wall_s
            shares[limit] = max(share, shares.get(limit, 0.0))
    if shares:
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        return [f"{name} {min(share, 1.0):.0%}" for name, share in ordered if share > _HELD_DOWN]
    windows = [w for m in measured if m.energy for w in (m.energy.prefill, m.energy.request)]
    return sorted({reason for window in windows if window for reason in window.throttled or ()})


def _moved(m: Measurement, field: str) -> float:
    """By how much a state of the GPU differs after the timed requests; 0 where it is not known."""
    early, late = (getattr(state, field, None) for state in (m.gpu_before, m.gpu_after))
    return late / early - 1 if early and late else 0.0


def _of_record(result: Result) -> Iterator[Doubt]:
    if result.reused_from is not None:
        yield (
            "taken from an earlier sweep; the machine may have changed since",
            result.reused_from,
        )
    wanted, had = result.cell.measure.passes, len(result.measurements)
    if had < wanted and result.outcome.reason is None:
        yield "fewer processes than wanted", f"{had} of {wanted}"


def _of_instruments(result: Result, values: Mapping[str, float]) -> Iterator[Doubt]:
    mismatch = max(m.clock_mismatch or 0.0 for m in result.measurements)
    if mismatch > _CLOCKS_AGREE:
        yield "host and device clocks differ", f"{mismatch:.1%}"
    beyond = max((values.get(key, 0.0) for key in ("mbu", "mfu")), default=0.0)
    if beyond > 1 and result.peaks is not None and not result.peaks.measured:
        yield (
            "more than the data sheet allows: another device, or a wrong count",
            f"{beyond:.2f}",
        )
    reserved = max(m.run_memory.reserved_peak_bytes or 0 for m in result.measurements)
    has_bytes = result.host.device_memory_bytes
    if has_bytes is not None and reserved > has_bytes:
        yield (
            "more memory was reserved than the GPU has: the system lent its own (as Windows does"
            " under WSL), which is far slower",
            f"{reserved / has_bytes:.2f}",
        )
    if result.profile is not None and result.profile.slowdown > _PROFILED_ALIKE:
        slowdown = f"{result.profile.slowdown:.1f}x"
        yield "the profiler made its request slower, in host time above all", slowdown
    if result.cell.device == "cpu" and any(m.energy for m in result.measurements):
        yield "energy is of the whole CPU package: what others ran is in it too", ""


def _of_attestation(result: Result) -> Iterator[Doubt]:
    if result.attestation is None:
        return
    for remark in result.attestation.remarks:
        yield remark, ""
    if result.cell.decode.strategy == "loop":
        waits = (
            ("in prefill, which is part of TTFT", result.attestation.prefill_syncs),
            ("while decoding", result.attestation.decode_syncs),
        )
        for when, places in waits:
            if places:
                place, *others = places
                more = f" and {len(others)} other places" if others else ""
                yield (
                    f"operations waited for the device {when}: {place}{more}",
                    f"{sum(places.values())} times",
                )


def _of_quality(result: Result, values: Mapping[str, float]) -> Iterator[Doubt]:
    if result.answers is not None and result.answers.without is not None:
        yield f"no sample answers: {result.answers.without}", ""
    if result.answers is not None and result.answers.no_reference is not None:
        yield f"no divergence, nothing to compare with: {result.answers.no_reference}", ""
    divergence, path = result.divergence, result.cell.workload.path
    if divergence is not None and path is not None:
        texts = list(dict.fromkeys(window.text for window in divergence.windows))
        if label_of(path) not in texts:
            yield (
                f"divergence on {', '.join(texts)} alone: the prompts of {Path(path).name} do not"
                f" fill a window of {result.cell.quality.window_tokens} tokens",
                "",
            )
    if is_distinguishable(result) is False:
        nor = "" if flips_of(result) is None else ", and multiple choice shows no difference"
        yield (
            "not distinguishable from the reference: its divergence is no more than another batch"
            f" size makes{nor}",
            "",
        )
    for key, sentence in _LIBRARY.items():
        if values.get(key):
            yield sentence, f"{values[key]:.0f} of {len(result.samples)}"
