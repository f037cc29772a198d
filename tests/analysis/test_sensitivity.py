"""What a study says, on studies small enough to compute in the head."""

import math
from dataclasses import replace

import pytest

from bench.analysis.allocation import Option
from bench.analysis.mixed import base_of, patterns
from bench.analysis.sensitivity import (
    agreement,
    bits_per_weight,
    factor,
    loss_a_weight,
    options,
    predicted_bytes,
    predicted_kl_nats,
    predicted_step_s,
    rank_correlation,
    ranked,
    sums,
)
from bench.record.sensitivity import Effect, Layer, Readings, Timing, Trial

UP, DOWN, V = (f"model.layers.0.{kind}" for kind in ("up_proj", "down_proj", "v_proj"))


def effect(*nats: float, size: int = 100, measured: tuple[float, ...] | None = None) -> Effect:
    return Effect(size, 0.1 + nats[0], 0.99, nats, measured)


def timing(*steps_s: float, **layers_s: float) -> Timing:
    by_layer = {f"model.layers.0.{kind}": seconds for kind, seconds in layers_s.items()}
    return Timing(steps_s, (1.0,), by_layer, by_layer)


def readings(**changes: object) -> Readings:
    """Three layers of 100, 100 and 50 weights. int4 loses 0.2, 0.6 and 0.2 nat, int8 a tenth."""
    losses = {UP: (0.2, 100), DOWN: (0.6, 100), V: (0.2, 50)}
    layers = [
        Layer(
            name,
            weights // 10,
            10,
            {
                "none": effect(0.0, 0.0, size=2 * weights),
                "int8": effect(loss / 10, loss / 10, size=weights),
                "int4": effect(loss * 0.5, loss * 1.5, size=weights // 2),
            },
        )
        for name, (loss, weights) in losses.items()
    ]
    timings = {
        "none": timing(1.0, 1.2, up_proj=0.4, down_proj=0.4, v_proj=0.1),
        "int8": timing(0.5, 0.5, up_proj=0.1, down_proj=0.2, v_proj=0.1),
        "int4": timing(0.6, 0.6, up_proj=0.1, down_proj=0.1, v_proj=0.1),
    }
    values: dict[str, object] = {
        "revision": None,
        "other_bytes": 1000,
        "layers": tuple(layers),
        "trials": (),
        "modules": (),
        "timings": timings,
    }
    return Readings(**values | changes)  # type: ignore[arg-type]


def trial(nats: float, schemes: dict[str, str]) -> Trial:
    return Trial("some", schemes, (nats, nats))


ALL = dict.fromkeys((UP, DOWN, V), "int4")


def test_layers_are_ranked_by_their_share() -> None:
    order = [(layer.name, share) for layer, share in ranked(readings(), "int4")]
    assert order[0] == (DOWN, pytest.approx(0.6))
    assert sum(share for _, share in order) == pytest.approx(1)
    # v_proj has a fifth of the loss and of the weights
    rates = loss_a_weight(readings(), "int4")
    assert list(rates) == ["down_proj", "v_proj", "up_proj"]
    assert rates["v_proj"] == pytest.approx(1.0)


def test_measured_losses_stand_before_estimates() -> None:
    some = readings()
    up = replace(some.layers[0], effects={"int4": effect(0.2, measured=(3.0,))})
    measured = replace(some, layers=(up, *some.layers[1:]))
    assert ranked(measured, "int4")[0][0].name == UP
    assert options(measured, ["int4"])[UP][0].loss_nats == 3.0


def test_options_are_those_that_a_layer_has() -> None:
    some = readings()
    plain = replace(some.layers[0], effects={"none": effect(0.0, size=200)})
    found = options(replace(some, layers=(plain, *some.layers[1:])), ["int4", "none"])
    assert [each.scheme for each in found[UP]] == ["none"]
    assert found[DOWN][0] == Option("int4", 50, pytest.approx(0.6), 0.1)


def test_sums_of_single_losses_beside_what_was_measured() -> None:
    some = readings(trials=(trial(2.0, ALL), trial(0.3, {UP: "int4"}), trial(0.0, {})))
    found = sums(some)
    assert [each.summed_nats for each in found] == pytest.approx([1.0, 0.2])
    assert [each.ratio for each in found] == pytest.approx([2.0, 1.5])
    scale = factor(found)
    assert scale.value == pytest.approx(math.sqrt(3))
    assert scale.low < 1.5
    assert scale.high > 2.0


def test_a_prediction_is_the_sum_times_the_factor() -> None:
    some = readings(trials=(trial(2.0, ALL), trial(0.4, {UP: "int4"}), trial(1.2, {DOWN: "int4"})))
    mixed = predicted_kl_nats(some, {UP: "int4", DOWN: "int8", V: "none"})
    assert mixed.value == pytest.approx(2 * (0.2 + 0.06))
    # sets agree: what is left is how the two windows differ, 0.16 and 0.36
    assert mixed.low < 2 * 0.16
    assert mixed.high > 2 * 0.36


def test_a_step_is_its_layers_and_what_the_steps_had_besides() -> None:
    """Besides: 0.1 and 0.3 s in the requests of none, 0.1 of int8, 0.3 of int4."""
    step = predicted_step_s(readings().timings, {UP: "none", DOWN: "int8", V: "int4"})
    assert step is not None
    assert step.value == pytest.approx(0.4 + 0.2 + 0.1 + (0.2 + 0.1 + 0.3) / 3)
    assert predicted_step_s(readings().timings, {"unheard": "int8"}) is None


def test_bytes_are_of_the_whole_model_and_bits_of_its_layers() -> None:
    chosen = {name: of[0] for name, of in options(readings(), ["int4"]).items()}
    assert predicted_bytes(readings(), chosen) == 1125
    assert bits_per_weight(readings(), 125) == 4.0


def test_ranks_take_ties_at_their_mean() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)


def test_agreement_needs_every_layer_measured() -> None:
    some = readings()
    assert agreement(some, "int4") is None
    exact = [
        replace(layer, effects={"int4": replace(layer.effects["int4"], measured_kl_nats=(k,))})
        for layer, k in zip(some.layers, (0.1, 0.9, 0.2), strict=True)
    ]
    found = agreement(replace(some, layers=tuple(exact)), "int4")
    assert found is not None
    assert (found.n, found.estimate) == (3, pytest.approx(math.sqrt(3) / 2))


def test_layers_of_one_name_are_one_pattern() -> None:
    schemes = {
        f"model.layers.{block}.{name}": "int4" for block in range(4) for name in ("up", "down", "o")
    }
    schemes |= {"model.layers.0.up": "int8", "model.layers.3.up": "int8"}
    schemes |= {f"model.layers.{block}.o": "none" for block in range(4)}
    schemes |= {"model.layers.2.down": "int8", "other": "int8"}
    assert base_of(schemes) == "int4"
    assert patterns(schemes) == {
        "model.layers.{0,3}.up": "int8",
        "model.layers.*.o": "none",
        "model.layers.2.down": "int8",
        "other": "int8",
    }
