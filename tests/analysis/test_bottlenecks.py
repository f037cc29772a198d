"""Shares of a decode step, and the word for the largest, from profiles written by hand."""

from collections.abc import Mapping

import pytest

from bench.analysis.bottlenecks import bottleneck, bottlenecks, step_shares
from bench.record.measurement import Measurement, PhaseProfile, Repeat
from bench.record.result import Result
from tests import fakes

STEADY = (Repeat(1.0, (0.5, 0.5, 0.5), 2.5),) * 3


def profiled(seconds: Mapping[str, float], steps: int = 1) -> Measurement:
    """A process whose TPOT is 0.5 s, with a profile of so many steps."""
    profile = PhaseProfile("decode", sum(seconds.values()), steps, seconds)
    return fakes.measurement(step_profile=profile, repeats=STEADY)


def of(*processes: Measurement) -> Result:
    profiles = [measured.step_profile for measured in processes]
    replicates = tuple(fakes.process(step_profile=each, repeats=STEADY) for each in profiles)
    return fakes.result(replicates=replicates)


def test_what_the_timed_step_takes_beyond_its_operators_is_the_interpreter() -> None:
    # The profiled step took 0.9 s, the timed one 0.5: the profiler is slow where Python is
    shares = step_shares(profiled({"matrix product": 0.2, "interpreter": 0.6, "other": 0.1}))
    assert shares == pytest.approx(
        {"matrix products": 0.4, "other operators": 0.2, "interpreter": 0.4}
    )


def test_kinds_that_one_remedy_is_for_are_one_cause() -> None:
    shares = step_shares(
        profiled(
            {
                "matrix product": 0.2,
                "product with packed weights": 0.2,
                "dequantization": 0.2,
                "activations to int8": 0.2,
                "attention": 0.1,
                "cache copies": 0.1,
            },
            steps=2,
        )
    )
    assert shares == pytest.approx(
        {"matrix products": 0.4, "dequantization": 0.4, "attention": 0.2, "interpreter": 0.0}
    )


def test_a_device_that_idles_waits_for_the_interpreter() -> None:
    shares = step_shares(profiled({"attention": 0.1, "idle": 0.4}))
    assert shares == pytest.approx({"attention": 0.2, "interpreter": 0.8})


def test_operators_that_take_longer_than_the_timed_step_leave_nothing_over() -> None:
    shares = step_shares(profiled({"attention": 0.9, "sampling": 0.1}))
    assert shares == pytest.approx({"attention": 0.9, "other operators": 0.1, "interpreter": 0.0})


def test_the_word_is_the_largest_share_s_unless_another_is_as_large() -> None:
    clear = bottleneck({"attention": 0.45, "interpreter": 0.39, "matrix products": 0.16})
    assert (clear.name, clear.text) == ("attention", "attention 45%")
    assert clear.evidence == "attention 45%, interpreter 39%, matrix products 16%"
    level = bottleneck({"attention": 0.42, "interpreter": 0.38, "matrix products": 0.2})
    assert (level.name, level.text) == ("unclear", "unclear")
    assert bottleneck({"attention": 1.0}).name == "attention"


def test_shares_are_averaged_over_the_processes_of_a_cell() -> None:
    found = bottlenecks(
        [of(profiled({"attention": 0.5}), profiled({"matrix product": 0.2, "attention": 0.3}))]
    )
    (only,) = found.values()
    assert only.shares == pytest.approx(
        {"attention": 0.8, "matrix products": 0.2, "interpreter": 0.0}
    )


def test_a_cell_without_a_profile_has_no_word() -> None:
    without = fakes.measurement(step_profile=None)
    assert bottlenecks([fakes.result(measurement=without)]) == {}
    assert step_shares(without) is None
