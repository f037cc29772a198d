"""Foreign figures beside ours: only like is put beside like; the shipped tables of studies are
whole and in our keys."""

import csv
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.comparison import compare
from bench.analysis.foreign import read
from bench.analysis.foreign.pairs import Match, baseline_of, compared, matches
from bench.analysis.metrics import METRICS, derive
from bench.paths import CONF, PUBLISHED, ROOT
from bench.record.foreign import Foreign
from bench.record.result import Outcome, Result
from bench.report import foreign as tables_of
from bench.report import page as report
from bench.report.grid import Grid
from tests import fakes
from tests.analysis.test_advice import SWEEP

PLACE = ["hardware", "model", "quant", "attn", "batch", "prompt_tokens", "new_tokens"]
THEIR_QUANTS = {"int4_strided"}
THEIR_MODELS = {"llama-3.1-8b", "llama-3.1-70b", "qwen2.5-14b", "qwen2.5-32b"}


def named(group: str) -> set[str]:
    return {file.stem for file in (CONF / group).glob("*.yaml")}


def rows_of(file: Path) -> list[Foreign]:
    return read(file.read_text(encoding="utf-8"), file.name)


def study(name: str) -> list[Foreign]:
    return rows_of(ROOT / "sweeps" / "published" / f"{name}.csv")


def published(model: str, quant: str, attn: str | None = None) -> Foreign:
    """The one row of a batch of 1, from any file."""
    rows = [row for file in PUBLISHED for row in rows_of(file)]
    (found,) = [
        r
        for r in rows
        if (r.model, r.quant, r.attn, r.batch) == (model, quant, attn, 1)
        and "T4" not in str(r.hardware)
    ]
    return found


def test_there_are_publications() -> None:
    assert {"bitsandbytes_0_45", "gpt2_mistral_a100"} <= {file.stem for file in PUBLISHED}


