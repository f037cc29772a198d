"""From a job to a process, and from what came out of it to the records.

A ``Worker`` runs a task somewhere and gives back its value: here in a fresh process
(``process.run_isolated``), later on another machine. A record begins without replicates and grows
by one with each timed process. Whatever ends the process is the cell's outcome; a cell that fails
in one of its processes has no number, and what the others read is kept in its record. A job that
only asks (quality, profile) can fail without costing the cell its number.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config.cell import Cell, cell_id, sample_key
from bench.driver.policy import Job, Records, sixteen_bits, unquantized
from bench.driver.process import OnPhase, Task
from bench.driver.resume import resume_key
from bench.engine.protocol import ENGINES
from bench.errors import CellFailure
from bench.record.result import (
    SCHEMA,
    Answers,
    Findings,
    Host,
    Origin,
    Outcome,
    Replicate,
    Result,
)
from bench.report.terminal import say
from bench.store.files import TRACE

_TOO_MANY = ("oom", "timeout")  # how a try ends whose batch is too large

Worker = Callable[[Task, OnPhase, Path], Any]


def begin(
    asked: Cell, cell: Cell, host: Host, sweep_id: str = "", outcome: Outcome | None = None
) -> Result:
    """The record of a cell of which nothing has run yet, or nothing will because of ``outcome``."""
    return Result(
        schema=SCHEMA,
        cell_id=cell_id(asked),
        resume_key=resume_key(asked, host),
        sweep_id=sweep_id,
        asked=asked,
        cell=cell,
        host=host,
        outcome=outcome or Outcome("ok"),
        started_at=time.time(),
    )


def task_of(job: Job, host: Host, folder: Path) -> Task:
    """The process of a job; ``folder`` is the cell's."""
    cell = job.cell
    place = ENGINES[cell.engine.name]
    floor = unquantized(cell, sixteen_bits(cell, host)).quant
    kinds: dict[str, tuple[str, tuple[Any, ...]]] = {
        "time": ("bench.meter.cell:measure_cell", ()),
        "try": ("bench.meter.cell:try_cell", ()),
        "profile": ("bench.meter.cell:profile_cell", (str(folder / TRACE),)),
        "quality": ("bench.meter.answers:answer_cell", (job.reference,)),
        "reference": ("bench.meter.reference:keep_reference", (floor, job.reference)),
    }
    task, more = kinds[job.kind]
    return Task(task, (place, cell, *more), cell.measure.limits_s, cell.engine.python)


