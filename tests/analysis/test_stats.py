"""Intervals against hand-computed values."""

import itertools
import math

import numpy as np
import pytest

from bench.analysis.stats import (
    expected_least,
    geometric_interval,
    is_narrow,
    look_level,
    looks,
    median_interval,
    outliers,
    readings_needed,
    t_quantile,
)


def test_students_t_is_the_tables() -> None:
    assert t_quantile(0.975, 4) == pytest.approx(2.776, abs=5e-4)  # any textbook
    assert t_quantile(0.95, 1) == pytest.approx(6.314, abs=5e-4)


def test_an_interval_is_symmetric_in_ratios() -> None:
    # Logs 0 and 2 ln 2: mean ln 2, standard error ln 2
    found = geometric_interval([1.0, 4.0], 0.95)
    assert found.value == pytest.approx(2.0)
    assert math.log(found.high / 2) == pytest.approx(12.7062 * math.log(2), rel=1e-5)
    assert found.low * found.high == pytest.approx(4.0)
    assert found.n == 2


def test_one_reading_has_an_unbounded_interval() -> None:
    found = geometric_interval([3.0], 0.95)
    assert (found.value, found.low, found.high) == (3.0, 0.0, math.inf)


def test_an_interval_holds_as_often_as_it_says() -> None:
    draws = np.exp(np.random.default_rng(1).normal(0.0, 0.1, size=(4000, 5)))
    held = sum(
        found.low <= 1 <= found.high
        for found in (geometric_interval(list(row), 0.95) for row in draws)
    )
    assert 0.94 <= held / 4000 <= 0.96


@pytest.mark.parametrize(
    ("repeats", "at"),
    [
        (1, (1,)),
        (2, (2,)),
        (5, (5,)),
        (8, (5, 8)),
        (10, (5, 10)),
        (40, (5, 10, 20, 40)),
        (41, (5, 10, 20, 40, 41)),
    ],
)
def test_looks_double_and_end_with_the_last_repeat(repeats: int, at: tuple[int, ...]) -> None:
    assert looks(repeats) == at
    assert look_level(repeats) == pytest.approx(1 - 0.05 / len(at))


def test_stopping_at_the_looks_keeps_the_level_and_stopping_whenever_it_is_narrow_does_not() -> (
    None
):
    """2,000 processes of 40 requests each; both rules stop at the first interval within 5 %."""
    draws = np.exp(np.random.default_rng(2).normal(0.0, 0.08, size=(2000, 40)))

    def holds(row: list[float], at: tuple[int, ...], level: float) -> bool:
        stop = next((n for n in at if is_narrow(row[:n], 0.05, level)), at[-1])
        found = geometric_interval(row[:stop], level)
        return found.low <= 1 <= found.high

    rows = [list(map(float, row)) for row in draws]
    by_looks = sum(holds(row, looks(40), look_level(40)) for row in rows) / len(rows)
    whenever = sum(holds(row, tuple(range(2, 41)), 0.95) for row in rows) / len(rows)
    assert by_looks >= 0.95
    assert whenever < 0.90


def test_narrow_is_about_the_upper_half_width() -> None:
    assert is_narrow([1.0, 1.001, 0.999, 1.0], 0.01, 0.95)
    assert not is_narrow([1.0, 1.1, 0.9, 1.0], 0.01, 0.95)
    assert not is_narrow([1.0], 0.5, 0.95)


def test_outliers_are_found_by_the_modified_z_score() -> None:
    # logs about 0: median 0, median absolute deviation 0.01; the score of ln 1.06 is 0.6745 x
    # 0.0583 / 0.01 = 3.93
    values = [math.exp(x) for x in (-0.02, -0.01, 0.0, 0.01, 0.02, 0.0, 0.01)]
    assert outliers([*values, 1.06]) == [7]
    assert outliers([*values, 1.05]) == []  # 3.29
    assert outliers([1.0, 1.0, 1.0, 9.0]) == []  # no spread to compare with


def test_a_quantile_takes_the_readings_that_a_theorem_says() -> None:
    assert [readings_needed(q) for q in (0.5, 0.9, 0.95, 0.99)] == [5, 29, 59, 299]
    assert 0.99**299 <= 0.05 < 0.99**298


def test_the_expected_least_is_the_mean_over_all_choices() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    for count in range(1, 6):
        choices = list(itertools.combinations(values, count))
        wanted = sum(map(min, choices)) / len(choices)
        assert expected_least(values, count) == pytest.approx(wanted)
    assert expected_least(values, 5) == 1.0
    assert expected_least(values, 1) == pytest.approx(18.5 / 5)


def test_a_median_lies_between_two_of_its_readings() -> None:
    # Binomial, n = 10: P(at most 1 head) = 0.0107, at most 2: 0.0547; so the 2nd and the 9th
    assert median_interval(list(range(10)), 0.95) == (1, 8)
    assert median_interval([5.0, 1.0, 3.0], 0.95) == (1.0, 5.0)  # too few: all that was read
    rng = np.random.default_rng(0)
    held = [low < 0 < high for low, high in _intervals(rng)]
    assert sum(held) / len(held) >= 0.95


def _intervals(rng: np.random.Generator) -> list[tuple[float, float]]:
    """Of 1,000 samples of 20 from a skewed distribution with median 0."""
    readings = rng.exponential(size=(1000, 20)) - math.log(2)
    return [median_interval(row.tolist(), 0.95) for row in readings]
