"""Whether this tool measures truly on a machine: each function judges the readings of one check.

What is compared is independent of what is tested: another clock, a delay that was planted, a size
that was asked for, a data sheet, another kernel, arithmetic. The readings come from
``bench.meter.selftest``.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from bench.analysis.readings import fewest_requests, least_times_s
from bench.record.measurement import Memory, Telemetry
from bench.record.result import Outcome, Peaks, Result
from bench.record.selftest import Check

MIB = 2**20
_CLOCKS, _SLOWDOWN, _MEMORY, _ENERGY = 0.01, 0.10, 0.02, 0.10  # shares that may be missing
_SHEET = (0.70, 1.0)  # what a plain copy reaches of a data sheet's bandwidth
# Of a layer, those that are rounded between its norm and the residual stream: query, key, value,
# scores, their softmax, the weighted sum, its projection, the stream
_ROUNDED_TENSORS = 8
_EPS = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}

EXPECTED = {  # by the first word of a check's name
    "clocks": f"whole requests last as long by another clock, within {_CLOCKS:.0%}",
    "events": f"host and CUDA events agree on the decode steps, within {_CLOCKS:.0%}",
    "slowdown": f"a delay planted in each decode step is found as another clock sees it, within"
    f" {_SLOWDOWN:.0%}",
    "oom": "too large an allocation ends as oom, the next process is fine",
    "killed": "SIGKILL ends as failed and is named, the next process is fine",
    "memory": f"a known allocation is the peak's growth, within {_MEMORY:.0%}",
    "bandwidth": f"a copy reaches {_SHEET[0]:.0%} to {_SHEET[1]:.0%} of the data sheet",
    "attention": f"logits as eager's, within eps x layers x {_ROUNDED_TENSORS} of the largest",
    "quantization": "weights as predicted, to the byte",
    "energy": f"an idle window's energy is its mean power times its length, within {_ENERGY:.0%}",
    "grid": "every cell ok",
    "default": "every cell ok that can run",
}


def _check(name: str, holds: bool, found: str, **readings: Any) -> Check:
    verdict = "ok" if holds else "NOT OK"
    return Check(name, _expected(name), found, verdict, readings=readings)  # type: ignore[arg-type]


def _expected(name: str) -> str:
    return EXPECTED[name.partition(" ")[0]]


def not_run(name: str, reason: str) -> Check:
    """A check that this machine does not allow, or need."""
    return Check(name, _expected(name), reason, "not run")


def failed(name: str, outcome: Outcome) -> Check:
    """A check whose process ended without readings."""
    found = f"{outcome.status}: {outcome.reason}"
    return _check(name, False, found, traceback=outcome.traceback)


def clocks(e2e_s: Sequence[float], other_s: Sequence[float]) -> Check:
    """Whole requests by the engine's clock, and by the kernel's around them.

    The median over requests: whoever interrupts one between the two readings makes no clock wrong.
    """
    off = median(one / other - 1 for one, other in zip(e2e_s, other_s, strict=True))
    found = f"{off:+.2%}, median of {len(e2e_s)} requests of {median(other_s) * 1e3:.1f} ms"
    return _check("clocks", abs(off) <= _CLOCKS, found, e2e_s=[*e2e_s], other_s=[*other_s])


def events(mismatches: Sequence[float]) -> Check:
    """By how much host and device disagree on each request's decode steps."""
    off = median(mismatches)
    found = f"{off:.2%} apart, median of {len(mismatches)} requests"
    return _check("events", off <= _CLOCKS, found, mismatches=[*mismatches])


