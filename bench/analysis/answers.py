"""How an answer differs from the reference's, token by token, and whether it fell into a loop.

Greedy answers of two models are equal until the first position at which their most likely tokens
differ; from there on they follow different texts, so what comes after says less than where it
began.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.record.measurement import Sample

_LEAST_LOOP = 8  # tokens: shorter repetitions are style
_TIMES = 3


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """One answer beside the reference's."""

    # Position of the first token that differs, from 0; None: the answers are equal
    first_difference: int | None
    equal_share: float  # of the positions of the longer one, those with the same token
    is_loop: bool
    is_empty: bool


def compare_answers(ours: Sample, theirs: Sample) -> AnswerDifference:
    """Two answers to one prompt."""
    longest = max(len(ours.tokens), len(theirs.tokens))
    equal = [a == b for a, b in zip(ours.tokens, theirs.tokens, strict=False)]
    shorter = len(equal)
    first = next(
        (i for i, same in enumerate(equal) if not same), None if shorter == longest else shorter
    )
    return AnswerDifference(
        first,
        sum(equal) / longest if longest else 1.0,
        is_loop(ours.tokens),
        not ours.answer.strip(),
    )


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the end says the same thing three times over, in at least 8 tokens."""
    for period in range(1, len(tokens) // _TIMES + 1):
        length = max(_TIMES * period, _LEAST_LOOP)
        tail = tokens[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False
