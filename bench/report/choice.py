"""What ``bench choose`` found, in words and for programs."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.analysis.advice import advise
from bench.analysis.columns import assignments, coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.metrics import MIB, peak_memory_bytes
from bench.analysis.racing import Course, Range
from bench.analysis.stats import sureness
from bench.record.result import Result
from bench.report.advice import answer, asked_in_words, broken_limits

DROPPED_IN_TERMINAL = 12
_SURE = 0.99  # above it nobody asks for more
_NOT_AGAIN = ("measure", "resume")  # of what was typed, where the answer is measured once more


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer, from the confirmation alone."""

    best: Result | None  # None: nothing keeps the limits; with exit code 4 a guess
    # That it keeps the limits and nothing in the race beats it by over the margin; None where some
    # never ran
    chance: float | None
    equivalent: tuple[Result, ...]
    confirmed: tuple[Result, ...]
    ranges: Mapping[str, Mapping[str, Range]]  # of what was confirmed, by cell_id and metric
    exit_code: int


def lines(
    choice: Choice, course: Course, comparison: Comparison, shown_dropped: int | None = None
) -> Iterator[str]:
    """The answer, what comes next and by how much, why the others lose, and what to run.

    Args:
        shown_dropped: how many of those that were dropped are listed; None: all.
    """
    question = course.question
    yield f"asked for: {asked_in_words(question.goal, question.limits)}"
    yield _headline(choice, course)
    if choice.best is None:
        advice = advise(comparison.plausible, question.limits, question.goal, question.margin)
        yield from (f"  {why}" for why in answer(comparison, advice, question.limits).why)
    if choice.confirmed:
        yield from _table(choice, course, comparison)
        processes = min(len(result.measurements) for result in choice.confirmed)
        text = choice.confirmed[0].cell.workload.text
        prompts = (
            "the search's prompts" if text is None else f"prompts that it did not read ({text})"
        )
        margin = course.question.margin
        yield f"  chance: that no other here is better by over {margin:.0%}, limits kept"
        each = f"{processes} process{'es' * (processes > 1)} each"
        yield f"  of {each} after the search, on {prompts}; 95% intervals"
        yield from _rivals(choice, course, comparison)
    if course.dropped:
        yield "dropped:"
    dropped = list(_dropped(course, comparison))
    yield from (f"  {line}" for line in dropped[:shown_dropped])
    if left_out := dropped[shown_dropped:] if shown_dropped is not None else []:
        yield f"  and {len(left_out)} more: see the report"
    yield from _more_time(choice, course)
    if choice.best is not None:
        yield f"measure it again: {_command(course, comparison, choice.best)}"
        yield from _how_to_run(choice.best)


def _headline(choice: Choice, course: Course) -> str:
    if choice.best is None:
        searched = course.search is not None
        return "nothing keeps these limits" if searched else "nothing could be measured"
    name = name_of(course, choice.best)
    if choice.exit_code != 0 or choice.chance is None:
        likely = f"{sureness(choice.chance)} likely" if choice.chance else "some never ran"
        return f"the budget does not suffice to tell; best guess {name}, {likely}"
    chance = sureness(choice.chance)
    margin = course.question.margin
    alike = ", ".join(name_of(course, result) for result in choice.equivalent)
    also = f"; equivalent, and no simpler: {alike}" if alike else ""
    return f"use {name} ({chance} sure that nothing here beats it by over {margin:.0%}{also})"


def name_of(course: Course, result: Result) -> str:
    """What tells configurations apart, like ``quant=nf4 batch=8``."""
    return assignments(result.cell, course.columns)


def _more_time(choice: Choice, course: Course) -> Iterator[str]:
    """What it would bring."""
    if choice.exit_code == 4:
        twice_s = math.ceil(2 * course.budget_s)
        budget = f"{twice_s / 60:.0f}min" if twice_s >= 120 else f"{twice_s}s"
        yield f"more time would tell: --budget {budget}; what is in question gets more processes"
    elif choice.chance is not None and choice.chance <= _SURE:
        yield f"more time would make it surer: --confidence {_SURE:.0%}"


_HEADS = (
    *("", "chance", "TPOT ms", "TTFT ms", "tok/s", "memory MiB", "KL nat"),
    *("cost of a million tokens", "TPOT at least ms", "MiB at least"),
)


