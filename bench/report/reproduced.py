"""What a reproduction found, in words, as a record on disk, and as MLflow's metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.analysis.differences import Difference
from bench.analysis.reproduction import (
    STEADY,
    Change,
    Reproduction,
    kernel_change,
    likeliest_reason,
    overall,
)

_NAMES = {"tpot_s": "TPOT", "ttft_s": "TTFT"}


def surroundings(elsewhere: Sequence[Difference]) -> list[str]:
    """What is different here, before anything is measured."""
    if not elsewhere:
        return ["machine, versions and code are as they were recorded"]
    return ["different here, what could matter most first:", *(f"  {each}" for each in elsewhere)]


def findings(
    found: Sequence[Reproduction], elsewhere: Sequence[Difference], margin: float
) -> list[str]:
    """The verdict, then each cell with its numbers, then what to know before trusting it."""
    said = [_verdict(found, margin)]
    for each in found:
        said += [
            f"{each.now.cell.label}: {each.word}",
            *(f"  {_sentence(change)}" for change in each.changes),
        ]
        said += [f"  {line}" for line in _exactness(each)]
        if each.word == "differs":
            said.append(f"  likeliest reason: {likeliest_reason(each, elsewhere)}")
        elif each.word == "cannot tell":
            said += [f"  {line}" for line in (_what_it_takes(each), *_unsteady(each))]
        said += [
            f"  warning: contaminated: {what} ({share:.0%})" for what, share in each.contamination
        ]
        said += [
            f"  warning: {_moved(change)}" for change in each.changes if _has_moved(change, margin)
        ]
    return said


def as_markdown(
    name: str, found: Sequence[Reproduction], elsewhere: Sequence[Difference], margin: float
) -> str:
    """The same as a file."""
    lines = [*surroundings(elsewhere), "", *findings(found, elsewhere, margin)]
    return "\n".join([f"# {name} once more: {overall(found)}", "", "```", *lines, "```", ""])


def as_record(
    name: str,
    found: Sequence[Reproduction],
    originals: Mapping[str, str],
    elsewhere: Sequence[Difference],
    margin: float,
) -> dict[str, Any]:
    """What MLflow is told, in JSON types; ``originals``: by cell_id, MLflow's runs of the
    original."""
    cells = {
        each.now.cell_id: {
            "verdict": each.word,
            "reproduces": originals.get(each.then.cell_id, name),
            "numbers": numbers(each),
        }
        for each in found
    }
    text = as_markdown(name, found, elsewhere, margin)
    return {"verdict": overall(found), "reproduces": name, "cells": cells, "text": text}


def numbers(found: Reproduction) -> dict[str, float]:
    """Metrics of a reproduced cell: how many times as long it takes now."""
    kernels = kernel_change(found.then, found.now)
    values = {} if kernels is None else {"reproduction/reference_kernels_ratio": kernels}
    for change in found.changes:
        name = f"reproduction/{change.metric.removesuffix('_s')}_ratio"
        values[name] = change.ratio
        values[f"{name}_of_medians"] = change.medians_ratio
        if change.low is not None and change.high is not None:
            values |= {f"{name}_low": change.low, f"{name}_high": change.high}
    return values


def _verdict(found: Sequence[Reproduction], margin: float) -> str:
    word, cells = overall(found), "" if len(found) == 1 else f" in each of {len(found)} cells"
    if not any(each.changes for each in found):
        return f"{word}: no number on both sides, so only how it ended was compared"
    if word == "reproduced":
        return (
            f"reproduced: undisturbed TTFT and TPOT are within {margin:.0%} of the"
            f" original's{cells}"
        )
    if word == "differs":
        return (
            f"differs: undisturbed TTFT or TPOT by more than {margin:.0%}, or what may not differ"
            " at all"
        )
    return (
        f"cannot tell whether undisturbed TTFT and TPOT are within {margin:.0%} of the"
        f" original's{cells}"
    )


def _sentence(change: Change) -> str:
    times = f"{change.then_s * 1e3:.2f} ms then, {change.now_s * 1e3:.2f} ms now (undisturbed)"
    said = f"{_NAMES[change.metric]}: {times}, {change.ratio:.3f} times as long"
    if change.low is None or change.high is None:
        return f"{said}: {change.word}"
    word: str = change.word
    if word == "cannot tell" and not change.low <= 1 <= change.high:
        word = "not the same, by how much cannot be told"
    return f"{said} ({change.low:.3f} to {change.high:.3f}): {word}"


def _has_moved(change: Change, margin: float) -> bool:
    return change.word != "differs" and abs(math.log(change.medians_ratio)) > math.log1p(margin)


def _moved(change: Change) -> str:
    when = "now" if change.medians_ratio > 1 else "then"
    medians = f"the medians of {_NAMES[change.metric]} are {change.medians_ratio:.2f} times as long"
    return (
        f"{medians}: requests were slowed down {when}, by neighbours or by what the quickest ones"
        " do not meet"
    )


def _exactness(each: Reproduction) -> list[str]:
    exact, said = each.exactness, []
    counts = (
        ("answers", exact.answers, exact.other_answers),
        ("windows of divergence", exact.windows, exact.other_windows),
    )
    for name, count, others in counts:
        if not count:
            continue
        equal = f"{count - others} of {count} {name} are equal to the last digit"
        said.append(
            equal
            if exact.promised
            else f"{equal}; on this device, or with these versions, nothing promises it"
        )
    return said


def _unsteady(each: Reproduction) -> list[str]:
    """What the reference kernels say of the machine, where it is not as it was."""
    moved = kernel_change(each.then, each.now)
    if moved is None or abs(math.log(moved)) < math.log1p(STEADY):
        return []
    return [
        f"this machine itself has changed: its reference kernels take {moved:.2f} times as long as"
        " then"
    ]


def _what_it_takes(each: Reproduction) -> str:
    then, now = each.then.outcome, each.now.outcome
    if then.status != now.status:
        return f"not compared: {likeliest_reason(each, [])}"
    open_ones = [change for change in each.changes if change.word == "cannot tell"]
    if not open_ones:
        return "answers or divergence are there on one side only, or against another reference"
    if any(change.low is None for change in open_ones):
        return "one process on each side: want --processes 5"
    needed = [change.processes_needed for change in open_ones]
    if None in needed:
        return (
            "no number of processes here would tell: the original has too few, or the change lies"
            " at the margin"
        )
    return f"about {max(n for n in needed if n is not None)} processes here would tell: --processes"
