"""A study in words: what stands first, and what its numbers say."""

from dataclasses import replace

import pytest

from bench.report.sensitivity import findings
from tests.analysis.test_sensitivity import ALL, DOWN, readings, timing, trial


def test_the_layers_and_how_far_to_trust_them_come_first() -> None:
    some = readings(trials=(trial(1.5, ALL), trial(0.3, {DOWN: "int4"})))
    first, second, *_ = findings(some, "int4")
    assert first.startswith(f"1 of 3 layers carry 60% of the loss under int4; the most: {DOWN} 60%")
    assert "2 sets quantized together: measured is 0.50 to 1.50 times the sum" in second


def test_all_schemes_have_one_line_of_what_is_slower() -> None:
    times = {
        "none": timing(1.0, up_proj=0.2, down_proj=0.2, v_proj=0.1),
        "int8": timing(1.0, up_proj=0.2, down_proj=0.6, v_proj=0.2),
        "int4": timing(1.0, up_proj=0.1, down_proj=0.3, v_proj=0.1),
    }
    (said,) = (s for s in findings(readings(timings=times), "int4") if "slower" in s)
    assert said.endswith(
        "than unquantized: int8 2 of 3, down_proj most (3.0x); int4 1 of 3, down_proj most (1.5x)"
    )
    assert not [s for s in findings(readings(), "int4") if "slower" in s]


@pytest.mark.parametrize(("measured", "said"), [((0.1, 0.9, 0.2), "0.87"), ((9, 0.1, 8), "-0.87")])
def test_how_well_estimates_rank_is_said_where_layers_were_measured(
    measured: tuple[float, ...], said: str
) -> None:
    """Estimates are 0.2, 0.6 and 0.2 nat, and so are the output errors, but for 0.1."""
    layers = []
    for layer, kl_nats in zip(readings().layers, measured, strict=True):
        of = replace(layer.effects["int4"], measured_kl_nats=(kl_nats,))
        layers.append(replace(layer, effects={**layer.effects, "int4": of}))
    found = [s for s in findings(readings(layers=tuple(layers)), "int4") if "Spearman" in s]
    assert [s.partition("correlation of ")[2].split()[0] for s in found] == [said]
    assert not [s for s in findings(readings(), "int4") if "Spearman" in s]
