"""A reproduction in words: what is different here, and what came out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.analysis.differences import Difference
from bench.analysis.reproduction import (
    STEADY,
    Reproduction,
    Retimed,
    kernel_change,
    likeliest_reason,
    overall,
)
from bench.report.gated import TIMES


def environment(elsewhere: Sequence[Difference]) -> list[str]:
    """What is different here, before anything is measured."""
    if not elsewhere:
        return ["machine, versions and code are as they were recorded"]
    return ["different here, what could matter most first:", *(f"  {each}" for each in elsewhere)]


def findings(
    cells: Sequence[Reproduction], elsewhere: Sequence[Difference], margin: float
) -> list[str]:
    """The verdict, then each cell with its numbers, then what to know before trusting it."""
    lines = [_verdict(cells, margin)]
    for cell in cells:
        lines.append(f"{cell.now.cell.label}: {cell.word}")
        of_cell = [*map(_sentence, cell.changes), *_exactness(cell)]
        if cell.word == "differs":
            of_cell.append(f"likeliest reason: {likeliest_reason(cell, elsewhere)}")
        elif cell.word == "cannot tell":
            of_cell += [_what_it_takes(cell), *_unsteady(cell)]
        of_cell += [f"warning: interference: {what} ({s:.0%})" for what, s in cell.interference]
        of_cell += [f"warning: {_moved(c)}" for c in cell.changes if _has_moved(c, margin)]
        lines += [f"  {line}" for line in of_cell]
    return lines


def as_markdown(
    name: str, cells: Sequence[Reproduction], elsewhere: Sequence[Difference], margin: float
) -> str:
    """The same as a file."""
    lines = [*environment(elsewhere), "", *findings(cells, elsewhere, margin)]
    return "\n".join([f"# {name} once more: {overall(cells)}", "", "```", *lines, "```", ""])


def as_record(
    name: str,
    cells: Sequence[Reproduction],
    originals: Mapping[str, str],
    elsewhere: Sequence[Difference],
    margin: float,
) -> dict[str, Any]:
    """What is logged of it, in JSON types; ``originals``: by cell_id, MLflow's runs of the
    original."""
    records = {
        cell.now.cell_id: {
            "verdict": cell.word,
            "reproduces": originals.get(cell.then.cell_id, name),
            "numbers": numbers(cell),
        }
        for cell in cells
    }
    text = as_markdown(name, cells, elsewhere, margin)
    return {"verdict": overall(cells), "reproduces": name, "cells": records, "text": text}


def numbers(cell: Reproduction) -> dict[str, float]:
    """Metrics of a reproduced cell: how many times as long it takes now."""
    kernels = kernel_change(cell.then, cell.now)
    values = {} if kernels is None else {"reproduction/reference_kernels_ratio": kernels}
    for timed in cell.changes:
        name = f"reproduction/{timed.metric.removesuffix('_s')}_ratio"
        ratio, low, high = timed.change.slowdown
        values |= {name: ratio, f"{name}_of_medians": timed.medians_ratio}
        if low is not None and high is not None:
            values |= {f"{name}_low": low, f"{name}_high": high}
    return values


def _verdict(cells: Sequence[Reproduction], margin: float) -> str:
    word, where = overall(cells), "" if len(cells) == 1 else f" in each of {len(cells)} cells"
    if not any(cell.changes for cell in cells):
        return f"{word}: no number on both sides, so only how it ended was compared"
    within = f"within {margin:.0%} of the original's{where}"
    if word == "reproduced":
        return f"reproduced: minimum times of TTFT and TPOT are {within}"
    if word == "differs":
        return (
            f"differs: a minimum time, of TTFT or TPOT, by more than {margin:.0%}, or what must be"
            " equal to the last digit"
        )
    return f"cannot tell whether minimum times of TTFT and TPOT are {within}"


def _sentence(timed: Retimed) -> str:
    times = f"{timed.then_s * 1e3:.2f} ms then, {timed.now_s * 1e3:.2f} ms now (minimum time)"
    ratio, low, high = timed.change.slowdown
    text = f"{TIMES[timed.metric]}: {times}, {ratio:.3f} times as long"
    if low is None or high is None:
        return f"{text}: {timed.word}"
    word: str = timed.word
    if word == "cannot tell" and not low <= 1 <= high:
        word = "not the same, by how much cannot be told"
    return f"{text} ({low:.3f} to {high:.3f}): {word}"


def _has_moved(timed: Retimed, margin: float) -> bool:
    return timed.word != "differs" and abs(math.log(timed.medians_ratio)) > math.log1p(margin)


def _moved(timed: Retimed) -> str:
    when = "now" if timed.medians_ratio > 1 else "then"
    minima = ", the minima are not" if timed.word == "reproduced" else ""
    return (
        f"the medians of {TIMES[timed.metric]} are {timed.medians_ratio:.2f} times as long"
        f"{minima}: suspect other load {when}, or a cost that only some requests pay"
    )


def _exactness(cell: Reproduction) -> list[str]:
    exact, lines = cell.exactness, []
    counts = (
        ("answers", exact.answers, exact.other_answers),
        ("windows of divergence", exact.windows, exact.other_windows),
        ("multiple-choice items", exact.choices, exact.other_choices),
        ("texts in overlapping windows", exact.strided, exact.other_strided),
    )
    for name, count, others in counts:
        if count:
            equal = f"{count - others} of {count} {name} are equal to the last digit"
            unless = (
                ""
                if exact.promised
                else "; nothing promises it on this device or with these versions"
            )
            lines.append(equal + unless)
    return lines


def _unsteady(cell: Reproduction) -> list[str]:
    """How the reference kernels show that the machine is not as it was."""
    moved = kernel_change(cell.then, cell.now)
    if moved is None or abs(math.log(moved)) < math.log1p(STEADY):
        return []
    return [f"this machine has changed: its reference kernels take {moved:.2f} times as long now"]


def _what_it_takes(cell: Reproduction) -> str:
    if cell.then.outcome.status != cell.now.outcome.status:
        return f"not compared: {likeliest_reason(cell, [])}"
    unclear = [timed for timed in cell.changes if timed.word == "cannot tell"]
    if not unclear:
        return "answers or divergence are there on one side only, or against another reference"
    needed = [timed.processes_needed for timed in unclear]
    thens, nows = len(cell.then.measurements), len(cell.now.measurements)
    if nows == 1 and any(timed.change.low is None for timed in unclear):
        return "one process here: want --processes 5"
    if None in needed and thens == 1:
        return "the original has one process: run it with measure=standard, and reproduce that"
    if None in needed:
        return (
            "no number of processes here would tell: the original has too few, or the change lies"
            " at the margin"
        )
    return f"about {max(n for n in needed if n is not None)} processes here would tell: --processes"
