"""What configurations answer, beside what the reference answers: prompts whose answers changed most
come first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean

from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.divergence import compare_answers
from bench.config.cell import sample_key
from bench.record.measurement import Sample
from bench.record.result import Result

_AXES_WITH_SAME_ANSWERS = ("batch", "workload")


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer: what it has in common with the reference's from the beginning, and where it goes
    on by itself."""

    who: str
    same: str
    differs: str
    remarks: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt with all its answers, the reference's first."""

    prompt: str
    answers: tuple[Shown, ...]


def side_by_side(comparison: Comparison) -> list[Prompt]:
    """Of every configuration that answered, beside its own reference; empty without answers or
    without a reference. A report is tracked: what is not to be stored is not in it."""
    seen: set[str] = set()  # cells with one sample key have the same answers
    prompts: dict[tuple[str, Sample], list[tuple[float, Shown]]] = {}
    for result in comparison.results:
        key = sample_key(result.cell)
        if result.divergence is None or key in seen or not result.cell.quality.store_prompts:
            continue
        seen.add(key)
        ours = {sample.prompt: sample for sample in result.samples}
        reference = f"reference ({result.cell.model.name}, {result.divergence.reference})"
        who = _who(result, comparison.columns)
        for theirs in result.divergence.answers:
            if theirs.prompt in ours:
                share, shown = _shown(who, ours[theirs.prompt], theirs)
                prompts.setdefault((reference, theirs), []).append((share, shown))
    by_change = sorted(prompts.items(), key=lambda prompt: fmean(share for share, _ in prompt[1]))
    return [
        Prompt(
            theirs.prompt,
            (Shown(reference, theirs.answer, "", ""), *(shown for _, shown in answers)),
        )
        for (reference, theirs), answers in by_change
    ]


def _shown(who: str, ours: Sample, theirs: Sample) -> tuple[float, Shown]:
    """With the share of tokens that are the reference's."""
    difference = compare_answers(ours, theirs)
    pairs = zip(ours.answer, theirs.answer, strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    remarks = ["in a loop"] * difference.is_loop + ["empty"] * difference.is_empty
    if length == len(ours.answer) < len(theirs.answer):
        remarks.append("ends earlier")
    is_equal = difference.first_difference is None
    remarks.append("equal" if is_equal else f"{difference.equal_share:.0%} of tokens equal")
    shown = Shown(who, ours.answer[:length], ours.answer[length:], ", ".join(remarks))
    return difference.equal_share, shown


def _who(result: Result, columns: Sequence[str]) -> str:
    names = [
        coordinate(result.cell, column)
        for column in columns
        if column not in _AXES_WITH_SAME_ANSWERS
    ]
    return " ".join(names) or result.cell.quant.name