def slowdown(steps_s: Mapping[str, Sequence[Sequence[float]]], wait_s: float) -> Check:
    """Decode steps of requests without a delay and with one of ``wait_s`` in each (``plain``,
    ``slowed``), and the same by the kernel's clock (``plain_other``, ``slowed_other``).

    Of each position the least time counts, since others only ever add to it. A delay costs more
    than itself, probably since caches are colder after it: steps of 1.2 ms took 0.1 to 0.3 ms more
    besides with 2 ms, and 1.0 ms more with 16 ms (2 vCPUs of an EPYC that others used too, one
    thread, torch 2.13.0, 2026-11-26). So what is found must be what the other clock saw, and that
    no less than the delay.
    """
    least_s = {
        name: fmean(map(min, zip(*requests, strict=True))) for name, requests in steps_s.items()
    }
    gained_s = least_s["slowed"] - least_s["plain"]
    seen_s = least_s["slowed_other"] - least_s["plain_other"]
    is_planted = seen_s >= (1 - _SLOWDOWN) * wait_s
    return _check(
        "slowdown",
        is_planted and abs(gained_s - seen_s) <= _SLOWDOWN * wait_s,
        f"{gained_s * 1e3:.3f} ms on {least_s['plain'] * 1e3:.3f} ms, by the other clock"
        f" {seen_s * 1e3:.3f} ms, planted {wait_s * 1e3:.3f} ms ({gained_s / wait_s - 1:+.1%})",
        wait_s=wait_s,
        **{name: [list(request) for request in requests] for name, requests in steps_s.items()},
    )


def ending(name: str, status: str, phrase: str, ended: Outcome, after: Outcome) -> Check:
    """How a process ended that was to end with ``status`` and a reason that has ``phrase``, and
    what became of the one after it."""
    is_told = ended.status == status and phrase in str(ended.reason)
    told = ended.status if ended.reason is None else f"{ended.status}: {ended.reason}"
    next_one = "fine" if after.status == "ok" else f"{after.status}: {after.reason}"
    found = f"{told}; the next: {next_one}"
    return _check(name, is_told and after.status == "ok", found, traceback=ended.traceback)


def memory(given_bytes: int, before_bytes: int | None, peak: Memory) -> Check:
    """An allocation that has been given back, in the peak of the resident set."""
    if before_bytes is None or peak.rss_peak_bytes is None:
        return not_run("memory", "this system does not tell a phase's peak of the resident set")
    grown = peak.rss_peak_bytes - before_bytes
    found = f"{grown / MIB:.2f} of {given_bytes / MIB:.0f} MiB in the resident set"
    readings = {"before_bytes": before_bytes, "peak": dataclasses.asdict(peak)}
    return _check("memory", abs(grown / given_bytes - 1) <= _MEMORY, found, **readings)


def device_memory(given_bytes: int, before_bytes: int, peak: Memory) -> Check:
    """The same on a GPU: exact by its allocator, which may leave a rest of less than 1 MiB in a
    block; and NVML sees no less."""
    grown = (peak.allocated_peak_bytes or 0) - before_bytes
    seen = peak.device_used_bytes
    by_nvml = "NVML tells nothing" if seen is None else f"NVML {seen / MIB:.0f} MiB in use"
    is_exact = given_bytes <= grown < given_bytes + MIB
    is_seen = seen is None or seen >= (peak.allocated_peak_bytes or 0)
    found = f"{grown / MIB:.2f} of {given_bytes / MIB:.0f} MiB in the allocator, {by_nvml}"
    readings = {"before_bytes": before_bytes, "peak": dataclasses.asdict(peak)}
    return _check("memory", is_exact and is_seen, found, **readings)


def bandwidth(copies_bytes_s: Sequence[float], peaks: Peaks) -> Check:
    """The best copy, read and write counted, against the data sheet."""
    best, sheet = max(copies_bytes_s), peaks.read_bytes_s
    found = f"{best / 1e9:,.0f} of {sheet / 1e9:,.0f} GB/s ({best / sheet:.0%})"
    readings = {"copies_bytes_s": [*copies_bytes_s], "sheet_bytes_s": sheet}
    return _check("bandwidth", _SHEET[0] <= best / sheet <= _SHEET[1], found, **readings)


