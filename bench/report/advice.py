"""Advice in words, the same for ``bench advise``, the end of a sweep and the report."""

import json
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from bench.analysis.advice import (
    ASSUMED,
    USE_CASES,
    USUAL_KL_NATS,
    Advice,
    Excluded,
    Goal,
    Limits,
    UseCase,
    UseName,
    advise,
    has_energy,
)
from bench.analysis.choices import flips_of, is_distinguishable
from bench.analysis.choices import sentence as of_choices
from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.crossover import sentence
from bench.analysis.metrics import MIB, in_words, peak_memory_bytes
from bench.analysis.readings import is_disturbed
from bench.analysis.stats import sureness
from bench.record.result import Result

_GOALS: dict[Goal, str] = {
    "throughput": "most output tokens per second",
    "ttft": "shortest time to first token",
    "tpot": "shortest time per output token",
    "memory": "least memory",
    "cost": "least cost per million output tokens",
    "energy": "least energy per output token, without idle power",
}
_LIMITS = {
    "max_memory_bytes": "memory",
    "max_ttft_s": "TTFT",
    "max_tpot_s": "TPOT",
    "max_kl_nats": "KL",
    "min_output_tok_s": "throughput",
}
_MOST_EXCLUDED = 3
_MOST_DISTURBED = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """Advice for people."""

    headline: str  # the configuration, or that there is none
    why: tuple[str, ...]  # one sentence each
    chosen: Result | None = None


def answer(comparison: Comparison, advice: Advice, limits: Limits) -> Answer:
    """What to take, why, what binds and how sure that is."""
    results = {result.cell_id: result for result in comparison.results}
    if advice.word == "nothing measured":
        which = "no cell with batch 1" if comparison.measured else "no cell"
        return Answer(f"{which} has a number", ())
    excluded = [
        _excluded(comparison, results[cell.cell_id], cell, limits)
        for cell in advice.better_but_excluded[:_MOST_EXCLUDED]
    ]
    if advice.best is None:
        why = tuple(f"would be first, but: {cell}" for cell in excluded)
        return Answer("no measured cell keeps these limits", why)
    best = results[advice.best]
    place = comparison.place(best)
    return Answer(
        place if advice.word == "recommended" else f"not enough data; best guess {place}",
        (
            in_words(best, comparison.values[best.cell_id]),
            *_how_sure(comparison, advice, [results[cell] for cell in advice.in_question]),
            *(f"would be better, but: {cell}" for cell in excluded),
        ),
        best,
    )


def asked_in_words(goal: Goal, limits: Limits) -> str:
    """A goal with its limits."""
    return f"{_GOALS[goal]}{_limits_in_words(limits)}"


def _how_sure(
    comparison: Comparison, advice: Advice, in_question: Sequence[Result]
) -> tuple[str, ...]:
    measures = "measure=standard" if advice.goal == "energy" else "`doctor --calibrate`"
    assumption = (
        f", assuming that processes differ by {ASSUMED.deviation:.0%} ({measures} measures it)"
        if advice.is_assumed
        else ""
    )
    probability, disturbed = advice.probability, _disturbed(comparison)
    if advice.word == "recommended":
        margin = comparison.sweep.margin
        return (
            *disturbed,
            f"how sure: {sureness(probability)} that nothing measured beats it by over"
            f" {margin:.0%}{assumption}",
        )
    places = ", ".join(comparison.place(result) for result in in_question[:4])
    return (
        *disturbed,
        f"best guess {probability:.0%} likely{assumption}; still possible: {places}",
        f"run this to tell: {command(comparison, in_question)}",
    )


Asked = tuple[str, UseCase, Limits, Advice]  # the first: of which group of alternatives


def use_cases(comparison: Comparison) -> list[tuple[str, Answer]]:
    """The usual questions, each answered from the data."""
    return _answered(comparison, comparison.advice)


