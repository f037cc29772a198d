"""One process more for a cell: run it, and add what came out to the cell's record.

A record begins without passes and grows by one with each process. Whatever ends the process is the
cell's outcome; a cell that fails in one of its processes has no number, and what the others read is
kept in its record.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config.cell import Cell, cell_id
from bench.driver import process as isolate
from bench.driver.resume import resume_key
from bench.errors import CellFailure, Interrupted
from bench.record.afterwards import Afterwards
from bench.record.result import SCHEMA, Findings, Host, Outcome, Pass, Result


def begin(cell: Cell, host: Host, sweep_id: str, outcome: Outcome | None = None) -> Result:
    """The record of a cell of which nothing has run yet, or nothing will because of ``outcome``."""
    return Result(
        schema=SCHEMA,
        cell_id=cell_id(cell),
        resume_key=resume_key(cell, host),
        sweep_id=sweep_id,
        cell=cell,
        host=host,
        outcome=outcome or Outcome("ok"),
        started_at=time.time(),
    )


def run_pass(
    record: Result, afterwards: Afterwards, log: Path, show: Callable[[str, str], None]
) -> tuple[Result, bool]:
    """The record with one pass more, and whether the user has interrupted it.

    Args:
        log: gets the process's output.
        show: is told the phase and its detail, in moments in which nothing is timed.
    """
    cell, started_at = record.cell, time.time()
    marks: list[tuple[str, float]] = []

    def on_phase(phase: str, detail: str) -> None:
        if not marks or marks[-1][0] != phase:
            marks.append((phase, time.monotonic()))
        show(phase, detail)

    record = record if record.passes else replace(record, started_at=started_at)
    outcome, interrupted = record.outcome, False
    findings: Findings | None = None
    try:
        findings = isolate.run_isolated(
            measure, (cell, afterwards), cell.measure.limits_s, on_phase, log
        )
    except CellFailure as failure:
        trace = "\n".join(getattr(failure, "__notes__", [])) or None
        findings = failure.kept
        if findings is not None and findings.measurement is not None:
            reason = f"ended after its last timed request: {failure.status}: {failure.reason}"
            outcome = Outcome("ok", reason, trace)
        else:
            outcome = Outcome(failure.status, failure.reason, trace)
    except Interrupted as stop:
        interrupted, findings = True, stop.kept
        if findings is None or findings.measurement is None:
            outcome = _ended_by_the_user(record)
    ended = Pass(
        started_at=started_at,
        wall_s=time.time() - started_at,
        phases_s=_durations(marks, time.monotonic()),
        measurement=None if findings is None else findings.measurement,
    )
    grown = replace(record, outcome=outcome, passes=(*record.passes, ended))
    if findings is not None:
        grown = replace(
            grown,
            revision=findings.revision,
            attestation=record.attestation or findings.attestation,
            samples=findings.samples or record.samples,
            tasks=findings.tasks or record.tasks,
            divergence=findings.divergence or record.divergence,
            profile=record.profile or findings.profile,
        )
    return grown, interrupted


def measure(announce: isolate.Announce, cell: Cell, afterwards: Afterwards) -> Any:
    """The task of the measured process."""
    from bench.meter.cell import run_cell  # imports torch: not in this process

    return run_cell(announce, cell, afterwards)


def _ended_by_the_user(record: Result) -> Outcome:
    if not record.passes:
        return Outcome("killed", "ended by the user")
    return Outcome(
        "ok", f"{len(record.passes)} of {record.cell.measure.passes} processes: ended by the user"
    )


def _durations(marks: Sequence[tuple[str, float]], end: float) -> dict[str, float]:
    return {
        phase: after - at for (phase, at), (_, after) in itertools.pairwise([*marks, ("", end)])
    }
