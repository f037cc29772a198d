"""What ``bench choose`` found, in words and for programs."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.analysis.advice import advise
from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.metrics import MIB, peak_memory_bytes
from bench.analysis.racing import Course, Range
from bench.analysis.stats import sureness
from bench.record.result import Result
from bench.report.advice import answer, asked_in_words

_SHOWN_DROPPED = 12


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer, from the confirmation alone."""

    best: Result | None  # None: nothing keeps the limits; with exit code 4 a guess
    chance: float  # that it keeps the limits and nothing in the race beats it by over the margin
    equivalent: tuple[Result, ...]
    confirmed: tuple[Result, ...]
    ranges: Mapping[str, Mapping[str, Range]]  # of what was confirmed, by cell_id and metric
    exit_code: int


def lines(choice: Choice, course: Course, comparison: Comparison) -> Iterator[str]:
    """The answer, what comes next and by how much, why the others lose, and what to run."""
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
        yield f"  of {processes} processes each after the search, on {prompts}; 95 % intervals"
    if course.dropped:
        yield "dropped:"
    for line in list(_dropped(course, comparison))[:_SHOWN_DROPPED]:
        yield f"  {line}"
    if len(course.dropped) > _SHOWN_DROPPED:
        yield f"  and {len(course.dropped) - _SHOWN_DROPPED} more: see the report"
    if choice.exit_code == 4:
        yield (
            f"more time would tell: --budget {2 * course.budget_s / 60:.0f}min; what stands in"
            " question gets further processes"
        )
    if choice.best is not None:
        yield f"measure it again: {_command(course, comparison, choice.best)}"
        yield from _how_to_run(choice.best)


def _headline(choice: Choice, course: Course) -> str:
    if choice.best is None:
        searched = course.search is not None
        return "nothing keeps these limits" if searched else "nothing could be measured"
    name = name_of(course, choice.best)
    if choice.exit_code != 0:
        chance = f", {choice.chance:.0%} likely" if choice.chance else ""
        return f"the budget does not suffice to tell; best guess {name}{chance}"
    chance = sureness(choice.chance)
    margin = course.question.margin
    alike = ", ".join(name_of(course, result) for result in choice.equivalent)
    also = f"; equivalent, and no simpler: {alike}" if alike else ""
    return f"use {name} ({chance} sure that nothing here beats it by over {margin:.0%}{also})"


def name_of(course: Course, result: Result) -> str:
    """What tells configurations apart, like ``quant=nf4 batch=8``."""
    return " ".join(f"{column}={coordinate(result.cell, column)}" for column in course.columns)


_HEADS = (
    *("", "chance", "TPOT ms", "TTFT ms", "tok/s", "memory MiB", "KL nat"),
    *("cost of a million tokens", "TPOT at least ms"),
)


def _table(choice: Choice, course: Course, comparison: Comparison) -> Iterator[str]:
    """What was confirmed, the answer first; the last column is what was predicted: no step is
    quicker than its weights are read."""
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
    memory = peak_memory_bytes(result, values)
    arm = next(arm for arm, twin in course.twins.items() if twin == result.cell_id)
    floor_s = course.floors_s.get(arm)
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
    )


def _interval(found: Range, factor: float) -> str:
    value, low, high = (each * factor for each in (found.value, found.low, found.high))
    digits = 1 if value < 100 else 0
    return f"{value:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _dropped(course: Course, comparison: Comparison) -> Iterator[str]:
    """When and why, with what bounds it; those that ran longest last."""
    results = {result.cell_id: result for result in comparison.results}
    behind = course.search.behind if course.search is not None else {}
    for cell, why in course.dropped.items():
        result = results.get(cell)
        if result is None:
            yield f"{course.labels[cell]}: {why}"
            continue
        parts = [why]
        limit = course.question.limits.max_kl_nats
        kl_nats = comparison.values[cell].get("kl_nats", 0.0)
        if limit is not None and kl_nats > limit:
            parts.append(f"KL {kl_nats:.3g} nat")
        elif (times := behind.get(cell)) is not None:
            parts.append(f"{times:.2f} times the leader's")
        bound = comparison.bound_by.get(cell)
        if bound is not None and bound.name != "unclear":
            parts.append(f"bound by {bound.text}")
        yield f"{name_of(course, result)}: {', '.join(parts)}"


def _command(course: Course, comparison: Comparison, result: Result) -> str:
    axes = [f"{column}={coordinate(result.cell, column)}" for column in course.columns]
    typed = [word for word in comparison.sweep.overrides if "=" in word and "," not in word]
    keys = {word.partition("=")[0] for word in axes}
    kept = [word for word in typed if word.partition("=")[0] not in keys]
    return f"python -m bench {shlex.join([*axes, *kept, 'measure=standard'])}"


def _how_to_run(result: Result) -> Iterator[str]:
    if result.lines:
        yield "load it yourself:"
        yield from (f"  {line}" for line in result.lines.rstrip().splitlines())


def as_mapping(choice: Choice, course: Course, comparison: Comparison) -> dict[str, Any]:
    """The same for programs. Units: SI."""
    best = choice.best
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
        "confirmed": {
            cell: {name: (r.value, r.low, r.high) for name, r in metrics.items()}
            for cell, metrics in choice.ranges.items()
        },
        "dropped": dict(course.dropped),
        "load": None if best is None else best.lines or None,
    }