def attention(
    name: str,
    dtype: str,
    layers: int,
    largest: float,
    difference: float,
    mismatches: Sequence[str] = (),
) -> Check:
    """The largest difference of logits from eager's, beside the largest logit.

    Two kernels for one formula differ by roundings: each of the tensors that a layer rounds may be
    off by eps of its dtype, and layers add up. A mask or a scale that is wrong is off by more: at
    two layers of fp16 without the causal mask by 500 eps, where kernels are within 1.
    """
    bound = _EPS[dtype] * layers * _ROUNDED_TENSORS * largest
    numbers = {"largest": largest, "difference": difference, "bound": bound}
    if not math.isfinite(difference):
        return _check(f"attention {name}", False, f"logits in {dtype} that are not finite")
    found = f"{difference:.1e} apart in {dtype}, bound {bound:.1e}"
    found = "; ".join((found, *mismatches))
    holds = difference <= bound and not mismatches
    return _check(f"attention {name}", holds, found, dtype=dtype, layers=layers, **numbers)


def weights(
    name: str,
    predicted_bytes: int | None,
    counted_bytes: int,
    mismatches: Sequence[str] = (),
) -> Check:
    """Bytes that the footprint predicts, and those that the attestation counts."""
    if predicted_bytes is None:
        return not_run(f"quantization {name}", "the engine does not describe its models")
    found = "; ".join((f"{counted_bytes:,} of {predicted_bytes:,} bytes", *mismatches))
    holds = counted_bytes == predicted_bytes and not mismatches
    readings = {"predicted_bytes": predicted_bytes, "counted_bytes": counted_bytes}
    return _check(f"quantization {name}", holds, found, **readings)


def energy(window: Telemetry | None) -> Check:
    """The driver's energy counter over an idle window against the power that it shows in it."""
    if window is None or window.energy_j is None or not window.power_w_mean:
        return not_run("energy", "NVML tells no energy or no power of this device")
    by_counter_w = window.energy_j / window.window_s
    off = by_counter_w / window.power_w_mean - 1
    found = f"{by_counter_w:.1f} W by energy, {window.power_w_mean:.1f} W by power ({off:+.1%})"
    return _check("energy", abs(off) <= _ENERGY, found, window=dataclasses.asdict(window))


def grid(results: Sequence[Result]) -> Check:
    """The outcomes of a sweep's cells."""
    return _check("grid", _all_ok(results), _outcomes(results))


def default_model(results: Sequence[Result]) -> Check:
    """The outcomes of cells of the default model, and how their decode steps compare with those of
    the first one. What this machine lacks something for is named, and is no fault."""
    found = _outcomes(results)
    ran = [result for result in results if result.outcome.status != "skipped"]
    if not ran:
        return not_run("default model", found)
    if not _all_ok(ran):
        return _check("default model", False, found)
    requests = fewest_requests(ran)
    steps_s = {
        result.cell.quant.name: least_times_s(result.measurements, requests)["tpot_s"][0]
        for result in ran
    }
    times = ", ".join(f"{name} {step_s * 1e3:.2f} ms" for name, step_s in steps_s.items())
    (first, first_s), *others = steps_s.items()
    found += f"; a token in {times}"
    if others:
        ratios = ", ".join(f"{other} {first_s / other_s:.2f}x" for other, other_s in others)
        found += f"; as fast as {first}: {ratios}"
    return _check("default model", True, found, tpot_s=steps_s)


def _all_ok(results: Sequence[Result]) -> bool:
    return bool(results) and all(result.outcome.status == "ok" for result in results)


def _outcomes(results: Sequence[Result]) -> str:
    bad: Mapping[str, Outcome] = {
        result.cell.label: result.outcome for result in results if result.outcome.status != "ok"
    }
    reasons = [f"{label} {outcome.status}: {outcome.reason}" for label, outcome in bad.items()]
    return "; ".join((f"{len(results) - len(bad)} of {len(results)} cells ok", *reasons))