def _asked(comparison: Comparison, limits: Limits, goal: UseName | None) -> Sequence[Asked]:
    """The usual questions where there is neither goal nor limit, else this one, for each group of
    alternatives."""
    if goal is None and limits == Limits():
        return comparison.advice
    case, margin = USE_CASES[goal or "batch"], comparison.sweep.margin
    return [
        (group, case, limits, advise(draws, limits, case.goal, margin, case.one_row_only))
        for group, draws in comparison.alternatives
        if case.name != "battery" or has_energy(draws)
    ]


def _answered(comparison: Comparison, asked: Sequence[Asked]) -> list[tuple[str, Answer]]:
    answers = []
    for group, case, limits, advice in asked:
        given = answer(comparison, advice, limits)
        name = f"{case.name} ({case.what}{_limits_in_words(limits)})"
        answers.append((f"{group}: {name}" if group else name, given))
    return answers


def in_short(comparison: Comparison) -> list[str]:
    """The usual questions with their answers, a line each; nothing for a sweep with nothing to
    choose."""
    if len(comparison.measured) < 2:
        return []
    answers = [(name.partition(" (")[0], given) for name, given in use_cases(comparison)]
    width = max(len(name) for name, _ in answers)
    has_quality = any(result.divergence for result in comparison.results)
    limit = f", with a divergence of at most {USUAL_KL_NATS} nat" if has_quality else ""
    lines = [f"  {name:<{width}}  {given.headline}" for name, given in answers]
    head = f"what to use{limit} (why: the report, or `python -m bench advise`):"
    return [head, *(f"  {warning}" for warning in _disturbed(comparison)), *lines]


def _disturbed(comparison: Comparison) -> list[str]:
    """A warning where what is compared is not the cells' own."""
    of = [comparison.place(r) for r in comparison.measured if is_disturbed(r.measurements)]
    if not of:
        return []
    more = f" and {len(of) - _MOST_DISTURBED} more" if len(of) > _MOST_DISTURBED else ""
    names = ", ".join(of[:_MOST_DISTURBED])
    return [f"others had the CPUs while {names}{more} ran: measure again before you rely on this"]


def turning_points(comparison: Comparison) -> list[str]:
    """From where on which value of the compared axis is faster."""
    return [sentence(change) for change in comparison.crossovers]


def print_advice(comparison: Comparison, limits: Limits, goal: UseName | None) -> None:
    """Without a goal and limits the usual questions are answered."""
    console = Console(highlight=False, soft_wrap=True)
    answers = _answered(comparison, _asked(comparison, limits, goal))
    for name, given in answers:
        console.print(f"{name}: {given.headline}", markup=False, style="bold")
        for line in given.why:
            console.print(f"  {line}", markup=False)
    if goal is None and limits == Limits():
        for line in turning_points(comparison):
            console.print(line, markup=False)
    for place, again, lines in to_run(comparison, [given for _, given in answers]):
        console.print(f"\n{place}", markup=False, style="bold")
        console.print(f"  measure it again: {again}", markup=False)
        if lines:
            console.print(f"  load it:\n{textwrap.indent(lines, '    ')}", markup=False)


def to_run(comparison: Comparison, answers: Sequence[Answer]) -> list[tuple[str, str, str]]:
    """Of each cell that is recommended: what it is, the command that measures it again, and the
    Python that loads it."""
    chosen = {each.chosen.cell_id: each.chosen for each in answers if each.chosen is not None}
    return [
        (comparison.place(result), _again(comparison, result), result.lines)
        for result in chosen.values()
    ]