class PhaseTimes:
    """How long each phase of a process took, by its announcements."""

    def __init__(self, show: OnPhase) -> None:
        self.started_at = time.time()
        self._began = time.monotonic()  # the clock of the day may be set meanwhile
        self._show = show
        self._marks: list[tuple[str, float]] = []

    def on_phase(self, phase: str, detail: str) -> None:
        """Called by the worker at each announcement."""
        if not self._marks or self._marks[-1][0] != phase:
            self._marks.append((phase, time.monotonic()))
        self._show(phase, detail)

    def until_now(self) -> "Timing":
        """What a process took that has just ended."""
        marks = [*self._marks, ("", time.monotonic())]
        phases = {phase: end - at for (phase, at), (_, end) in itertools.pairwise(marks)}
        return Timing(self.started_at, time.monotonic() - self._began, phases)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a process began, and how long it and each of its phases took."""

    started_at: float  # seconds since 1970
    wall_s: float
    phases_s: Mapping[str, float]
    origin: Origin | None = None


def take(records: Records, job: Job, value: Any, timing: Timing) -> list[str]:
    """Write what came out of a job into the records.

    Args:
        value: what the task returned, or the CellFailure or KeyboardInterrupt that ended it.
    Returns:
        the cell_ids of the results that are others now.
    """
    result = records.results[job.cell_id]
    if job.kind == "time":
        records.results[job.cell_id] = grown(result, value, timing)
        _share_answers(records, sample_key(job.cell))
        return [job.cell_id]
    if isinstance(value, KeyboardInterrupt):
        return []
    if job.kind == "try":
        what, size = _tried(result.cell, job.cell)
        if isinstance(value, CellFailure) and value.status not in _TOO_MANY:
            outcome = outcome_of(value)
            reason = f"a try of {what} {size}: {outcome.reason}"
            records.results[job.cell_id] = replace(result, outcome=replace(outcome, reason=reason))
            return [job.cell_id]
        records.fits[job.cell_id, size] = not isinstance(value, CellFailure)
        return []
    if job.kind == "profile":
        profile = None if isinstance(value, CellFailure) else value
        _say_failure("profile", job, value)
        if value is None:
            say(f"{job.cell.label}: engine={job.cell.engine.name} shows no profile")
        records.results[job.cell_id] = replace(result, profile=profile)
        return [job.cell_id]
    if job.kind == "reference":
        if isinstance(value, CellFailure):
            records.no_reference[str(job.reference)] = outcome_of(value)
            _say_failure("no reference, so no divergence", job, value)
        return []
    answers = Answers(outcome_of(value)) if isinstance(value, CellFailure) else value
    answers = replace(answers, no_reference=job.no_reference)
    key = sample_key(result.cell)
    records.answers[key] = answers
    return _share_answers(records, key)


def _tried(asked: Cell, cell: Cell) -> tuple[str, int]:
    """Which ``max`` of a cell a try has a number for, and the number."""
    if asked.workload.prompt_tokens == "max":
        return "prompt_tokens", cell.workload.least_prompt_tokens
    return "batch", cell.rows


def _share_answers(records: Records, key: str) -> list[str]:
    """Give every cell of this sample key that has a number what is known of it."""
    answers = records.answers.get(key)
    changed = [
        result
        for result in records.results.values()
        if answers is not None
        and result.answers is None
        and result.measurements
        and sample_key(result.cell) == key
    ]
    for result in changed:
        records.results[result.cell_id] = replace(result, answers=answers)
    return [result.cell_id for result in changed]


def grown(result: Result, value: Any, timing: Timing) -> Result:
    """The record with one timed process more; those of a cluster in the order of their passes."""
    findings = value if isinstance(value, Findings) else None
    outcome = result.outcome
    if isinstance(value, CellFailure):
        outcome = outcome_of(value)
    elif isinstance(value, KeyboardInterrupt):
        outcome = _ended_by_the_user(result)
    elif findings is not None and findings.measurement is None:
        outcome = Outcome("not_engaged", "; ".join(findings.attestation.mismatches))
    ended = Replicate(
        started_at=timing.started_at,
        wall_s=timing.wall_s,
        phases_s=timing.phases_s,
        measurement=None if findings is None else findings.measurement,
        origin=timing.origin,
    )
    replicates = [*result.replicates, ended]
    if timing.origin is not None:
        replicates.sort(key=lambda each: -1 if each.origin is None else each.origin.pass_index)
    result = replace(
        result,
        outcome=outcome,
        started_at=min(r.started_at for r in replicates),
        replicates=tuple(replicates),
    )
    if findings is None:
        return result
    attestation = result.attestation or findings.attestation
    return replace(result, revision=findings.revision, attestation=attestation)


def outcome_of(failure: CellFailure) -> Outcome:
    """How a process ended that gave no value."""
    trace = "\n".join(getattr(failure, "__notes__", [])) or None
    return Outcome(failure.status, failure.reason, trace)


def _ended_by_the_user(result: Result) -> Outcome:
    if not result.replicates:
        return Outcome("killed", "ended by the user")
    done, wanted = len(result.replicates), result.cell.measure.passes
    return Outcome("ok", f"{done} of {wanted} processes: ended by the user")


def _say_failure(what: str, job: Job, value: Any) -> None:
    if isinstance(value, CellFailure):
        say(f"{job.cell.label}: {what}: {value.status}: {value.reason}")