def _table(choice: Choice, course: Course, comparison: Comparison) -> Iterator[str]:
    """What was confirmed, the answer first; the last columns are what was predicted: no step is
    quicker than its weights are read, nothing takes less than weights and KV cache."""
    best = choice.best
    ordered = sorted(choice.confirmed, key=lambda result: result is not best)
    rows = [_HEADS, *(_row(choice, course, comparison, result) for result in ordered)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = [i for i, head in enumerate(_HEADS) if not head or any(row[i] for row in rows[1:])]
    for row in rows:
        cells = (row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in shown)
        yield f"  {'  '.join(cells)}".rstrip()


def _row(choice: Choice, course: Course, comparison: Comparison, result: Result) -> tuple[str, ...]:
    found, values = choice.ranges[result.cell_id], comparison.values[result.cell_id]
    memory, floor_s = peak_memory_bytes(result, values), _floor_s(course, result)
    return (
        name_of(course, result),
        "" if course.final is None else sureness(course.final.chances[result.cell_id]),
        _interval(found["tpot_s"], 1e3),
        _interval(found["ttft_s"], 1e3),
        _interval(found["output_tok_s"], 1),
        "" if math.isnan(memory) else f"{memory / MIB:,.0f}",
        f"{values['kl_nats']:.3g}" if "kl_nats" in values else "",
        f"{values['cost/output_mtok']:.3g}" if "cost/output_mtok" in values else "",
        "" if floor_s is None else f"{floor_s * 1e3:.1f}",
        "" if result.predicted_bytes is None else f"{result.predicted_bytes / MIB:,.0f}",
    )


def _floor_s(course: Course, result: Result) -> float | None:
    """What was predicted of a twin, by the arm that it confirms."""
    arm = next(arm for arm, twin in course.twins.items() if twin == result.cell_id)
    return course.floors_s.get(arm)


def _rivals(choice: Choice, course: Course, comparison: Comparison) -> Iterator[str]:
    """What separates those from the answer that were confirmed beside it."""
    if course.final is None or course.final.leader is None:
        return
    alike = {result.cell_id for result in (choice.best, *choice.equivalent) if result is not None}
    for result in choice.confirmed:
        cell = result.cell_id
        if cell not in alike:
            behind = course.final.behind.get(cell)
            parts = _why_behind(course, comparison, result, behind, "the best's")
            yield f"  {name_of(course, result)}: {', '.join(parts)}"


def _interval(found: Range, factor: float) -> str:
    value, low, high = (each * factor for each in (found.value, found.low, found.high))
    digits = 1 if value < 100 else 0
    return f"{value:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _dropped(course: Course, comparison: Comparison) -> Iterator[str]:
    """When and why, with what bounds it; those that ran longest last."""
    results = {result.cell_id: result for result in comparison.results}
    for cell, why in course.dropped.items():
        result = results.get(cell)
        if result is None:
            yield f"{course.labels[cell]}: {why}"
            continue
        parts = [why, *_why(course, comparison, result)]
        yield f"{name_of(course, result)}: {', '.join(parts)}"


def _why_behind(
    course: Course, comparison: Comparison, result: Result, behind: float | None, whose: str
) -> Iterator[str]:
    """The limits that it breaks, or how far behind it is; and what bounds it."""
    values = comparison.values.get(result.cell_id, {})
    broken = broken_limits(result, values, course.question.limits) if values else []
    yield from broken
    if not broken and behind is not None:
        yield f"{behind:.2f} times {whose}"
    bound = comparison.bound_by.get(result.cell_id)
    if bound is not None and bound.name != "unclear":
        yield f"bound by {bound.text}"


def _command(course: Course, comparison: Comparison, result: Result) -> str:
    axes = [f"{column}={coordinate(result.cell, column)}" for column in course.columns]
    typed = [word for word in comparison.sweep.overrides if "=" in word and "," not in word]
    keys = {*_NOT_AGAIN, *(word.partition("=")[0] for word in axes)}
    kept = [word for word in typed if word.partition("=")[0] not in keys]
    return f"python -m bench {shlex.join([*axes, *kept, 'measure=standard'])}"


def _how_to_run(result: Result) -> Iterator[str]:
    if result.lines:
        yield "load it yourself:"
        yield from (f"  {line}" for line in result.lines.rstrip().splitlines())


def as_mapping(choice: Choice, course: Course, comparison: Comparison) -> dict[str, Any]:
    """The same for programs, as data/choice.schema.json has it. Units: SI."""
    best, results = choice.best, {result.cell_id: result for result in comparison.results}
    ordered = sorted(choice.confirmed, key=lambda result: result is not best)
    return {
        "schema": 1,
        "sweep": comparison.sweep.sweep_id,
        "answer": {0: "chosen", 1: "nothing fits", 4: "cannot tell"}[choice.exit_code],
        "best": None if best is None else best.cell_id,
        "configuration": None if best is None else name_of(course, best),
        "chance": choice.chance,
        "equivalent": [result.cell_id for result in choice.equivalent],
        "goal": course.question.goal,
        "limits": course.question.limits.set_ones(),
        "confidence": course.question.confidence,
        "confirmed": [_confirmed(choice, course, comparison, result) for result in ordered],
        "dropped": [
            {
                "cell": cell,
                "configuration": course.labels[cell],
                "when": when,
                "why": [] if cell not in results else _why(course, comparison, results[cell]),
            }
            for cell, when in course.dropped.items()
        ],
        "measure_again": None if best is None else _command(course, comparison, best),
        "load": None if best is None else best.lines or None,
    }


def _why(course: Course, comparison: Comparison, result: Result) -> list[str]:
    behind = course.search.behind if course.search is not None else {}
    return [*_why_behind(course, comparison, result, behind.get(result.cell_id), "the leader's")]


def _confirmed(
    choice: Choice, course: Course, comparison: Comparison, result: Result
) -> dict[str, Any]:
    final, values = course.final, comparison.values[result.cell_id]
    memory = peak_memory_bytes(result, values)
    return {
        "cell": result.cell_id,
        "configuration": name_of(course, result),
        "chance": None if final is None else final.chances[result.cell_id],
        "metrics": {
            name: {"value": of.value, "low": of.low, "high": of.high}
            for name, of in choice.ranges[result.cell_id].items()
        },
        "memory_bytes": None if math.isnan(memory) else memory,
        "kl_nats": values.get("kl_nats"),
        "predicted": {
            "least_tpot_s": _floor_s(course, result),
            "least_memory_bytes": result.predicted_bytes,
        },
    }