def as_json(comparison: Comparison, limits: Limits, goal: UseName | None) -> str:
    """The same for programs, as data/advice.schema.json has it. Units: SI."""
    answers = [
        {
            "group": group or None,
            "use_case": case.name,
            "goal": advice.goal,
            "limits": kept.set_ones(),
            "answer": advice.word,
            "probability": advice.probability,
            "is_spread_assumed": advice.is_assumed,
            "best": advice.best,
            "in_question": advice.in_question,
            "better_but_excluded": {c.cell_id: c.breaks for c in advice.better_but_excluded},
        }
        for group, case, kept, advice in _asked(comparison, limits, goal)
    ]
    cells = {
        result.cell_id: {
            "label": result.cell.label,
            "axes": {name: coordinate(result.cell, name) for name in comparison.columns},
            "metrics": {
                key: value
                for key, value in comparison.values[result.cell_id].items()
                if math.isfinite(value)
            },
            "is_distinguishable": is_distinguishable(result),
            "choices": None if (flips := flips_of(result)) is None else of_choices(flips),
            "measure_again": _again(comparison, result),
            "load": result.lines or None,
        }
        for result in comparison.measured
    }
    found = {
        "schema": 1,
        "sweep": comparison.sweep.sweep_id,
        "margin": comparison.sweep.margin,
        "price_per_hour": comparison.sweep.price_per_hour,
        "answers": answers,
        "cells": cells,
    }
    return json.dumps(found, indent=1)


def _again(comparison: Comparison, result: Result) -> str:
    return f"python -m bench {shlex.join(_words(comparison, [result]))}"


def _words(comparison: Comparison, cells: Sequence[Result]) -> list[str]:
    """The sweep's own overrides, with the axes of these cells alone."""
    columns = list(comparison.columns)
    if "workload" in columns and any(result.cell.workload.bucket for result in cells):
        # A bucket of prompts is no value of conf/workload, but a part of one
        is_one_file = len({result.cell.workload.path for result in comparison.results}) == 1
        columns.remove("workload")
        columns += ["workload.bucket"] if is_one_file else ["workload.path", "workload.bucket"]
    axes = {
        column: ",".join(dict.fromkeys(coordinate(r.cell, column) for r in cells))
        for column in columns
    }
    given = [(word, word.partition("=")[0]) for word in comparison.sweep.overrides if "=" in word]
    kept = [word for word, key in given if not {key, key.partition(".")[0]} & {*axes, "resume"}]
    return [*(f"{axis}={values}" for axis, values in axes.items()), *kept, "resume=false"]


def command(comparison: Comparison, in_question: Sequence[Result]) -> str:
    """What measures the cells in question again, in more processes."""
    dropped = ("measure=", "measure.", "resume=")
    words = [w for w in _words(comparison, in_question) if not w.startswith(dropped)]
    return f"python -m bench -m {shlex.join([*words, 'measure=rigorous'])}"


def _limits_in_words(limits: Limits) -> str:
    parts = [_limit(name, value) for name, value in limits.set_ones().items()]
    return f", {', '.join(parts)}" if parts else ""


def _limit(name: str, value: float) -> str:
    side = "at least" if name.startswith("min_") else "at most"
    return f"{_LIMITS[name]} {side} {_value(name, value)}"


def _value(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / MIB:,.0f} MiB"
    if name.endswith("_nats"):
        return f"{value:.3g} nat"
    if name.endswith("tok_s"):
        return f"{value:,.1f} tok/s"
    ms = value * 1e3
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def broken_limits(result: Result, values: Mapping[str, float], limits: Limits) -> list[str]:
    """What a cell has where it breaks a limit. ``values``: as derived."""
    broken = []
    for name, limit in limits.set_ones().items():
        value = _reading(result, values, name)
        if value < limit if name.startswith("min_") else value > limit:
            broken.append(f"{_LIMITS[name]} {_value(name, value)}")
    return broken


def _reading(result: Result, values: Mapping[str, float], limit: str) -> float:
    """What a limit is about; nan where it was not read."""
    reading = limit.partition("_")[2]
    if reading == "memory_bytes":
        return peak_memory_bytes(result, values)
    return values.get(reading, math.nan)


def _excluded(comparison: Comparison, result: Result, cell: Excluded, limits: Limits) -> str:
    values = comparison.values[result.cell_id]
    broken = []
    for name in cell.breaks:
        value = _reading(result, values, name)
        has = "which was not read" if math.isnan(value) else f"it has {_value(name, value)}"
        broken.append(f"{_limit(name, getattr(limits, name))}, {has}")
    return f"{comparison.place(result)}: {'; '.join(broken)}"
