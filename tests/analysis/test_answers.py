"""Answers beside the reference's: where they part, and what a loop is."""

import pytest

from bench.analysis.answers import AnswerDifference, compare_answers, is_loop
from bench.record.measurement import Sample
from tests import fakes


def test_equal_answers_differ_nowhere() -> None:
    assert compare_answers(fakes.sample(1, 2, 3), fakes.sample(1, 2, 3)) == AnswerDifference(
        None, 1.0, False, False
    )


def test_what_is_equal_after_the_first_difference_still_counts_as_equal() -> None:
    found = compare_answers(fakes.sample(1, 9, 3, 9), fakes.sample(1, 2, 3, 4))
    assert (found.first_difference, found.equal_share) == (1, 0.5)


@pytest.mark.parametrize(("ours", "theirs"), [((1, 2), (1, 2, 3, 4)), ((1, 2, 3, 4), (1, 2))])
def test_an_answer_that_ends_earlier_differs_where_it_ends(
    ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    found = compare_answers(fakes.sample(*ours), fakes.sample(*theirs))
    assert (found.first_difference, found.equal_share) == (2, 0.5)


def test_an_answer_of_blanks_is_empty() -> None:
    assert compare_answers(Sample("why?", " \n", (7,), True), fakes.sample(1)).is_empty
    assert not compare_answers(fakes.sample(7), Sample("why?", "", (), True)).is_empty
    assert (
        compare_answers(Sample("why?", "", (), True), Sample("why?", "", (), True)).equal_share
        == 1.0
    )


@pytest.mark.parametrize(
    "tokens", [[5] * 8, [1, 2, 3, *[4, 5, 6] * 3], [9, *[1, 2] * 4], list(range(20)) * 3]
)
def test_a_loop_says_its_end_three_times_over(tokens: list[int]) -> None:
    assert is_loop(tokens)


@pytest.mark.parametrize(
    "tokens", [[], [5] * 7, [1, 2, 3, 4, 5, 6] * 2, [*[4, 5, 6] * 3, 7], list(range(40))]
)
def test_style_is_no_loop(tokens: list[int]) -> None:
    assert not is_loop(tokens)
