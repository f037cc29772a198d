"""When a process is warm, and when it has enough."""

import pytest

from bench.analysis.stopping import is_warm, why_stop
from bench.config.cell import Measure
from bench.record.measurement import Repeat
from tests import fakes


def measure(**changes: object) -> Measure:
    return fakes.cell(measure=fakes.group("measure", "quick", **changes)).measure


def requests(*seconds: float) -> list[Repeat]:
    """TTFT and each of two steps take so long."""
    return [Repeat(each, (each, each), 3 * each) for each in seconds]


@pytest.mark.parametrize(
    ("window", "seconds", "warm"),
    [
        (1, [1.0], False),
        (1, [2.0, 1.0], False),
        (1, [2.0, 1.0, 1.04], True),
        (1, [2.0, 1.0, 1.06], False),
        (2, [1.0, 1.0, 1.0], False),
        (2, [1.0, 1.0, 1.0, 1.0], True),
        # Medians: one slow request in a window does not matter
        (3, [9.0, 1.0, 1.0, 1.0, 1.0, 9.0], True),
    ],
)
def test_warm_is_when_two_windows_agree(window: int, seconds: list[float], warm: bool) -> None:
    assert is_warm(requests(*seconds), measure(window=window)) is warm


def test_both_times_must_agree() -> None:
    steady_prefill = [Repeat(1.0, (step, step), 1.0 + 2 * step) for step in (1.0, 2.0)]
    assert not is_warm(steady_prefill, measure())


STEADY = [1.0, 1.001, 0.999, 1.0, 1.0]
WILD = [1.0, 2.0, 0.5, 1.5, 0.7]


@pytest.mark.parametrize(
    ("seconds", "elapsed_s", "reason"),
    [
        (STEADY[:4], 1.0, None),  # no look yet
        (STEADY, 1.0, "target"),
        (WILD, 1.0, None),
        (WILD, 99.0, "budget"),
        (WILD[:4], 99.0, None),  # the first look is always reached
        (WILD + STEADY[:1], 99.0, "budget"),
        (WILD * 2, 1.0, None),
        (WILD * 8, 1.0, "repeats"),
        (STEADY * 8, 1.0, "target"),
    ],
)
def test_requests_end_at_a_look_that_shows_enough_or_when_time_or_number_is_up(
    seconds: list[float], elapsed_s: float, reason: str | None
) -> None:
    assert (
        why_stop(requests(*seconds), measure(target=0.05, budget_s=12, repeats=40), elapsed_s)
        == reason
    )


def test_a_fixed_number_is_kept_to() -> None:
    fixed = measure(target=None, budget_s=None, repeats=8)
    assert [why_stop(requests(*[1.0] * n), fixed, 1e9) for n in range(1, 9)] == [None] * 7 + [
        "repeats"
    ]


def test_one_time_that_is_known_is_not_enough() -> None:
    found = [Repeat(1.0, (step, step), 1.0 + 2 * step) for step in WILD]
    assert why_stop(found, measure(), 1.0) is None
