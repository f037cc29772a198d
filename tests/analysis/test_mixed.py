"""Budgets become allocations: three layers of 100, 100 and 50 weights, computed in the head."""

from dataclasses import replace

import pytest

from bench.analysis.mixed import Budget, mixed, to_try
from bench.errors import ConfigError
from tests.analysis.test_sensitivity import ALL, DOWN, UP, V, readings, trial

BOTH = ["int4", "int8"]


def test_bits_are_of_the_layers_alone() -> None:
    """int8 for up_proj and v_proj together, or for down_proj, which saves more: 175 bytes."""
    best = mixed(readings(), BOTH, Budget(5.6, "bits", "5.6bits"), 0)[0]
    assert best.name == "mixed_5.6bits"
    assert best.schemes == {UP: "int4", DOWN: "int8", V: "int4"}
    assert best.stored_bytes == 1175
    assert best.bits_per_weight == pytest.approx(5.6)
    assert best.kl_nats.value == pytest.approx(0.2 + 0.06 + 0.2)


def test_bytes_are_of_the_whole_model() -> None:
    budget = Budget(1174, "bytes", "1174B")
    best = mixed(readings(), BOTH, budget, 0)[0]
    assert best.stored_bytes <= 1174
    assert best.schemes[DOWN] == "int4"


def test_nats_are_what_is_expected_of_the_set() -> None:
    """A whole model was measured at twice the sum, so 0.92 nats hold the set of 0.46."""
    some = readings(trials=(trial(2.0, ALL),))
    best = mixed(some, BOTH, Budget(0.92001, "nats", "0.92nats"), 0)[0]
    assert best.kl_nats.value <= 0.92001
    # int4 is faster in down_proj alone, where int8 is needed
    assert best.schemes[DOWN] == "int8"
    assert best.step_s is not None


def test_controls_take_no_more_bytes() -> None:
    found = mixed(readings(), BOTH, Budget(5.6, "bits", "5.6bits"), 0)
    assert [each.name for each in found] == [
        f"mixed_5.6bits{of}" for of in ("", "_uniform", "_random", "_inverted", "_ends")
    ]
    best, *controls = found
    for control in controls:
        assert control.stored_bytes <= best.stored_bytes
        assert control.kl_nats.value >= best.kl_nats.value


def test_a_control_of_one_scheme_is_no_cell_of_its_own() -> None:
    """int4 takes 4 bits, and the allocation itself is always tried."""
    between = mixed(readings(), BOTH, Budget(5.6, "bits", "5.6bits"), 0)
    assert to_try(between) == between
    least = mixed(readings(), BOTH, Budget(4, "bits", "4bits"), 0)
    assert [each.name for each in to_try(least)] == ["mixed_4bits"]


@pytest.mark.parametrize(
    ("budget", "least"),
    [
        (Budget(3, "bits", "3bits"), "4.00bits"),
        (Budget(1100, "bytes", "1100B"), "0.01MB"),
        (Budget(0.05, "nats", "0.05nats"), "0.1 nats"),
    ],
)
def test_what_cannot_be_kept_says_what_can(budget: Budget, least: str) -> None:
    with pytest.raises(ConfigError, match=rf"the least that int4, int8 can take is {least}"):
        mixed(readings(), BOTH, budget, 0)


def test_a_layer_that_no_scheme_holds_stays_as_published() -> None:
    some = readings()
    plain = {"none": some.layers[0].effects["none"]}
    partly = replace(some, layers=(replace(some.layers[0], effects=plain), *some.layers[1:]))
    (best,) = mixed(partly, BOTH, Budget(9, "bits", "9bits"), 0)
    assert best.schemes[UP] == "none"
    assert best.schemes[V] == "int4"


def test_a_model_as_published_loses_nothing() -> None:
    best = mixed(readings(), ["int4", "none"], Budget(16, "bits", "16bits"), 0)[0]
    assert set(best.schemes.values()) == {"none"}
    assert best.kl_nats.value == best.kl_nats.high == 0