def test_a_wheel_takes_them_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["package-data"]
    assert set(PUBLISHED) <= {
        file for pattern in settings["bench.sweeps"] for file in (ROOT / "sweeps").glob(pattern)
    }


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_file_says_first_where_it_is_from_and_how_that_was_measured(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.match(r"# Source: .*github\.com/\S+ \(MIT", text)
    assert re.match(r".* \d+ new tokens", rows_of(file)[0].protocol)


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_file_has_the_common_columns_and_these_are_our_metrics(file: Path) -> None:
    header, *rows = csv.reader(
        line for line in file.read_text(encoding="utf-8").splitlines() if line[:1] != "#"
    )
    first = next(
        line for line in PUBLISHED[0].read_text(encoding="utf-8").splitlines() if line[:1] != "#"
    )
    assert header == first.split(",")
    assert header[: len(PLACE)] == PLACE
    assert set(header[len(PLACE) :]) <= {metric.key for metric in METRICS}
    assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_row_has_our_names_and_positive_numbers(file: Path) -> None:
    rows = rows_of(file)
    assert {row.model for row in rows} <= named("model") | THEIR_MODELS
    assert {row.quant for row in rows} <= named("quant") | THEIR_QUANTS
    assert {row.attn for row in rows} <= named("attn") | {None}
    assert all(row.hardware and row.batch and row.values for row in rows)
    assert all(value > 0 and math.isfinite(value) for row in rows for value in row.values.values())
    assert len({(row.hardware, row.model, row.quant, row.attn, row.batch) for row in rows}) == len(
        rows
    )


def test_bitsandbytes_throughput_is_the_batch_over_the_latency_of_a_step() -> None:
    for row in study("bitsandbytes_0_45"):
        assert row.batch is not None
        latency_s = row.batch / row.values["decode_tok_s"]
        # One is off by 1.7 %, as published
        assert row.values["tpot_s"] == pytest.approx(latency_s, rel=0.02)


def test_published_bytes_are_bytes() -> None:
    assert published("mistral-7b", "fp16").values["weight_bytes"] == pytest.approx(
        2 * 7_241_732_096, rel=5e-4
    )
    plain = study("llama32_3b_rtx3060ti")[0]
    assert plain.values["vram_peak_bytes"] == pytest.approx(6.02 * 2**30, rel=5e-4)
    # Published without the scales
    assert "weight_bytes" not in published("mistral-7b", "nf4").values


def row(quant: str, decode_tok_s: float = 10.0, **changes: Any) -> Foreign:
    values: dict[str, Any] = {
        "file": "a.csv",
        "digest": "1",
        "tool": "a study",
        "protocol": "once",
        "hardware": "A card",
        "model": "gpt2",
        "quant": quant,
        "batch": 1,
        "new_tokens": 4,
        "values": {"decode_tok_s": decode_tok_s},
    }
    return Foreign(**values | changes)


def here(quant: str, step_s: float = 0.5, **axes: Any) -> Result:
    return fakes.paced(fakes.resolved(**{"model": "gpt2", "quant": quant} | axes), step_s)


def found(results: list[Result], *rows: Foreign) -> list[tuple[str | None, str | None, str, str]]:
    """Who was matched with whom: there, its baseline, here, its baseline."""

    def ours(result: Result) -> str:
        return f"{result.cell.quant.name} {result.cell.attn.name}"

    return [
        (match.there.quant, match.there_baseline.quant, ours(match.here), ours(match.here_baseline))
        for match in matches(results, rows)
    ]


def test_a_row_is_matched_with_the_cell_of_its_model_quantization_and_batch() -> None:
    rows = [row("fp16"), row("int8"), row("nf4")]
    assert found([here("fp16"), here("nf4")], *rows) == [("nf4", "fp16", "nf4 sdpa", "fp16 sdpa")]
    others = [here(quant, batch=8) for quant in ("fp16", "nf4")] + [
        here(q, model="tiny") for q in ("fp16", "nf4")
    ]
    assert found(others, *rows) == []


def test_each_batch_has_its_own_baseline() -> None:
    rows = [row(quant, batch=batch) for batch in (1, 8) for quant in ("fp16", "nf4")]
    results = [here("fp16"), here("nf4"), here("nf4", batch=8)]
    assert [match.there.batch for match in matches(results, rows)] == [1]


def test_another_card_is_no_baseline() -> None:
    assert (
        found([here("fp16"), here("nf4")], row("fp16", hardware="Another card"), row("nf4")) == []
    )


def test_16_bits_go_before_fp32_and_one_kind_stands_for_the_other() -> None:
    rows = [row("fp32"), row("fp16"), row("nf4")]
    assert found([here("fp32"), here("bf16"), here("nf4")], *rows) == [
        ("fp32", "fp16", "fp32 sdpa", "bf16 sdpa"),
        ("nf4", "fp16", "nf4 sdpa", "bf16 sdpa"),
    ]
    assert found([here("bf16"), here("fp16"), here("nf4")], *rows) == [
        ("nf4", "fp16", "nf4 sdpa", "fp16 sdpa")
    ]


def test_two_baselines_are_compared_once() -> None:
    results = [here("fp32"), here("fp16")]
    assert found(results, row("fp16"), row("fp32")) == [("fp32", "fp16", "fp32 sdpa", "fp16 sdpa")]


def test_fp32_is_the_baseline_only_where_both_sides_have_it() -> None:
    assert found([here("fp32"), here("nf4")], row("fp32"), row("fp16"), row("nf4")) == [
        ("nf4", "fp32", "nf4 sdpa", "fp32 sdpa")
    ]
    assert found([here("fp32"), here("nf4")], row("fp16"), row("nf4")) == []


def test_a_row_that_names_its_attention_is_compared_with_the_default_one() -> None:
    rows = [row("fp16", attn="flash2"), row("fp16"), row("nf4")]
    results = [here(quant, attn=attn) for quant in ("fp16", "nf4") for attn in ("sdpa", "flash2")]
    assert found(results, *rows) == [
        ("fp16", "fp16", "fp16 flash2", "fp16 sdpa"),
        ("nf4", "fp16", "nf4 sdpa", "fp16 sdpa"),
        ("nf4", "fp16", "nf4 flash2", "fp16 flash2"),
    ]
    # Two things differ, one there
    assert found([here("fp16", attn="flash2"), here("bf16")], *rows) == []


def test_a_baseline_with_the_same_attention_leaves_the_quantization_alone() -> None:
    rows = [row(quant, attn="flash2") for quant in ("fp16", "nf4")]
    results = [here(quant, attn=attn) for quant in ("fp16", "nf4") for attn in ("sdpa", "flash2")]
    assert found(results, *rows) == [("nf4", "fp16", "nf4 flash2", "fp16 flash2")]
    assert baseline_of(rows[1], rows) == rows[0]
    assert baseline_of(rows[0], rows) is None


@pytest.mark.parametrize(
    "named", ["SmolLM2-135M-Instruct", "smollm2-135m", "HF/SmolLM2-135M", "gpt2", None]
)
def test_a_model_is_known_by_its_name_its_repository_or_its_file(named: str | None) -> None:
    ours = [here(quant, model="smollm2-135m") for quant in ("fp16", "nf4")]
    rows = [row(quant, model=named) for quant in ("fp16", "nf4")]
    is_ours = named in ("SmolLM2-135M-Instruct", "smollm2-135m")
    assert len(found(ours, *rows)) == is_ours


@pytest.mark.parametrize(
    "changes", [{"settings": {"n_threads": "4"}}, {"version": "2"}, {"source": "someone else"}]
)
def test_a_baseline_differs_in_nothing_else(changes: dict[str, Any]) -> None:
    plain, quantized = row("fp16"), row("nf4")
    assert baseline_of(quantized, [plain, quantized]) == plain
    assert baseline_of(quantized, [replace(plain, **changes), quantized]) is None


def test_a_cell_without_a_number_is_not_shown() -> None:
    failed = fakes.result(
        cell=fakes.cell(model="gpt2", quant="fp16"), outcome=Outcome("oom", "no memory left")
    )
    assert found([failed, here("nf4")], row("fp16"), row("nf4")) == []


def test_a_ratio_is_to_the_baseline_on_the_same_side() -> None:
    there, base = row("nf4", 30.0), row("fp16", 20.0, values={"decode_tok_s": 20.0, "tpot_s": 0.05})
    ours, our_base = here("nf4", 0.25), here("fp16", 1.0)
    values = {result.cell_id: derive(result) for result in (ours, our_base)}
    keys = ["tpot_s", "prefill_tok_s", "decode_tok_s"]
    (only,) = compared(Match(there, base, ours, our_base), keys, values)
    assert (only.key, only.there, only.there_ratio, only.here, only.here_ratio) == (
        "decode_tok_s",
        30.0,
        1.5,
        4.0,
        4.0,
    )


def gpt2() -> list[Result]:
    """An fp16 that puts out 1 token a second (4 in 1 + 3 x 1 s), an int8 that puts out half of it
    from half the bytes."""
    slow = here("int8", 7 / 3)
    return [here("fp16", 1.0), replace(slow, attestation=fakes.attestation(weight_bytes=500))]


def both(results: list[Result]) -> tuple[str, str]:
    comparison = compare(results, SWEEP)
    return report.page(comparison, []), report.markdown(comparison)


def tables(results: list[Result], hardware: str) -> list[Grid]:
    return [t for t in tables_of.published(compare(results, SWEEP)) if hardware in t.title]


def test_the_report_shows_what_was_published_about_its_cells() -> None:
    page, ticket = both(gpt2())
    assert '<section id="elsewhere"><h2>Published elsewhere</h2>' in page
    assert '<a href="#elsewhere">Published elsewhere</a>' in page
    assert page.index('id="grid"') < page.index('id="elsewhere"') < page.index('id="environment"')
    assert (
        ticket.index("## Every cell")
        < ticket.index("## Published elsewhere")
        < ticket.index("### NVIDIA A100")
    )
    for text in (page, ticket):
        assert "only the ratios can be compared" in text
        assert "github.com/vaishakbalachandra/llm-inference-optimization" in text
    assert "| int8 | fp16 | output tok/s | 32.7 | 0.33x | 0.5 | 0.50x |" in ticket
    assert "| int8 | fp16 | weights MiB | 168.3 | 0.67x | 0.0 | 0.50x |" in ticket
    assert ">32.7</td>" in page
    assert ">0.33x</td>" in page


def test_a_stand_in_for_a_baseline_is_named() -> None:
    results = [here("bf16", model="qwen2.5-3b"), here("nf4", model="qwen2.5-3b")]
    (table,) = tables(results, "T4")
    (row,) = table.rows
    assert [e.text for e in row[:3]] == ["nf4", "fp16 there, bf16 here", "decode tok/s"]


def test_of_perplexities_only_the_ratio_is_shown() -> None:
    results = [
        replace(
            here(quant, model="qwen2.5-3b"),
            answers=fakes.answers(
                divergence=fakes.divergence(
                    fakes.window(nll_nats=math.log(p)), fakes.window(nll_nats=math.log(p))
                )
            ),
        )
        for quant, p in (("fp16", 8), ("nf4_double", 16))
    ]
    (table,) = tables(results, "3060")
    texts = [[entry.text for entry in row] for row in table.rows]
    assert [row[2:] for row in texts if row[2].startswith("perplexity")] == [
        ["perplexity, texts differ", "-", "1.11x", "-", "2.00x"]
    ]


@pytest.mark.parametrize(
    "results", [[], gpt2()[:1], [here("fp16", model="tiny"), here("int8", model="tiny")]]
)
def test_without_a_match_there_is_no_section(results: list[Result]) -> None:
    for text in both(results):
        assert "Published elsewhere" not in text
        assert "only the ratios" not in text
