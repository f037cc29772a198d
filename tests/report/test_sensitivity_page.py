"""The page of a study: what its pictures and its table show of a study computed in the head."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.mixed import Budget, mixed
from bench.record.sensitivity import SCHEMA, Module, Study
from bench.report import mixed as allocations
from bench.report.sensitivity_page import charts, place_of, write_page
from tests import fakes
from tests.analysis.test_sensitivity import DOWN, UP, V, readings


def study() -> Study:
    """Of three layers in one block; down_proj has three fifths of the loss."""
    modules = [
        Module("model.embed_tokens", "Embedding", 0.0, 1.0, 1.0),
        *(Module(name, "Linear", 0.01, 1.0, 0.99) for name in (UP, DOWN, V)),
        Module("lm_head", "Linear", 0.04, 1.0, 0.9, ((1.0, 1.1), (0.0, 0.1))),
    ]
    cell = fakes.resolved(model="tiny", quant="nf4")
    int4 = replace(cell.quant, name="int4")
    return Study(
        schema=SCHEMA,
        asked="quant=int4 <b>",
        cell=replace(cell, quant=int4),
        schemes={"int4": int4, "int8": replace(cell.quant, name="int8", scheme="own_int8")},
        text="calibration.txt",
        window_tokens=32,
        host=fakes.host(),
        commit=None,
        started_at=1.0,
        took_s=2.0,
        readings=readings(modules=tuple(modules)),
    )


GIVEN = {UP: "int4", DOWN: "int8", V: "int4"}


def test_titles_say_what_the_numbers_say() -> None:
    titles = {chart.name: chart.title for chart in charts(study(), GIVEN)}
    assert list(titles) == ["losses", "allocation", "depth", "worst"]
    assert f"{DOWN} has the largest share" in titles["losses"]
    assert titles["losses"].endswith("60%")
    assert titles["allocation"] == "The allocation: 2 layers int4, 1 layers int8"
    assert "output of lm_head they are 20.0%" in titles["depth"]
    assert "allocation" not in [chart.name for chart in charts(study(), {})]


def test_a_square_is_a_layer() -> None:
    losses = next(charts(study(), {}))
    axis = losses.figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "up_proj",
        "down_proj",
        "v_proj",
    ]
    shown = np.asarray(axis.images[0].get_array())
    assert shown[:, 0] == pytest.approx([0.2, 0.6, 0.2])


def test_experts_have_one_place() -> None:
    assert place_of("model.layers.3.mlp.experts.12.up_proj") == "mlp.experts.*.up_proj"
    assert place_of("transformer.h.0.attn.c_attn") == "attn.c_attn"
    assert place_of("lm_head") == "lm_head"


def test_the_page_has_all_of_it_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    files = write_page(tmp_path, study(), ["a finding"], ["a table"], GIVEN)
    assert files[0].name == "sensitivity.html"
    assert {file.name for file in files[1:]} == {
        f"{name}.png" for name in ("losses", "allocation", "depth", "worst")
    }
    page = files[0].read_text()
    assert page.count("<svg") == 4
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.index(f'"row">{DOWN}') < page.index(f'"row">{UP}')
    for text in ("a finding", "a table", "default-src 'none'", "--line: "):
        assert text in page
    assert "<script" not in page


def test_a_quantization_is_written_out() -> None:
    best = mixed(study().readings, ["int4", "int8"], Budget(5.6, "bits", "5.6bits"), 0)[0]
    said = list(allocations.lines(study(), [best]))
    assert said[-1] == f"mixed_5.6bits: int4, but {DOWN} int8"
    text = allocations.quant_file(study(), best)
    assert "scheme: bnb_4bit" in text
    assert f"  {DOWN}: {{name: int8, scheme: own_int8, dtype: bf16" in text
