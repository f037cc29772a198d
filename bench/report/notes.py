"""What stands below the table: what the speedups mean, what to know before trusting a number, why a
cell has none."""

from collections.abc import Mapping, Sequence

from bench.analysis.comparison import coordinate
from bench.analysis.divergence import is_above_floor
from bench.analysis.metrics import derive
from bench.analysis.readings import disturbances, drift, outlying
from bench.analysis.verdict import Verdict
from bench.record.measurement import Measurement
from bench.record.result import Result

_CLOCKS_AGREE = 0.01
_STEADY = 0.10  # reference kernels move by some percent on a quiet machine
_PROFILED_ALIKE = 1.5


def notes(
    results: Sequence[Result],
    columns: Sequence[str],
    found: Mapping[str, Mapping[str, Verdict]],
    against: str,
) -> list[str]:
    """One sentence each."""
    said = [*_about_speedups(found, against)] if found else []
    about: dict[str, list[str]] = {}  # one sentence often holds for many cells
    for result in results:
        place = " ".join(f"{column}={coordinate(result.cell, column)}" for column in columns)
        for sentence, amount in (*_doubts(result), *_outcome(result)):
            about.setdefault(sentence, []).append(f"{place} ({amount})" if amount else place)
    references = {
        result.divergence.reference for result in results if result.divergence is not None
    }
    if len(references) > 1:
        said.append(
            f"divergence: not all from the same reference ({', '.join(sorted(references))}), so not"
            " comparable"
        )
    for sentence, places in about.items():
        everywhere = len(places) == len(results) > 1 and not places[0].endswith(")")
        said.append(f"{'every cell' if everywhere else '; '.join(places)}: {sentence}")
    return said


def _about_speedups(found: Mapping[str, Mapping[str, Verdict]], against: str) -> list[str]:
    words = {verdict.word for each in found.values() for verdict in each.values()}
    said = [f"speedup: how many times as fast as {against}"]
    if "uncalibrated" in words:
        said.append(
            "?: one process each, so no telling whether that is more than the noise between"
            " processes; measure=standard tells, or `python -m bench doctor --calibrate` once"
        )
    else:
        said[0] += "; intervals at 95 % for all comparisons together"
    return said


def _outcome(result: Result) -> list[tuple[str, str]]:
    if result.outcome.status != "ok":
        return [(f"{result.outcome.status}: {result.outcome.reason}", "")]
    return [(result.outcome.reason, "")] if result.outcome.reason is not None else []


def _doubts(result: Result) -> list[tuple[str, str]]:
    """What a reader should know before trusting a number, and how much of it; at its worst over the
    processes."""
    measured, target = result.measurements, result.cell.measure.target
    if not measured:
        return []
    doubts = []
    could_settle = result.cell.measure.warmups >= 2 * result.cell.measure.window
    if could_settle and not all(m.settled for m in measured):
        doubts.append(("the warm-ups never settled", ""))
    if target is not None and any(m.stopped != "target" for m in measured):
        doubts.append((f"its requests ended before they were known to within {target:.0%}", ""))
    odd = max(measured, key=lambda m: len(outlying(m)))
    if outlying(odd):
        doubts.append(
            ("requests that are outliers, kept", f"{len(outlying(odd))} of {len(odd.repeats)}")
        )
    moved = max((drift(m) for m in measured), key=abs)
    if abs(moved) > _STEADY:
        doubts.append(("the machine itself became slower or faster meanwhile", f"{moved:+.0%}"))
    doubts += [(text, f"{share:.0%}") for text, share in disturbances(measured)]
    if result.reused_from is not None:
        doubts.append(
            ("taken from an earlier sweep; the machine may have changed since", result.reused_from)
        )
    if len(measured) < result.cell.measure.passes and result.outcome.reason is None:
        doubts.append(
            ("fewer processes than wanted", f"{len(measured)} of {result.cell.measure.passes}")
        )
    mismatch = max(m.clock_mismatch or 0.0 for m in measured)
    if mismatch > _CLOCKS_AGREE:
        doubts.append(("host and device clocks differ", f"{mismatch:.1%}"))
    held = sorted({reason for m in measured for reason in _throttling(m)})
    if held:
        doubts.append(("the GPU's clocks were held down", ", ".join(held)))
    values = derive(result)
    beyond = max((values.get(key, 0.0) for key in ("mbu", "mfu")), default=0.0)
    if beyond > 1 and result.peaks is not None and not result.peaks.measured:
        doubts.append(
            ("more than the data sheet allows: another device, or a wrong count", f"{beyond:.2f}")
        )
    if result.profile is not None and result.profile.slowdown > _PROFILED_ALIKE:
        doubts.append(
            (
                "the profiler made its request slower, in host time above all",
                f"{result.profile.slowdown:.1f}x",
            )
        )
    if (
        result.divergence is not None
        and len(result.divergence.windows) > 1
        and not is_above_floor(result.divergence)
    ):
        doubts.append(
            ("its divergence cannot be told from what another batch size does to the reference", "")
        )
    for key, sentence in (
        ("answers_looping", "answers that end in a loop"),
        ("answers_empty", "empty answers"),
    ):
        if values.get(key):
            doubts.append((sentence, f"{values[key]:.0f} of {len(result.samples)}"))
    syncs = max(m.decode_syncs or 0 for m in measured)
    if syncs and result.cell.decode.loop == "loop":
        doubts.append(("operations waited for the device while decoding", str(syncs)))
    return doubts


def _throttling(m: Measurement) -> tuple[str, ...]:
    windows = () if m.energy is None else (m.energy.prefill, m.energy.request)
    return tuple(
        reason for window in windows if window is not None for reason in window.throttled or ()
    )
