"""Why the numbers of a sweep may not hold elsewhere or tomorrow, from what was recorded of it.

The findings (``notes``) are about single cells and their readings. Here is what limits a whole
sweep: how often it was measured, on what machine and text, with which code, and what its scope
leaves out.
"""

from collections.abc import Iterator, Sequence

from bench.analysis.readings import disturbances, has_drifted, steady_drift
from bench.analysis.two_sweeps import nodes
from bench.record.result import Result
from bench.record.sweep import Sweep


def threats(results: Sequence[Result], sweep: Sweep) -> list[str]:
    """A sentence each, what matters most first; nothing where no cell has a number."""
    measured = [result for result in results if result.measurements]
    if not measured:
        return []
    return [
        *_of_replication(measured, sweep),
        *_of_machine(measured),
        *_of_quality(measured),
        *_of_code(measured, sweep),
        "Scope: one fixed batch at a time, without queue and arrivals: this TTFT is no server's.",
    ]


def _of_replication(measured: Sequence[Result], sweep: Sweep) -> Iterator[str]:
    fewest = min(len(result.measurements) for result in measured)
    if fewest > 1:
        yield (
            f"Replication: at least {fewest} processes a cell, on"
            f" {'nodes of one kind' if nodes(measured) else 'one machine'}, within"
            f" {_span_h(measured):.1f} h. Another day or machine may differ by more."
        )
    elif sweep.calibration:
        yield (
            "Replication: one process a cell. The noise between processes is the host's, found"
            " earlier by `doctor --calibrate`."
        )
    else:
        yield (
            "Replication: one process a cell, and the noise between processes is unknown. No"
            " difference is established; measure=standard establishes some."
        )
    reused = sum(result.reused_from is not None for result in measured)
    if reused:
        yield f"Time: {reused} of {len(measured)} cells come from earlier sweeps."


def _span_h(measured: Sequence[Result]) -> float:
    begun, ended = min(r.started_at for r in measured), max(r.ended_at for r in measured)
    return (ended - begun) / 3600


def _of_machine(measured: Sequence[Result]) -> Iterator[str]:
    if (count := len(nodes(measured))) > 1:
        yield (
            f"Nodes: processes ran on {count} nodes. Verdicts are of cells that shared a node in"
            " each pass; other cells need not have."
        )
    disturbed = sum(bool(disturbances(result.measurements)) for result in measured)
    if disturbed:
        yield f"Interference: others used the CPUs during {disturbed} of {len(measured)} cells."
    steady = steady_drift([m for result in measured for m in result.measurements])
    moved = sum(any(has_drifted(m, steady) for m in r.measurements) for r in measured)
    if moved:
        yield (
            f"Drift: the reference kernels moved by over {steady:.0%} during {moved} of"
            f" {len(measured)} cells."
        )
    if all(result.cell.device == "cpu" for result in measured):
        yield "Clocks: nothing held the CPU's clock frequency, and it was not recorded."
    peaks = next((r.peaks for r in measured if r.peaks is not None), None)
    if peaks is not None and peaks.measured:
        yield (
            "Roofline: the peaks are what simple kernels reach on this machine. A better kernel"
            " may reach more."
        )


def _of_quality(measured: Sequence[Result]) -> Iterator[str]:
    found = [result.divergence for result in measured if result.divergence is not None]
    if found:
        texts = sorted({window.text for divergence in found for window in divergence.windows})
        tokens = min(sum(window.tokens for window in d.windows) for d in found)
        yield (
            f"Quality: divergence on {tokens:,} tokens of {', '.join(texts)}. Other text, above"
            " all in other languages, may diverge more."
        )
    elif any(result.cell.model.weights == "random" for result in measured):
        yield "Quality: the weights are random, so only speed and memory mean something."
    else:
        yield "Quality: nothing was asked, so a fast cell may answer badly."


def _of_code(measured: Sequence[Result], sweep: Sweep) -> Iterator[str]:
    code = sweep.provenance
    if code.changed:
        yield f"Code: {len(code.changed)} files differed from commit {str(code.commit)[:12]}."
    if code.lock is None:
        yield "Packages: not those of requirements.lock, so kernels may be others."
    versions = {tuple(sorted(result.host.versions.items())) for result in measured}
    if len(versions) > 1:
        yield "Packages: not all cells ran with the same versions."
