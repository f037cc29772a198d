"""Allocations against brute force, and the controls that they are judged by."""

import itertools
import math
import random

import pytest

from bench.analysis.allocation import (
    NoAllocation,
    Option,
    Options,
    allocate,
    block_of,
    controls,
    evenly,
    filled,
    from_the_ends,
    loss_nats,
    near_lossless,
    smallest,
    stored_bytes,
    time_s,
    total,
    uniform,
)

SCHEMES = ("int4_g128", "int4_g32", "int8", "none")


def drawn(seed: int, layers: int = 5) -> Options:
    """Layers of three shapes under four schemes; a larger scheme is usually better, not always."""
    draw = random.Random(seed)
    options = {}
    for layer in range(layers):
        weights = draw.choice([64, 192, 512])
        sensitivity = draw.lognormvariate(0, 2)
        options[f"model.layers.{layer}.up"] = [
            Option(
                scheme,
                weights * bits // 8 + draw.randint(0, 3),
                sensitivity * 4.0**-i * draw.uniform(0.5, 2) - 0.001,
                weights * draw.uniform(1, 2),
            )
            for i, (scheme, bits) in enumerate(zip(SCHEMES, (4, 5, 8, 16), strict=True))
        ]
    return options


def by_brute_force(options: Options, minimize, limited, budget: float) -> float:
    """The least total of any choice within the budget."""
    choices = (
        dict(zip(options, each, strict=True)) for each in itertools.product(*options.values())
    )
    return min(total(c, minimize) for c in choices if total(c, limited) <= budget)


