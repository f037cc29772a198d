"""What configurations answer, beside what the reference answers: prompts whose answers changed most come first."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean

from bench.analysis.answers import compare_answers
from bench.analysis.compare import coordinate
from bench.measurement import Sample
from bench.result import Result

_CHANGE_NO_ANSWER = ("batch", "workload")  # one cell answers for all that differ in these alone


@dataclass(frozen=True, slots=True)
class Told:
    """One answer: what it has in common with the reference's from the beginning, and where it goes on by itself."""

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
    """Of every configuration that answered; empty without answers or without a reference."""
    own = [r for r in results if r.samples and r.divergence is not None and r.samples_from in (None, r.cell_id)]
    if not own or own[0].divergence is None:
        return []
    found = []
    for theirs in own[0].divergence.answers:
        told, shares = [Told(f"reference, {own[0].divergence.reference}", theirs.answer, "", "")], []
        for result in own:
            for ours in (sample for sample in result.samples if sample.prompt == theirs.prompt):
                told.append(_told(_who(result, columns), ours, theirs))
                shares.append(compare_answers(ours, theirs).equal_share)
        found.append((fmean(shares), Asked(theirs.prompt, tuple(told))))
    return [asked for _, asked in sorted(found, key=lambda pair: pair[0])]


def _told(who: str, ours: Sample, theirs: Sample) -> Told:
    compared = compare_answers(ours, theirs)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours.answer, theirs.answer, strict=False)))
    remarks = ["in a loop"] * compared.is_loop + ["empty"] * compared.is_empty
    remarks.append("equal" if compared.first_difference is None else f"{compared.equal_share:.0%} of tokens equal")
    return Told(who, ours.answer[:length], ours.answer[length:], ", ".join(remarks))


def _who(result: Result, columns: Sequence[str]) -> str:
    names = [coordinate(result.cell, column) for column in columns if column not in _CHANGE_NO_ANSWER]
    return " ".join(names) or result.cell.quant.name
