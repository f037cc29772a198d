"""Divergence: its intervals by hand. Answers beside the reference's: where they part, and loops."""

import math

import pytest

from bench.analysis.advice import Limits, advise
from bench.analysis.comparison import compare
from bench.analysis.divergence import (
    AnswerDifference,
    by_text,
    compare_answers,
    estimates,
    is_above_floor,
    is_at_floor,
    is_loop,
    ranked_kl_nats,
)
from bench.analysis.metrics import derive
from bench.analysis.stats import t_quantile
from bench.record.measurement import Sample
from bench.record.result import Result
from tests import fakes


def test_intervals_are_student_s_over_windows_and_paired() -> None:
    found = fakes.divergence(
        fakes.window(kl_nats=0.1, nll_nats=1.2, reference_nll_nats=1.0),
        fakes.window(kl_nats=0.3, nll_nats=3.2, reference_nll_nats=3.0),
    )
    half = t_quantile(0.975, 1) * math.sqrt(0.02) / math.sqrt(2)
    kl = estimates(found)["kl_nats"]
    assert (kl.value, kl.low, kl.high, kl.n) == (
        pytest.approx(0.2),
        pytest.approx(0.2 - half),
        pytest.approx(0.2 + half),
        2,
    )
    # 0.2 nats in each window, however different the windows are
    ratio = estimates(found)["perplexity_ratio"]
    assert (ratio.low, ratio.high) == (pytest.approx(math.exp(0.2)), pytest.approx(math.exp(0.2)))


def test_above_the_floor_is_told_window_by_window() -> None:
    # The floor moves with the window: unpaired, these would overlap.
    clear = fakes.divergence(
        *(fakes.window(kl_nats=base + 0.01, floor_kl_nats=base) for base in (0.1, 0.5, 0.9))
    )
    unclear = fakes.divergence(
        *(fakes.window(kl_nats=0.1 + d, floor_kl_nats=0.1) for d in (-0.05, 0.02, 0.06))
    )
    assert is_above_floor(clear)
    assert not is_above_floor(unclear)


def test_what_is_at_the_floor_has_no_order() -> None:
    less, more = (fakes.spread_divergence(kl) for kl in (0.120, 0.126))
    assert is_at_floor(less)
    assert is_at_floor(more)
    assert ranked_kl_nats(less) == ranked_kl_nats(more) == 0.0
    assert ranked_kl_nats(fakes.spread_divergence(0.5)) == pytest.approx(0.5)
    assert math.isnan(ranked_kl_nats(None))
    # One window cannot tell, so it is taken as it is
    assert ranked_kl_nats(fakes.divergence(fakes.window(kl_nats=0.01))) == 0.01


def diverging(*kl_nats: float) -> list[Result]:
    """Cells that are alike in all but their divergence."""
    quants = ("fp16", "bf16", "nf4")
    return [
        fakes.result(cell=fakes.resolved(quant=quant), divergence=fakes.spread_divergence(kl))
        for quant, kl in zip(quants, kl_nats, strict=False)
    ]


def test_a_divergence_at_the_floor_dominates_no_other_there() -> None:
    alike = diverging(0.126, 0.120)
    assert compare(alike, fakes.sweep()).front == [result.cell_id for result in alike]
    one, other, worse = diverging(0.126, 0.120, 0.5)
    front = compare([one, other, worse], fakes.sweep()).front
    assert front == [one.cell_id, other.cell_id]


@pytest.mark.parametrize("limit", [0.0, 0.123, 0.2])
def test_no_limit_parts_two_cells_at_the_floor(limit: float) -> None:
    one, other, worse = diverging(0.126, 0.120, 0.5)
    draws = compare([one, other, worse], fakes.sweep()).plausible
    advice = advise(draws, Limits(max_kl_nats=limit), "tpot", 0.03)
    assert {*advice.in_question} == {one.cell_id, other.cell_id}
    assert advice.best in advice.in_question


def test_texts_are_told_apart_where_there_are_several() -> None:
    two = fakes.divergence(fakes.window(kl_nats=0.2), fakes.window(text="code", kl_nats=0.6))
    assert {text: values["kl_nats"].value for text, values in by_text(two).items()} == {
        "alice": 0.2,
        "code": 0.6,
    }
    metrics = derive(fakes.result(divergence=two))
    assert (metrics["kl_nats"], metrics["kl_nats_alice"], metrics["kl_nats_code"]) == (
        pytest.approx(0.4),
        0.2,
        0.6,
    )
    assert by_text(fakes.divergence()) == {}


def test_one_window_has_no_interval() -> None:
    metrics = derive(fakes.result(divergence=fakes.divergence(fakes.window())))
    assert metrics["kl_nats"] == 0.5
    assert "kl_nats_low" not in metrics


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
