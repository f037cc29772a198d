"""What configurations answer, beside what the reference answers: prompts whose answers changed most
come first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean

from bench.analysis.answers import compare_answers
from bench.analysis.comparison import coordinate
from bench.record.measurement import Sample
from bench.record.result import Result

_CHANGE_NO_ANSWER = ("batch", "workload")  # one cell answers for all that differ in these alone


@dataclass(frozen=True, slots=True)
class Told:
    """One answer: what it has in common with the reference's from the beginning, and where it goes
    on by itself."""

    who: str
    same: str
    differs: str
    remarks: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt with all its answers, the reference's first."""

    prompt: str
    answers: tuple[Told, ...]


def side_by_side(results: Sequence[Result], columns: Sequence[str]) -> list[Asked]:
    """Of every configuration that answered, beside its own reference; empty without answers or
    without a reference."""
    here = {result.cell_id for result in results}
    found: dict[tuple[str, Sample], list[tuple[float, Told]]] = {}
    for result in results:
        is_copy = result.samples_from in here - {result.cell_id}
        if result.divergence is None or is_copy:
            continue
        ours = {sample.prompt: sample for sample in result.samples}
        who = f"{result.cell.model.name}, {result.divergence.reference}"
        for theirs in result.divergence.answers:
            if theirs.prompt in ours:
                share = compare_answers(ours[theirs.prompt], theirs).equal_share
                told = share, _told(_who(result, columns), ours[theirs.prompt], theirs)
                found.setdefault((who, theirs), []).append(told)
    asked = [
        (
            fmean(share for share, _ in told),
            Asked(theirs.prompt, (_reference(who, theirs), *(each for _, each in told))),
        )
        for (who, theirs), told in found.items()
    ]
    return [each for _, each in sorted(asked, key=lambda pair: pair[0])]


def _reference(who: str, theirs: Sample) -> Told:
    return Told(f"reference ({who})", theirs.answer, "", "")


def _told(who: str, ours: Sample, theirs: Sample) -> Told:
    compared = compare_answers(ours, theirs)
    length = sum(
        1
        for _ in takewhile(
            lambda pair: pair[0] == pair[1], zip(ours.answer, theirs.answer, strict=False)
        )
    )
    remarks = ["in a loop"] * compared.is_loop + ["empty"] * compared.is_empty
    if len(ours.answer) < len(theirs.answer) and length == len(ours.answer):
        remarks.append("ends earlier")
    remarks.append(
        "equal"
        if compared.first_difference is None
        else f"{compared.equal_share:.0%} of tokens equal"
    )
    return Told(who, ours.answer[:length], ours.answer[length:], ", ".join(remarks))


def _who(result: Result, columns: Sequence[str]) -> str:
    names = [
        coordinate(result.cell, column) for column in columns if column not in _CHANGE_NO_ANSWER
    ]
    return " ".join(names) or result.cell.quant.name
