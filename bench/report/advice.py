"""``python -m bench advise SWEEP``: advice in words, the same on the terminal and in the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from bench.analysis.advice import USE_CASES, Advice, Excluded, Goal, Limits, advise
from bench.analysis.comparison import comparable, coordinate, reference, varying_columns
from bench.analysis.crossover import crossovers, sentences
from bench.analysis.metrics import derive
from bench.analysis.plausible import ASSUMED, Plausible, peak_memory_bytes, plausible
from bench.record.result import Result
from bench.store.files import Sweep, read_results, read_sweep

# Of the table of use cases; where it is from: a judgement, so it is said and can be changed
USUAL_KL_NATS = 0.1
_MIB = 2**20
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


def answer(
    known: Plausible, sweep: Sweep, limits: Limits, goal: Goal, one_row_only: bool = False
) -> Answer:
    """What to take of these cells (of those with batch 1 only), why, what binds and how sure that
    is."""
    names = _names(known.results) if known.results else {}
    values = {result.cell_id: result for result in known.results}
    found = advise(known, limits, goal, sweep.margin, one_row_only)
    asked = f"{_GOALS[goal]}{_limits_in_words(limits)}"
    if found.word == "nothing measured":
        return Answer(
            asked,
            "no cell with batch 1 has a number" if one_row_only else "no cell has a number",
            (),
        )
    excluded = [
        _excluded(each, names, values, limits)
        for each in found.better_but_excluded[:_MOST_EXCLUDED]
    ]
    if found.best is None:
        return Answer(
            asked,
            "no measured cell keeps these limits",
            tuple(f"would be first, but: {each}" for each in excluded),
        )
    why = [in_numbers(values[found.best])]
    if found.word == "recommended":
        sure = (
            f"how sure: {_sure(found.probability)} that nothing measured beats it by over"
            f" {sweep.margin:.0%}"
        )
        why.append(sure + _ground(found))
    else:
        others = ", ".join(names[each] for each in found.in_question[:4])
        why.append(
            f"{found.probability:.0%} for the likeliest{_ground(found)}; in question: {others}"
        )
        why.append(
            "run this to tell:"
            f" {command([values[each] for each in found.in_question], known.results, sweep)}"
        )
    why += [f"would be better, but: {each}" for each in excluded]
    headline = (
        names[found.best]
        if found.word == "recommended"
        else f"not enough data; likeliest {names[found.best]}"
    )
    return Answer(asked, headline, tuple(why))


def use_cases(known: Plausible, sweep: Sweep) -> list[tuple[str, Answer]]:
    """The usual questions, each answered from the data."""
    found = []
    for place, among in _alternatives(known):
        has_quality = any(result.divergence is not None for result in among.results)
        limits = Limits(max_kl_nats=USUAL_KL_NATS if has_quality else None)
        found += [
            (
                f"{place}{case.name} ({case.what})",
                answer(among, sweep, limits, case.goal, case.one_row_only),
            )
            for case in USE_CASES
        ]
    return found


def _alternatives(known: Plausible) -> list[tuple[str, Plausible]]:
    """Cells of one model and workload each, with words for which; nobody chooses between
    workloads."""
    groups = comparable(known.results)
    if len(groups) < 2:
        return [("", known)]
    return [
        (f"{name}: ", known.only([result in group for result in known.results]))
        for name, group in groups.items()
    ]


def in_short(results: Sequence[Result], sweep: Sweep) -> list[str]:
    """The usual questions with their answers, a line each; nothing for a sweep with nothing to
    choose."""
    if sum(bool(result.measurements) for result in results) < 2:
        return []
    found = use_cases(plausible(results, sweep.calibration), sweep)
    width = max(len(name.partition(" (")[0]) for name, _ in found)
    limit = (
        f", with a divergence of at most {USUAL_KL_NATS} nat"
        if any(r.divergence for r in results)
        else ""
    )
    lines = [f"  {name.partition(' (')[0]:<{width}}  {each.headline}" for name, each in found]
    return [f"what to use{limit} (why: the report, or `python -m bench advise`):", *lines]


def turning_points(known: Plausible, sweep: Sweep) -> list[str]:
    """From where on which value of the compared axis is faster."""
    against = (
        reference([result.cell for result in known.results], sweep.baseline)
        if known.results
        else None
    )
    if against is None:
        return []
    return [sentence for axis in against.values for sentence in sentences(crossovers(known, axis))]


def advise_on(folder: Path, limits: Limits, goal: Goal | None) -> int:
    """Print it; without a goal the usual questions are answered.

    Raises:
        StoreError: when the folder is not a sweep's.
    """
    sweep = read_sweep(folder)
    known = plausible(list(read_results(folder)), sweep.calibration)
    console = Console(highlight=False, soft_wrap=True)
    if goal is not None or limits != Limits():
        for place, among in _alternatives(known):
            found = answer(among, sweep, limits, goal or "throughput")
            _print(console, found, f"{place}{found.question}")
        return 0
    for name, each in use_cases(known, sweep):
        _print(console, each, name)
    for sentence in turning_points(known, sweep):
        console.print(sentence, markup=False)
    return 0


def _print(console: Console, found: Answer, name: str) -> None:
    console.print(f"{name}: {found.headline}", markup=False, style="bold")
    for sentence in found.why:
        console.print(f"  {sentence}", markup=False)


def command(in_question: Sequence[Result], results: Sequence[Result], sweep: Sweep) -> str:
    """What measures the cells in question again, in more processes: the sweep's own words with
    fewer values."""
    axes = {}
    for column in varying_columns([result.cell for result in results]):
        axes[column] = ",".join(
            dict.fromkeys(coordinate(result.cell, column) for result in in_question)
        )
    words = [word for word in sweep.overrides if "=" in word]
    kept = [
        word
        for word in words
        if word.partition("=")[0].partition(".")[0] not in {*axes, "measure", "resume"}
    ]
    said = [f"{axis}={values}" for axis, values in axes.items()]
    return " ".join(["python -m bench -m", *said, *kept, "measure=rigorous"])


def _names(results: Sequence[Result]) -> dict[str, str]:
    columns = varying_columns([result.cell for result in results]) or ["quant", "batch"]
    return {
        r.cell_id: " ".join(f"{column}={coordinate(r.cell, column)}" for column in columns)
        for r in results
    }


def _limits_in_words(limits: Limits) -> str:
    said = [
        _limit(field.name, limits)
        for field in fields(limits)
        if getattr(limits, field.name) is not None
    ]
    return f", {', '.join(said)}" if said else ""


def _limit(name: str, limits: Limits) -> str:
    word = "at least" if name.startswith("min_") else "at most"
    return f"{_LIMITS[name]} {word} {_value(name, getattr(limits, name))}"


def _value(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / _MIB:,.0f} MiB"
    if name.endswith("_nats"):
        return f"{value:.3g} nat"
    if name.endswith("tok_s"):
        return f"{value:,.1f} tok/s"
    ms = value * 1e3
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def in_numbers(result: Result) -> str:
    """A measured cell in one sentence."""
    values = derive(result)
    said = [
        f"{values['output_tok_s']:,.1f} output tok/s, TTFT {values['ttft_s'] * 1e3:,.1f} ms, "
        f"TPOT {values['tpot_s'] * 1e3:,.2f} ms"
    ]
    if not math.isnan(peak := peak_memory_bytes(result)):
        said.append(f"{peak / _MIB:,.0f} MiB at peak")
    if "kl_nats" in values:
        said.append(
            f"KL {values['kl_nats']:.3g} nat, {values['top1_agreement']:.1%} of next tokens as"
            " unquantized"
        )
    return ", ".join(said)


def _excluded(
    each: Excluded, names: dict[str, str], values: Mapping[str, Result], limits: Limits
) -> str:
    numbers = derive(values[each.cell_id])
    read = {
        "max_memory_bytes": peak_memory_bytes(values[each.cell_id]),
        "max_ttft_s": numbers["ttft_s"],
        "max_tpot_s": numbers["tpot_s"],
        "max_kl_nats": numbers.get("kl_nats"),
        "min_output_tok_s": numbers["output_tok_s"],
    }
    broken = []
    for name in each.breaks:
        value = read[name]
        has = "none" if value is None or math.isnan(value) else _value(name, value)
        broken.append(f"{_limit(name, limits)}, it has {has}")
    return f"{names[each.cell_id]}: {'; '.join(broken)}"


def _sure(probability: float) -> str:
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"


def _ground(found: Advice) -> str:
    if not found.is_assumed:
        return ""
    return (
        f", assuming that processes differ by {ASSUMED.deviation:.0%} (`doctor --calibrate` finds"
        " out)"
    )
