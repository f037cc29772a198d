"""Advice in words, the same for ``bench advise``, the end of a sweep and the report."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from bench.analysis.advice import ASSUMED, USUAL_KL_NATS, Advice, Excluded, Goal, Limits, advise
from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.crossover import sentence
from bench.analysis.metrics import MIB, in_words, peak_memory_bytes
from bench.record.result import Result

_GOALS: dict[Goal, str] = {
    "throughput": "most output tokens per second",
    "ttft": "shortest time to first token",
    "tpot": "shortest time per output token",
    "memory": "least memory",
}
_LIMITS = {
    "max_memory_bytes": "memory",
    "max_ttft_s": "TTFT",
    "max_tpot_s": "TPOT",
    "max_kl_nats": "KL",
    "min_output_tok_s": "throughput",
}
_MOST_EXCLUDED = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """Advice for people."""

    question: str
    headline: str  # the configuration, or that there is none
    why: tuple[str, ...]  # one sentence each


def answer(comparison: Comparison, advice: Advice, limits: Limits) -> Answer:
    """What to take, why, what binds and how sure that is."""
    results = {result.cell_id: result for result in comparison.results}
    question = f"{_GOALS[advice.goal]}{_limits_in_words(limits)}"
    if advice.word == "nothing measured":
        which = "no cell with batch 1" if comparison.measured else "no cell"
        return Answer(question, f"{which} has a number", ())
    excluded = [
        _excluded(comparison, results[cell.cell_id], cell, limits)
        for cell in advice.better_but_excluded[:_MOST_EXCLUDED]
    ]
    if advice.best is None:
        why = tuple(f"would be first, but: {cell}" for cell in excluded)
        return Answer(question, "no measured cell keeps these limits", why)
    best = results[advice.best]
    place = comparison.place(best)
    return Answer(
        question,
        place if advice.word == "recommended" else f"not enough data; best guess {place}",
        (
            in_words(best, comparison.values[best.cell_id]),
            *_how_sure(comparison, advice, [results[cell] for cell in advice.in_question]),
            *(f"would be better, but: {cell}" for cell in excluded),
        ),
    )


def _how_sure(
    comparison: Comparison, advice: Advice, in_question: Sequence[Result]
) -> tuple[str, ...]:
    assumption = (
        f", assuming that processes differ by {ASSUMED.deviation:.0%} (`doctor --calibrate`"
        " measures it)"
        if advice.is_assumed
        else ""
    )
    probability = advice.probability
    if advice.word == "recommended":
        sure = "over 99%" if probability > 0.99 else f"{probability:.0%}"
        margin = comparison.sweep.margin
        return (
            f"how sure: {sure} that nothing measured beats it by over {margin:.0%}{assumption}",
        )
    places = ", ".join(comparison.place(result) for result in in_question[:4])
    return (
        f"best guess {probability:.0%} likely{assumption}; still possible: {places}",
        f"run this to tell: {command(comparison, in_question)}",
    )


def use_cases(comparison: Comparison) -> list[tuple[str, Answer]]:
    """The usual questions, each answered from the data."""
    return [
        (
            f"{group}: {case.name} ({case.what})" if group else f"{case.name} ({case.what})",
            answer(comparison, advice, limits),
        )
        for group, case, limits, advice in comparison.advice
    ]


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
    return [f"what to use{limit} (why: the report, or `python -m bench advise`):", *lines]


def turning_points(comparison: Comparison) -> list[str]:
    """From where on which value of the compared axis is faster."""
    return [sentence(change) for change in comparison.crossovers]


def print_advice(comparison: Comparison, limits: Limits, goal: Goal | None) -> None:
    """Without a goal and limits the usual questions are answered."""
    console = Console(highlight=False, soft_wrap=True)
    if goal is not None or limits != Limits():
        for group, draws in comparison.alternatives:
            advice = advise(draws, limits, goal or "throughput", comparison.sweep.margin)
            given = answer(comparison, advice, limits)
            _print(console, given, f"{group}: {given.question}" if group else given.question)
        return
    for name, given in use_cases(comparison):
        _print(console, given, name)
    for line in turning_points(comparison):
        console.print(line, markup=False)


def _print(console: Console, given: Answer, name: str) -> None:
    console.print(f"{name}: {given.headline}", markup=False, style="bold")
    for line in given.why:
        console.print(f"  {line}", markup=False)


def command(comparison: Comparison, in_question: Sequence[Result]) -> str:
    """What measures the cells in question again, in more processes: the sweep's own words with
    fewer values."""
    axes = {
        column: ",".join(dict.fromkeys(coordinate(r.cell, column) for r in in_question))
        for column in comparison.columns
    }
    replaced = {*axes, "measure", "resume"}
    given = [(word, word.partition("=")[0]) for word in comparison.sweep.overrides if "=" in word]
    kept = [word for word, key in given if not {key, key.partition(".")[0]} & replaced]
    chosen = [f"{axis}={values}" for axis, values in axes.items()]
    return f"python -m bench -m {shlex.join([*chosen, *kept, 'measure=rigorous'])}"


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


def _excluded(comparison: Comparison, result: Result, cell: Excluded, limits: Limits) -> str:
    values = comparison.values[result.cell_id]
    broken = []
    for name in cell.breaks:
        reading = name.partition("_")[2]
        value = values.get(reading, math.nan)
        if reading == "memory_bytes":
            value = peak_memory_bytes(result, values)
        has = "none" if math.isnan(value) else _value(name, value)
        broken.append(f"{_limit(name, getattr(limits, name))}, it has {has}")
    return f"{comparison.place(result)}: {'; '.join(broken)}"
