"""Findings about what cells computed and what medians say, from results written by hand."""

from dataclasses import replace
from typing import Any

import pytest

from bench.analysis.comparison import compare
from bench.record.measurement import Energy, Repeat, Telemetry
from bench.record.result import Result
from bench.record.sensitivity import Prediction
from tests import fakes

IN_FORCE = "computed the same to the last bit: one of them was not in force"


def computed(digest: str | None, quant: str = "fp16", attn: str = "sdpa", **seen: Any) -> Result:
    """A cell with the logits of this digest."""
    cell = fakes.resolved(quant=quant, attn=attn)
    return fakes.result(cell=cell, attestation=fakes.attestation(logits_digest=digest, **seen))


def found(*results: Result) -> list[str]:
    said = compare(results, fakes.sweep()).findings
    return [finding.sentence for finding in said if "to the last bit" in finding.sentence]


def test_two_settings_that_computed_the_same_are_named() -> None:
    assert found(computed("a"), computed("a", attn="eager")) == [
        f"attn=sdpa and attn=eager {IN_FORCE}"
    ]
    assert found(computed("a"), computed("a", quant="nf4")) == [
        f"quant=fp16 and quant=nf4 {IN_FORCE}"
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (computed("a"), computed("b", attn="eager")),  # other logits
        (computed(None), computed(None, attn="eager")),  # an engine that shows none
        (computed("a"), computed("a", attn="eager", quant="nf4")),  # two settings at once
        (computed("a"), computed("a", attn="sdpa_flash")),  # sdpa takes one of its backends
        (computed("a", attn="sdpa"), computed("a", attn="sdpa_packed")),  # as sdpa with a mask does
        (  # nothing passed the threshold
            computed("a", quant="int8", outlier_share=0.0),
            computed("a", quant="int8_nodecomp"),
        ),
    ],
)
def test_what_may_well_be_the_same_is_not(one: Result, other: Result) -> None:
    assert found(one, other) == []


def test_two_backends_that_computed_the_same_are_named() -> None:
    assert len(found(computed("a", attn="sdpa_math"), computed("a", attn="sdpa_flash"))) == 1
    assert len(found(computed("a", attn="eager"), computed("a", attn="sdpa_packed"))) == 1
    outliers = computed("a", quant="int8", outlier_share=0.1)
    assert len(found(outliers, computed("a", quant="int8_nodecomp"))) == 1


def test_medians_that_say_the_opposite_are_told() -> None:
    def timed(quant: str, *ttfts: float) -> Result:
        repeats = tuple(Repeat(ttft, (1.0, 1.0, 1.0), ttft + 3) for ttft in ttfts)
        return fakes.result(
            cell=fakes.resolved(quant=quant), replicates=(fakes.process(repeats=repeats),) * 2
        )

    base = timed("fp16", 1.0, 1.0, 1.0)
    disturbed, slower = timed("nf4", 0.8, 1.2, 1.2), timed("nf4", 1.2, 1.2, 1.2)
    said = compare([base, disturbed], fakes.sweep()).findings
    (finding,) = [f for f in said if "opposite" in f.sentence]
    assert finding.sentence == "by medians, which load of others moves, prefill says the opposite"
    assert finding.cells == ((disturbed.cell_id, "0.83x"),)
    said = compare([base, replace(slower)], fakes.sweep()).findings
    assert not any("opposite" in f.sentence for f in said)


def test_energy_of_a_cpu_is_of_all_that_runs_on_it() -> None:
    window = Telemetry(2.0, 3, (), 5.0, 2.5, None)
    measured = fakes.measurement(energy=Energy(window, window, 1.0))
    for device, is_shared in (("cpu", True), ("cuda", False)):
        result = fakes.result(cell=fakes.cell(device=device), measurement=measured)
        said = [f.sentence for f in compare([result], fakes.sweep()).findings]
        assert ("energy is of the whole CPU package: what others ran is in it too" in said) == (
            is_shared
        )


def test_what_was_published_on_a_grid_of_4_bits_is_told_where_quantization_is_judged() -> None:
    def found(quant: str = "nf4", is_quantized: bool = True, **model: Any) -> list[str]:
        cell = fakes.cell(quant=quant, model=fakes.group("model", "smollm2-135m", **model))
        attestation = fakes.attestation(is_quantized=is_quantized)
        result = fakes.result(cell=cell, attestation=attestation, divergence=fakes.divergence())
        said = compare([result], fakes.sweep()).findings
        return [f.sentence for f in said if "was published in" in f.sentence]

    assert found() == [
        "divergence: smollm2-135m was published in Q4_1 (4 bits, groups of 32), so a scheme with 4"
        " bits may lose less of it than of other models; model.weights=dithered has no such grid"
    ]
    assert found(weights="dithered") == found(path="/mine") == found(published_in=None) == []
    assert found(quant="bf16", is_quantized=False) == []


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    layers = {"a.*": {"name": "int8_channel", "scheme": "own_int8"}}
    mixed = {**fakes.group("quant", "nf4"), "name": "mixed_4bits", "layers": layers}
    cell = fakes.resolved(quant=mixed)
    result = fakes.result(cell=cell, divergence=fakes.divergence())
    predicted = Prediction(
        model=cell.model,
        layers={"a.*": "int8_channel"},
        device_name=result.host.device_name,
        rows=cell.rows,
        kl_nats=(0.21, 0.15, 0.3),
        tpot_s=(0.5, 0.4, 0.6),
    )

    def said(prediction: Prediction) -> list[str]:
        found = compare([result], fakes.sweep(), {"mixed_4bits": prediction}).findings
        return [f.sentence for f in found if "predicted" in f.sentence]

    (sentence,) = said(predicted)
    assert sentence.startswith("mixed_4bits: KL predicted 0.21 (0.15 to 0.3), measured ")
    assert "TPOT predicted 500 (400 to 600), measured " in sentence
    (elsewhere,) = said(replace(predicted, device_name="another"))
    assert "TPOT" not in elsewhere
    assert said(replace(predicted, layers={})) == []  # written again since
    assert said(replace(predicted, model=fakes.cell(model="gpt2").model)) == []
