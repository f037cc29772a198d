"""Multiple choice: worse and better answers, McNemar's exact test, what a number of items shows."""

import numpy as np
import pytest
from scipy import stats

from bench.analysis.choices import (
    POWER,
    Flips,
    flips,
    flips_of,
    is_distinguishable,
    is_right,
    mcnemar_p,
    power,
    sentence,
    smallest_difference,
)
from bench.analysis.comparison import compare
from bench.analysis.metrics import derive, in_words
from bench.analysis.stats import share_interval
from bench.record.measurement import Choice
from bench.record.result import Result
from tests import fakes

RIGHT, WRONG, WORSE_STILL = (
    Choice(1, nats) for nats in ((-3.0, -1.0, -2.0), (-1.0, -2.0, -3.0), (-3.0, -2.0, -1.0))
)
AT_FLOOR = [fakes.window(kl_nats=0.125 + d) for d in (-0.01, 0.0, 0.01)]
ABOVE = [fakes.window(kl_nats=0.5 + d) for d in (-0.01, 0.0, 0.01)]


def judged(
    ours: tuple[Choice, ...], theirs: tuple[Choice, ...], above: bool, quant: str = "nf4"
) -> Result:
    windows = tuple(ABOVE if above else AT_FLOOR)
    divergence = fakes.divergence(*windows, choices=theirs)
    cell = fakes.resolved(quant=quant)
    return fakes.result(cell=cell, divergence=divergence, choices=ours)


def test_the_likeliest_continuation_is_the_answer() -> None:
    assert [is_right(each) for each in (RIGHT, WRONG, WORSE_STILL)] == [True, False, False]


def test_answers_become_worse_better_or_another_wrong_one() -> None:
    ours = (RIGHT, WRONG, RIGHT, WORSE_STILL, WRONG, WRONG)
    theirs = (RIGHT, RIGHT, WRONG, WRONG, WRONG, RIGHT)
    found = flips(ours, theirs)
    assert found == Flips(items=6, worse=2, better=1, between_wrong=1)
    assert found.changed == 4


@pytest.mark.parametrize(
    ("worse", "better"), [(0, 0), (1, 0), (5, 0), (0, 6), (24, 17), (30, 11), (7, 7), (100, 140)]
)
def test_p_is_scipys_binomial_test(worse: int, better: int) -> None:
    both = worse + better
    wanted = stats.binomtest(worse, both, 0.5).pvalue if both else 1.0
    assert mcnemar_p(worse, better) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("count", "n"), [(0, 20), (20, 20), (3, 20), (41, 256)])
def test_an_interval_of_a_share_is_clopper_and_pearsons(count: int, n: int) -> None:
    wanted = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    found = share_interval(count, n, 0.95)
    assert (found.value, found.n) == (count / n, n)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_power_is_what_simulated_sets_show() -> None:
    items, share, difference = 256, 0.16, 0.07
    worse = (share + difference) / 2
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(items, [worse, share - worse, 1 - share], 20_000)
    found = np.mean([mcnemar_p(int(w), int(b)) < 0.05 for w, b, _ in drawn])
    assert power(items, share, difference) == pytest.approx(found, abs=0.01)
    # With nothing to find, an exact test is wrong in at most one of twenty
    assert 0.02 < power(items, share, 0.0) < 0.05


def test_the_smallest_difference_is_found_four_times_out_of_five() -> None:
    found = smallest_difference(256, 41)
    assert power(256, 41 / 256, found) == pytest.approx(POWER, abs=1e-6)
    # Large sets: sqrt(share / items) x (1.96 + 0.84), the usual formula (Connor 1987)
    assert found == pytest.approx(2.8 * (41 / 256 / 256) ** 0.5, rel=0.05)
    assert smallest_difference(256, 10) < found < smallest_difference(64, 10)
    # Without a change seen: six that are all worse are the fewest that show
    wanted = stats.binom.sf(5, 256, smallest_difference(256, 0))
    assert wanted == pytest.approx(POWER, abs=1e-6)
    assert smallest_difference(5, 1) == pytest.approx(1.0)  # five items show nothing at all


def test_the_verdict_in_words() -> None:
    assert sentence(Flips(256, 24, 17, 0)) == (
        "41 of 256 answers change: 24 worse, 17 better; no difference can be shown (p = 0.35;"
        " 256 items would show 7.2 points)"
    )
    assert sentence(Flips(256, 30, 9, 5)) == (
        "44 of 256 answers change: 30 worse, 9 better, 5 from wrong to wrong; 8.2 points worse"
        " (p = 0.0011)"
    )
    assert sentence(Flips(256, 9, 30, 0)).endswith("; 8.2 points better (p = 0.0011)")
    assert sentence(Flips(256, 0, 0, 0)).startswith("0 of 256 answers change; no difference")


def test_not_distinguishable_takes_a_divergence_at_the_floor_and_no_shown_difference() -> None:
    same, worse = ((RIGHT,) * 40, (RIGHT,) * 40), ((WRONG,) * 40, (RIGHT,) * 40)
    assert is_distinguishable(judged(*same, above=False)) is False
    assert is_distinguishable(judged(*same, above=True)) is True
    assert is_distinguishable(judged(*worse, above=False)) is True
    assert is_distinguishable(judged((), (), above=False)) is False  # the divergence alone
    assert is_distinguishable(fakes.result()) is None
    # A single window tells nothing
    assert is_distinguishable(fakes.result(divergence=fakes.divergence(fakes.window()))) is None


def test_it_stands_in_metrics_words_and_notes() -> None:
    ours, theirs = (*(RIGHT,) * 38, *(WRONG,) * 2), (RIGHT,) * 40
    result = judged(ours, theirs, above=False)
    values = derive(result)
    assert (values["choice_accuracy"], values["reference_choice_accuracy"]) == (0.95, 1.0)
    assert (values["choice_flips"], values["choice_flips_worse"]) == (0.05, 2)
    assert (values["choice_flips_better"], values["choice_p"]) == (0, 0.5)
    assert values["choice_accuracy_low"] < 0.95 < values["choice_accuracy_high"]
    said = sentence(Flips(40, 2, 0, 0))
    words = in_words(result, values)
    assert said in words
    assert words.endswith("not distinguishable from unquantized")
    findings = compare([result], fakes.sweep()).findings
    assert [f.sentence for f in findings if f.kind == "quality"] == [f"multiple choice: {said}"]
    (doubt,) = [f.sentence for f in findings if f.sentence.startswith("not distinguishable")]
    assert doubt.endswith("and multiple choice shows no difference")


def test_without_a_reference_there_is_an_accuracy_alone() -> None:
    result = fakes.result(choices=(RIGHT, WRONG))
    values = derive(result)
    assert flips_of(result) is None
    assert values["choice_accuracy"] == 0.5
    assert not [key for key in values if "flips" in key]
