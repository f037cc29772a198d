"""A whole study of the tiny model in this process: its readings agree with each other."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from bench.analysis.sensitivity import PLAIN, loss_nats, predicted_step_s
from bench.commands.sensitivity import plain
from bench.config.cell import Quant
from bench.engine.protocol import ENGINES
from bench.meter.sensitivity import Plan, study, try_sets
from bench.paths import CALIBRATION_TEXT
from bench.record import sensitivity as record
from bench.record.sensitivity import Readings, Study
from tests import fakes

CELL = fakes.resolved(model="tiny", quant="nf4")
PRECISE = {**CELL.quant.parameters, "compute_dtype": "fp32"}
PLAN = Plan(
    schemes={"nf4": CELL.quant},
    in_fp32={"nf4": replace(CELL.quant, dtype="fp32", parameters=PRECISE)},
    closely="nf4",
    text=str(CALIBRATION_TEXT),
    windows=2,
    window_tokens=32,
    is_exact=True,
)
PLACE = ENGINES["transformers"]


def quiet(phase: str, detail: str = "") -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def readings() -> Readings:
    return study(quiet, PLACE, plain(CELL), PLAN)


def test_every_layer_has_every_scheme(readings: Readings) -> None:
    assert len(readings.layers) == 14
    for layer in readings.layers:
        published, quantized = layer.effects[PLAIN], layer.effects["nf4"]
        assert published.stored_bytes == 2 * layer.weights
        assert quantized.stored_bytes < published.stored_bytes / 3
        assert (published.output_error, published.cosine) == (0.0, 1.0)
        assert 0.02 < quantized.output_error < 0.2
        assert len(published.estimated_kl_nats) == len(quantized.estimated_kl_nats) == 2
        assert quantized.measured_kl_nats is not None


def test_times_are_within_the_steps(readings: Readings) -> None:
    for scheme, timing in readings.timings.items():
        assert list(timing.layer_decode_s) == [layer.name for layer in readings.layers]
        assert sum(timing.layer_decode_s.values()) < fmean(timing.decode_step_s)
        assert sum(timing.layer_prefill_s.values()) < fmean(timing.prefill_s)
        whole = predicted_step_s(readings.timings, dict.fromkeys(timing.layer_decode_s, scheme))
        assert whole is not None
        assert whole.value == pytest.approx(fmean(timing.decode_step_s))


def test_a_set_of_one_layer_costs_what_the_layer_costs(readings: Readings) -> None:
    layer = readings.layers[-1]
    sets = {"one": {layer.name: "nf4"}, "none": {}}
    one, none = try_sets(quiet, PLACE, plain(CELL), PLAN, sets)
    assert one.kl_nats == loss_nats(layer.effects["nf4"])
    assert none.kl_nats == pytest.approx((0.0, 0.0), abs=1e-12)


def test_all_together_cost_about_the_sum(readings: Readings) -> None:
    trials = {trial.name: fmean(trial.kl_nats) for trial in readings.trials}
    assert set(trials) == {"all nf4", "1 layers nf4", "3 layers nf4", "7 layers nf4"}
    summed = sum(fmean(loss_nats(layer.effects["nf4"])) for layer in readings.layers)
    assert trials["all nf4"] == pytest.approx(summed, rel=0.5)


def test_errors_begin_where_layers_do(readings: Readings) -> None:
    modules = {module.name: module for module in readings.modules}
    assert modules["model.embed_tokens"].mean_square_error == 0
    assert modules["model.layers.0.input_layernorm"].cosine == pytest.approx(1)
    assert 0 < modules["lm_head"].mean_square_error < modules["lm_head"].mean_square
    assert sum(bool(module.points) for module in readings.modules) == 6


def test_a_study_reads_back(readings: Readings, tmp_path: Path) -> None:
    whole = Study(
        schema=record.SCHEMA,
        asked="quant=nf4",
        cell=CELL,
        schemes={"nf4": Quant("nf4", "bnb_4bit", "auto", CELL.quant.parameters)},
        text="calibration.txt",
        window_tokens=32,
        host=fakes.host(),
        commit=None,
        started_at=1.0,
        took_s=2.0,
        readings=readings,
    )
    assert record.from_json(whole.to_json(), "a study") == whole
