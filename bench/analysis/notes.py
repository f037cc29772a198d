"""What a reader should know before trusting the numbers of a sweep, and why a cell has none.

A finding is one sentence and the cells that it holds for. The kinds come in the order of what
matters most: how cells ended, what the speedups mean, doubts about a number.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.analysis.columns import BaselineAxes, identity_without
from bench.analysis.divergence import is_above_floor
from bench.analysis.readings import disturbances, drift, has_drifted, outlying, steady_drift
from bench.analysis.verdict import Change
from bench.config.prompt_file import label_of
from bench.record.measurement import Measurement
from bench.record.result import Result

Kind = Literal["outcome", "speedup", "doubt"]
Doubt = tuple[str, str]  # the sentence, and how much of it; "" where there is no more to say

_HELD_DOWN = 0.01  # of the timed requests' time: less is a moment
_GPU_ALIKE = 0.05  # clocks move in steps of 15 MHz
_GPU_STATES = {"sm_clock_hz": "the GPU's clock", "power_limit_w": "the GPU's power limit"}
_CLOCKS_AGREE = 0.01
_PROFILED_ALIKE = 1.5
_OPPOSITE = 0.03  # of logarithms: what is nearer to equal has no direction
_LIBRARY = {"answers_looping": "answers that end in a loop", "answers_empty": "empty answers"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about some cells; ``cells`` is empty where it is about the whole sweep."""

    kind: Kind
    sentence: str
    cells: tuple[tuple[str, str], ...] = ()  # cell_id, and how much of it


def findings(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    speedups: Mapping[str, Mapping[str, Change]],
    against: BaselineAxes | None,
) -> list[Finding]:
    """Outcomes first, then what speedups mean, then doubts. ``values``: derived, by cell_id."""
    outcomes = {r.cell_id: _outcome(r) for r in results}
    steady = steady_drift([m for r in results for m in r.measurements])
    doubts = {r.cell_id: list(_doubts(r, values[r.cell_id], steady)) for r in results}
    return [
        *_shared("outcome", outcomes),
        *_about_prompts(results),
        *(_about_speedups(speedups, against) if speedups else ()),
        *_shared("speedup", _contradicted(speedups)),
        *_without_effect(results),
        *_about_references(results),
        *_shared("doubt", doubts),
    ]


def _shared(kind: Kind, doubts: Mapping[str, Sequence[Doubt]]) -> list[Finding]:
    """One sentence often holds for many cells."""
    cells: dict[str, list[tuple[str, str]]] = {}
    for cell_id, of_cell in doubts.items():
        for sentence, amount in of_cell:
            cells.setdefault(sentence, []).append((cell_id, amount))
    return [Finding(kind, sentence, tuple(where)) for sentence, where in cells.items()]


def _about_speedups(
    speedups: Mapping[str, Mapping[str, Change]], against: BaselineAxes | None
) -> Iterator[Finding]:
    words = {change.word for of_metric in speedups.values() for change in of_metric.values()}
    text = f"speedup: how many times as fast as {against}, by minimum times"
    if "uncalibrated" not in words:
        yield Finding("speedup", f"{text}; intervals at 95 % for all comparisons together")
        return
    yield Finding("speedup", text)
    yield Finding(
        "speedup",
        "?: one process per cell, so the noise between processes is unknown; use measure=standard,"
        " or run `python -m bench doctor --calibrate` once",
    )


def _about_prompts(results: Sequence[Result]) -> Iterator[Finding]:
    """What became of the prompts of files: a batch has one shape."""
    buckets: dict[str, None] = {}
    for result in results:
        for m in result.measurements[:1]:
            if m.given_tokens is not None:
                lengths = dict.fromkeys((min(m.given_tokens), max(m.given_tokens)))
                buckets[
                    f"{result.cell.workload.name} has {len(m.given_tokens)} of"
                    f" {' to '.join(map(str, lengths))} tokens, timed at {m.prompt_tokens}"
                ] = None
    if buckets:
        yield Finding(
            "doubt",
            f"prompts: {'; '.join(buckets)}. A batch takes the first ones of its bucket; where it"
            " has more rows, it takes them again from another token on",
        )