def between(options: Options, cost, share: float) -> float:
    """A budget between the least and the most that the layers can take."""
    ends = [sum(of(map(cost, each)) for each in options.values()) for of in (min, max)]
    return ends[0] + share * (ends[1] - ends[0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_no_choice_within_the_bytes_loses_less(seed: int, share: float) -> None:
    options = drawn(seed)
    budget = between(options, stored_bytes, share)
    found = allocate(options, loss_nats, stored_bytes, budget)
    assert list(found) == list(options)
    assert total(found, stored_bytes) <= budget
    best = by_brute_force(options, loss_nats, stored_bytes, budget)
    assert total(found, loss_nats) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_within_the_loss_is_faster(seed: int) -> None:
    options = drawn(seed)
    budget = between(options, loss_nats, 0.2)
    found = allocate(options, time_s, loss_nats, budget)
    assert total(found, loss_nats) <= budget
    best = by_brute_force(options, time_s, loss_nats, budget)
    assert total(found, time_s) == pytest.approx(best, rel=1e-9)


def test_of_equal_schemes_a_layer_gets_the_smaller_one() -> None:
    options = {"a": [Option("none", 200, 0.5), Option("int8", 100, 0.5), Option("int4", 50, 0.7)]}
    assert allocate(options, loss_nats, stored_bytes, 1000)["a"].scheme == "int8"


def test_a_budget_is_kept_to_the_byte() -> None:
    """Where a solver's tolerance of a billion bytes would be some bytes."""
    options = {
        f"{i}": [Option("int4", 10**9 + i, 1.0 + i), Option("int8", 2 * 10**9 + 7 * i, 0.1)]
        for i in range(9)
    }
    exact = allocate(options, loss_nats, stored_bytes, 14 * 10**9 + 270)
    assert total(exact, stored_bytes) <= 14 * 10**9 + 270
    best = by_brute_force(options, loss_nats, stored_bytes, 14 * 10**9 + 270)
    assert total(exact, loss_nats) == pytest.approx(best)


def test_a_budget_below_the_smallest_choice_says_what_that_takes() -> None:
    options = drawn(0)
    least = sum(min(map(stored_bytes, of)) for of in options.values())
    with pytest.raises(NoAllocation) as raised:
        allocate(options, loss_nats, stored_bytes, least - 1)
    assert raised.value.least == least


def real(layers: int = 30) -> Options:
    """As many layers and shapes as a small model has."""
    draw = random.Random(1)
    shapes = {"q": (576, 576), "k": (192, 576), "gate": (1536, 576), "down": (576, 1536)}
    bits = {"int4_g128": 4.17, "int4_g32": 4.63, "int8": 8.06, "none": 16}
    return {
        f"model.layers.{block}.{name}": [
            Option(
                scheme,
                int(outputs * inputs * each / 8),
                draw.lognormvariate(0, 1.5) * 4.0 ** (4 - each),
            )
            for scheme, each in bits.items()
        ]
        for block in range(layers)
        for name, (outputs, inputs) in shapes.items()
    }


def test_controls_take_the_bytes_of_the_budget() -> None:
    options = real()
    budget = between(options, stored_bytes, 0.05)
    found = allocate(options, loss_nats, stored_bytes, budget)
    others = controls(options, "int4_g128", "int8", budget, seed=0)
    for name, control in others.items():
        assert 0.995 * budget < total(control, stored_bytes) <= budget
        assert total(control, loss_nats) > total(found, loss_nats)
        base = "int4_g32" if name == "uniform" else "int4_g128"
        assert {option.scheme for option in control.values()} == {base, "int8"}
    assert total(found, stored_bytes) > 0.995 * budget
    kept = [layer for layer, option in others["ends"].items() if option.scheme == "int8"]
    distances = {min(block, 29 - block) for block in map(block_of, kept)}
    assert distances == set(range(len(distances)))
    assert others["random"] != controls(options, "int4_g128", "int8", budget, seed=1)["random"]


@pytest.mark.parametrize("share", [0.1, 1 / 7, 1 / 3, 0.5, 0.9])
def test_uniform_gives_every_kind_and_depth_the_same_share(share: float) -> None:
    """Of two neighbouring schemes, whatever the layers lose."""
    options = {layer: list(of[1:3]) for layer, of in real().items()}
    budget = between(options, stored_bytes, share)
    found = evenly(options, budget)
    largest = max(of[1].stored_bytes - of[0].stored_bytes for of in options.values())
    assert budget - largest <= total(found, stored_bytes) <= budget
    for kind in ("q", "k", "gate", "down"):
        of = [o.scheme == "int8" for layer, o in found.items() if layer.endswith(f".{kind}")]
        assert sum(of) == pytest.approx(share * 30, abs=1.01)
        assert sum(of[:15]) == pytest.approx(share * 15, abs=1.51)


def test_uniform_is_one_scheme_where_that_takes_the_bytes() -> None:
    options = real()
    for scheme in ("int4_g128", "int4_g32", "none"):
        size = total(uniform(options, scheme), stored_bytes)
        assert evenly(options, size) == uniform(options, scheme)
    beyond = total(uniform(options, "none"), stored_bytes) + 10
    assert evenly(options, beyond) == uniform(options, "none")


def test_uniform_takes_no_scheme_that_a_smaller_one_beats() -> None:
    options = {
        f"{i}": [Option("nf4", 90, 1.0), Option("int4", 100, 2.0), Option("int8", 180, 0.1)]
        for i in range(9)
    }
    schemes = [option.scheme for option in evenly(options, 9 * 100).values()]
    assert (schemes.count("nf4"), schemes.count("int8")) == (8, 1)


def test_the_ends_come_first() -> None:
    layers = [f"model.layers.{i}.{name}" for i in range(4) for name in ("q", "up")]
    assert [layer.split(".")[2] for layer in from_the_ends(layers)] == list("00331122")


def test_inverted_is_the_opposite_of_worth() -> None:
    options = {
        "a": [Option("int4", 10, 1.0), Option("int8", 20, 0.0)],
        "b": [Option("int4", 10, 0.1), Option("int8", 20, 0.0)],
        "c": [Option("int4", 10, 5.0), Option("int8", 20, 0.0)],
    }
    inverted = controls(options, "int4", "int8", 40, seed=0)["inverted"]
    assert [option.scheme for option in inverted.values()] == ["int4", "int8", "int4"]


def test_a_layer_too_large_to_keep_is_passed_over() -> None:
    options = {
        "0.a": [Option("int4", 100, 1.0), Option("int8", 200, 0.0)],
        "1.b": [Option("int4", 10, 1.0), Option("int8", 20, 0.0)],
    }
    low, high = uniform(options, "int4"), uniform(options, "int8")
    assert [o.scheme for o in filled(["0.a", "1.b"], low, high, 130).values()] == ["int4", "int8"]


def test_what_controls_keep_layers_in() -> None:
    options = real()
    assert near_lossless(options, "int4_g128") == "int8"
    assert smallest(options) == "int4_g128"
    few = {layer: [o for o in of if o.scheme != "int8"] for layer, of in options.items()}
    assert near_lossless(few, "int4_g128") == "none"
    only = {layer: list(of[:2]) for layer, of in options.items()}
    assert near_lossless(only, "int4_g128") == "int4_g32"  # nothing is: the best there is
    partly = {layer: of[i % 2 :] for i, (layer, of) in enumerate(options.items())}
    assert smallest(partly) == "int4_g32"


def test_totals_are_exact_sums() -> None:
    allocation = {f"{i}": Option("int4", 1, 0.1) for i in range(10)}
    assert total(allocation, loss_nats) == math.fsum([0.1] * 10) == 1.0
