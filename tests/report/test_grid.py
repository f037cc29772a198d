"""Tables beside the main one, and that a sweep is analysed once for all of its printers."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.analysis import comparison as analysis
from bench.analysis.comparison import Comparison, compare
from bench.config.settings import Baseline, Tracking
from bench.record.measurement import Choice, PhaseProfile, Profile
from bench.record.result import Result
from bench.report import charts, grid, page, terminal
from bench.report.advice import in_short
from bench.store.files import INPUTS, new_folder, write_sweep
from bench.store.recorder import Recorder
from tests import fakes, stores
from tests.analysis.test_advice import KNOWN, SWEEP


def profiled(quant: str, **decode_s: float) -> Result:
    seconds = {kind.replace("_", " "): s for kind, s in decode_s.items()}
    phases = (
        PhaseProfile("prefill", 0.5, 1, {"matrix product": 0.5}),
        PhaseProfile("decode", sum(seconds.values()), 2, seconds),
    )
    return fakes.result(cell=fakes.cell(quant=quant), profile=Profile(phases, 1.2))


PLAIN = profiled("bf16", matrix_product=0.060, interpreter=0.020)
PACKED = profiled("int8", matrix_product=0.040, dequantization=0.050, interpreter=0.021)


def compared(*results: Result) -> Comparison:
    return compare(results, fakes.sweep(baseline=Baseline(quant="bf16")))


def test_a_table_for_each_phase_has_milliseconds_of_one_step() -> None:
    prefill, decode = grid.profiles(
        compared(PLAIN, PACKED, fakes.result(cell=fakes.cell(quant="nf4")))
    )
    rows = [[entry.text for entry in row] for row in decode.rows]
    headings = [column.heading for column in decode.columns]
    assert headings == ["quant", "matrix product", "dequantization", "interpreter", "all"]
    assert rows == [
        ["bf16", "30.00", "-", "10.00", "40.00"],
        ["int8", "20.00", "25.00", "10.50", "55.50"],
    ]
    assert [entry.text for entry in prefill.rows[0]] == ["bf16", "500.00", "500.00"]


def test_the_sentence_names_what_makes_the_difference() -> None:
    (sentence,) = grid.profile_reasons(compared(PLAIN, PACKED))
    parts = "dequantization +25.00, matrix product -10.00"
    assert sentence == f"quant=int8: a decode step takes 15.50 ms more ({parts}) than quant=bf16"


def test_without_profiles_there_is_nothing_to_say() -> None:
    results = [fakes.result(cell=fakes.cell(quant=quant)) for quant in ("bf16", "int8")]
    assert grid.profiles(compared(*results)) == []
    assert grid.profile_reasons(compared(*results)) == []


def test_a_sweep_is_analysed_once_for_all_of_its_printers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived: list[str] = []

    def counted(result: Result, price_per_hour: float | None) -> dict[str, float]:
        derived.append(result.cell_id)
        return derive(result, price_per_hour)

    derive = analysis.derive
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(analysis, "derive", counted)
    monkeypatch.setattr("bench.store.mlflow.derive", counted)
    folder = new_folder(tmp_path)
    cells = tuple(result.cell_id for result in KNOWN)
    tracking = Tracking("local", True, "an experiment")
    sweep = fakes.sweep(*cells, sweep_id=folder.name, tracking=tracking)
    write_sweep(folder, sweep)
    (folder / INPUTS).mkdir()
    stores.database(tmp_path / "mlflow.db")
    recorder = Recorder(folder, sweep, tmp_path)
    for result in KNOWN:
        recorder.keep(result, finished=True)
    assert recorder.untracked is None
    assert derived == list(cells)  # each cell as it was logged
    comparison = compare(recorder.results, sweep)
    terminal.console().print(terminal.summary(comparison))
    files = page.write_report(folder, comparison)
    assert in_short(comparison)
    recorder.close("FINISHED", 2000.0, comparison, files, terminal.as_text(comparison))
    assert recorder.untracked is None
    assert derived == [*cells, *cells]


def test_columns_and_pictures_do_not_order_divergences_at_the_noise_floor() -> None:
    results = [
        fakes.result(cell=fakes.cell(quant=quant), divergence=fakes.spread_divergence(kl))
        for quant, kl in (("fp16", 0.126), ("bf16", 0.120), ("nf4", 0.5))
    ]
    table = grid.cells(compared(*results))
    (kl,) = [i for i, column in enumerate(table.columns) if column.heading == "KL nat"]
    assert [row[kl].text for row in table.rows] == ["0.13", "0.12", "0.5"]
    assert [row[kl].sort for row in table.rows] == [0.0, 0.0, pytest.approx(0.5)]
    (picture,) = [c for c in charts.charts(compared(*results)) if c.name == "tradeoffs"]
    _, of_divergence = picture.figure.axes
    places = {float(x) for dots in of_divergence.collections for x, _ in dots.get_offsets()}
    assert sorted(places) == [0.125, pytest.approx(0.5)]  # the floor, and what is above it


def test_choices_have_a_column_with_room_and_a_note() -> None:
    right, wrong = Choice(0, (-1.0, -2.0)), Choice(0, (-2.0, -1.0))
    results = [
        fakes.result(
            cell=fakes.cell(quant=quant),
            divergence=fakes.divergence(choices=(right,) * 20),
            choices=(right,) * (20 - flips) + (wrong,) * flips,
        )
        for quant, flips in (("bf16", 0), ("nf4", 8))
    ]
    table = grid.cells(compared(*results))
    columns = {column.heading: column for column in table.columns}
    entries = dict(zip(columns, table.rows[1], strict=True))
    assert (entries["flips %"].text, entries["accuracy %"].text) == ("40.0", "60.0")
    assert entries["flips %"].interval == "(19.1 to 63.9)"  # Clopper and Pearson
    assert columns["flips %"].is_brief
    assert not columns["accuracy %"].is_brief
    assert columns["flips %"].telling < columns["KL nat"].telling
    (note,) = [note for note in grid.notes(compared(*results)) if "8 worse" in note]
    assert note == (
        "quant=nf4: multiple choice: 8 of 20 answers change: 8 worse, 0 better; 40.0 points worse"
        " (p = 0.0078)"
    )


def test_the_best_batch_of_each_value_within_a_budget() -> None:
    table = grid.equal_memory(compare(KNOWN, SWEEP))
    assert table is not None
    assert [column.heading for column in table.columns] == [
        "peak memory at most",
        "bf16",
        "int8",
        "nf4",
    ]
    assert [entry.text for entry in table.rows[0]] == [
        "300 MiB",
        "none fits",
        "none fits",
        "33.3 tok/s at batch 1",
    ]


def own(bucket: str, batch: int, given: tuple[int, ...]) -> Result:
    """Of a bucket of prompts with so many tokens each; its windows are of alice alone."""
    workload = {"name": f"mine-{bucket}", "new_tokens": 4, "path": "/x/mine.jsonl"}
    cell = fakes.cell(workload=workload | {"bucket": bucket}, batch=batch, quality="samples")
    return fakes.result(
        cell=cell,
        measurement=fakes.measurement(prompt_tokens=min(given), given_tokens=given),
        divergence=fakes.divergence(),
    )


def test_the_table_and_a_note_say_how_long_own_prompts_are() -> None:
    results = [own("to8", 1, (7, 9, 8)), own("to8", 4, (7, 9, 8)), own("to64", 1, (50,))]
    comparison = compared(*results)
    table = grid.cells(comparison)
    assert [column.heading for column in table.columns[:3]] == [
        "workload",
        "batch",
        "prompt tokens",
    ]
    assert [[entry.text for entry in row[:3]] for row in table.rows] == [
        ["mine-to8", "1", "7"],
        ["mine-to8", "4", "7"],
        ["mine-to64", "1", "50"],
    ]
    notes = "\n".join(grid.notes(comparison))
    assert (
        "prompts: mine-to8 has 3 of 7 to 9 tokens, timed at 7; mine-to64 has 1 of 50 tokens, timed"
        " at 50. A batch takes the first ones of its bucket; where it has more rows, it takes them"
        " again from another token on"
    ) in notes
    assert (
        "every cell: divergence on alice alone: the prompts of mine.jsonl do not fill a window of"
        " 256 tokens"
    ) in notes
    with_prompts = fakes.divergence(fakes.window(), fakes.window(text="mine.jsonl"))
    answers = fakes.answers(divergence=with_prompts)
    whole = compared(*(replace(result, answers=answers) for result in results))
    assert "do not fill a window" not in "\n".join(grid.notes(whole))


def test_without_own_prompts_the_table_has_no_column_for_them() -> None:
    table = grid.cells(compared(PLAIN, PACKED))
    assert "prompt tokens" not in [column.heading for column in table.columns]


def test_what_holds_for_all_cells_names_weights_that_are_not_the_published_ones() -> None:
    def said(*kinds: str) -> str:
        models = [fakes.group("model", "smollm2-135m", weights=kind) for kind in kinds]
        return grid.conditions(compared(*(fakes.result(cell=fakes.cell(model=m)) for m in models)))

    assert said("pretrained").startswith("smollm2-135m, workload")
    assert said("dithered").startswith("smollm2-135m, dithered weights, workload")
    assert said("random").startswith("smollm2-135m, random weights, workload")
    assert said("pretrained", "dithered").startswith("smollm2-135m, workload")  # a column has it