def _contradicted(
    speedups: Mapping[str, Mapping[str, Change]],
) -> dict[str, list[Doubt]]:
    """By cell_id, where medians and minimum times do not agree which cell is faster."""
    doubts: dict[str, list[Doubt]] = {}
    for metric, changes in speedups.items():
        for cell_id, change in changes.items():
            medians = change.medians_ratio
            if medians is None or (change.ratio - 1) * (medians - 1) >= 0:
                continue
            if max(abs(math.log(change.ratio)), abs(math.log(medians))) > _OPPOSITE:
                name = "prefill" if metric == "ttft_s" else "decode"
                text = f"by medians, which load of others moves, {name} says the opposite"
                doubts.setdefault(cell_id, []).append((text, f"{medians:.2f}x"))
    return doubts


def _without_effect(results: Sequence[Result]) -> Iterator[Finding]:
    """Two cells that differ in one setting and gave the same logits to the last bit: one of the
    two settings was not in force."""
    for axis in ("quant", "attn"):
        alike: dict[tuple[str, str], dict[str, Result]] = {}
        for result in results:
            digest = None if result.attestation is None else result.attestation.logits_digest
            if digest is not None and result.measurements:
                place = identity_without(result.cell, {axis})
                named = alike.setdefault((place, digest), {})
                named.setdefault(getattr(result.cell, axis).name, result)
        for of_place in alike.values():
            for (one, first), (other, second) in itertools.combinations(of_place.items(), 2):
                if not _are_one(first, second):
                    yield Finding(
                        "doubt",
                        f"{axis}={one} and {axis}={other} computed the same to the last bit: one of"
                        " them was not in force",
                        ((first.cell_id, ""), (second.cell_id, "")),
                    )


def _are_one(first: Result, second: Result) -> bool:
    """Whether two settings may well be the same: sdpa left to itself takes one of its backends, and
    int8 with a threshold that nothing passes is int8 without one."""
    kernels = {first.cell.attn.implementation, second.cell.attn.implementation}
    backends = {first.cell.attn.backend, second.cell.attn.backend}
    if len(backends) > 1:
        return kernels == {"sdpa"} and None in backends
    if first.cell.attn != second.cell.attn:
        return False
    schemes = {first.cell.quant.scheme, second.cell.quant.scheme}
    shares = [r.attestation.outlier_share or 0.0 for r in (first, second) if r.attestation]
    return schemes == {"bnb_int8"} and not any(shares)


def _about_references(results: Sequence[Result]) -> Iterator[Finding]:
    names = {r.divergence.reference for r in results if r.divergence is not None}
    if len(names) > 1:
        yield Finding(
            "doubt",
            f"divergence: the references differ ({', '.join(sorted(names))}), so it cannot be"
            " compared",
        )
    for name in sorted(names - {"fp32"}):
        yield Finding(
            "doubt",
            f"divergence is from the model in {name}, since fp32 did not fit: the reference is"
            " rounded too, and what is more precise than it looks worse",
        )


def _outcome(result: Result) -> list[Doubt]:
    status, reason = result.outcome.status, result.outcome.reason
    if status != "ok":
        return [(f"{status}: {reason}", "")]
    return [] if reason is None else [(reason, "")]


def _doubts(result: Result, values: Mapping[str, float], steady: float) -> Iterator[Doubt]:
    if not result.measurements:
        return
    yield from _of_requests(result)
    yield from _of_machine(result, steady)
    yield from _of_record(result)
    yield from _of_instruments(result, values)
    yield from _of_quality(result, values)


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
    if result.profile is not None and result.profile.slowdown > _PROFILED_ALIKE:
        slowdown = f"{result.profile.slowdown:.1f}x"
        yield "the profiler made its request slower, in host time above all", slowdown
    if result.cell.device == "cpu" and any(m.energy for m in result.measurements):
        yield "energy is of the whole CPU package: what others ran is in it too", ""
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
    if divergence is not None and len(divergence.windows) > 1 and not is_above_floor(divergence):
        yield (
            "its divergence cannot be told from what another batch size does to the reference",
            "",
        )
    for key, sentence in _LIBRARY.items():
        if values.get(key):
            yield sentence, f"{values[key]:.0f} of {len(result.samples)}"
