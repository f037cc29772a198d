"""The report's parts: what stands on the page, in the ticket, in the table for other tools, for
made-up sweeps."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.analysis.comparison import compare
from bench.record.measurement import PhaseProfile, Profile, Sample
from bench.record.result import Outcome, Peaks, Result
from bench.report import charts, drawing
from bench.report import page as report
from bench.report.answers import side_by_side
from tests import fakes
from tests.analysis.test_advice import KNOWN, SWEEP


def written(folder: Path, results: list[Result]) -> list[Path]:
    """The files of a report on these results."""
    return report.write_report(folder, compare(results, SWEEP))


def test_a_report_is_a_page_a_ticket_a_table_and_pictures(tmp_path: Path) -> None:
    files = written(tmp_path, KNOWN)
    assert [file.name for file in files] == [
        "report.html",
        "report.md",
        "report.csv",
        "throughput.png",
        "tradeoffs.png",
    ]
    assert all(file.stat().st_size > 1000 for file in files)
    assert not list(tmp_path.glob("*.partial"))


def test_the_page_needs_no_network_and_has_every_cell(tmp_path: Path) -> None:
    page = written(tmp_path, KNOWN)[0].read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    for reference in ('src="http', 'href="http', "url(http", "@import"):
        assert reference not in page.replace('xmlns:xlink="http', "").replace('xmlns="http', "")
    assert page.count("<tr>") >= len(KNOWN)
    assert "batch (most tokens" in page
    assert "quant=bf16 decodes faster than nf4 from batch 14.2 on" in page


def test_the_title_asks_about_cells_and_not_about_folders(tmp_path: Path) -> None:
    typed = ("-m", "quant=bf16,nf4", "output_dir=far", "tracking.uri=x", "measure.passes=2")
    found = compare(KNOWN, replace(SWEEP, overrides=typed))
    ask, choice = (report.page(found, [], answer) for answer in (None, "use quant=nf4"))
    assert "<h1>Which quant? quant=bf16,nf4 measure.passes=2</h1>" in ask
    assert "<h1>Which configuration? quant=bf16,nf4 measure.passes=2</h1>" in choice


def test_what_stands_between_backticks_is_code(tmp_path: Path) -> None:
    single = [replace(each, replicates=each.replicates[:1]) for each in KNOWN]
    page = written(tmp_path, single)[0].read_text(encoding="utf-8")
    assert "differ by 5% (<code>doctor --calibrate</code> measures it)" in page


def test_what_a_model_says_is_escaped(tmp_path: Path) -> None:
    evil = Sample("why?", "<script>alert(1)</script>", (1, 2), True)
    theirs = Sample("why?", "<b>because</b>", (1, 3), True)
    result = fakes.result(samples=(evil,), divergence=fakes.divergence(answers=(theirs,)))
    page = written(tmp_path, [result])[0].read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;b&gt;because" in page


@pytest.mark.parametrize(
    "chart", list(charts.charts(compare(KNOWN, SWEEP))), ids=lambda chart: chart.name
)
def test_a_picture_is_well_formed_says_what_it_shows_and_takes_the_page_s_colours(
    chart: drawing.Chart,
) -> None:
    text = drawing.svg(chart)
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == chart.title
    assert "currentColor" in text
    assert "#010203" not in text
    assert "mathdefault" not in text  # the formula that matplotlib makes of a tick on a log axis
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in root.iter():
        target = element.get("{http://www.w3.org/1999/xlink}href")
        assert target is None or target.startswith("data:") or target.removeprefix("#") in ids


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([3, 11], ["2", "5", "10", "20"]), ([2e-5, 0.3], ["0.0001", "0.01", "0.1"])],
)
def test_a_log_axis_has_numbers_for_ticks(values: list[float], ticks: list[str]) -> None:
    figure, (axis,) = drawing.panels(1, 4, 3)
    axis.scatter(values, values)
    drawing.logarithmic(axis, "x")
    figure.draw_without_rendering()
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert set(ticks) <= set(shown)


def test_titles_say_what_the_data_says() -> None:
    titles = {chart.name: chart.title for chart in charts.charts(compare(KNOWN, SWEEP))}
    assert titles["throughput"] == "bf16 batch 32 gives the most output: 107 tokens/s"  # 128 / 1.2
    assert titles["heat"] == "The longest wait for a first token is 1,800 ms, with int8 batch 32"
    # 0.05 / 0.17 and 0.9 / 1.2 = 1.8 / 2.4
    assert titles["phases"] == "Prefill takes 29% to 75% of a request"


def test_roofs_that_were_read_too_low_are_called_so() -> None:
    def title(flops: float) -> str:
        peaks = Peaks(1e12, {"fp32": flops}, "measured here", True)
        known = [replace(result, peaks=peaks) for result in KNOWN]
        return next(c.title for c in charts.charts(compare(known, SWEEP)) if c.name == "roofline")

    assert "above" not in title(1e15)
    assert title(1.0).endswith(
        f". {2 * len(KNOWN)} points lie above the roofs: they were read too low, as beside other"
        " work"
    )


def test_a_sweep_without_a_number_is_reported_with_its_reasons(tmp_path: Path) -> None:
    failed = [
        fakes.result(cell=fakes.cell(quant=q), outcome=Outcome("oom", "no memory left"))
        for q in ("bf16", "fp16")
    ]
    page = written(tmp_path, failed)[0].read_text(encoding="utf-8")
    assert "oom: no memory left" in page
    assert "no cell has a number" in page
    assert "<svg" not in page


def test_the_table_for_other_tools_has_every_metric_in_si_units() -> None:
    failed = fakes.result(cell=fakes.cell(quant="fp16"), outcome=Outcome("failed", "a, b\nc"))
    rows = list(csv.DictReader(io.StringIO(report.table(compare([*KNOWN, failed], SWEEP)))))
    assert [row["outcome"] for row in rows] == ["ok"] * 9 + ["failed"]
    assert (rows[0]["quant"], rows[0]["batch"]) == ("bf16", "1")
    assert float(rows[0]["tpot_s"]) == pytest.approx(0.04)
    assert rows[9]["reason"] == "a, b\nc"
    assert rows[9]["tpot_s"] == ""


def test_profiles_stand_in_the_report(tmp_path: Path) -> None:
    profile = Profile(
        (PhaseProfile("decode", 0.5, 1, {"matrix product": 0.4, "interpreter": 0.1}),), 1.1
    )
    page = written(tmp_path, [fakes.result(profile=profile)])[0].read_text(encoding="utf-8")
    assert "Where the time goes" in page
    assert 'data-sort="0.4">400.00</td>' in page


def answering(quant: str, *answers: Sample) -> Result:
    theirs = (Sample("one", "a b c d", (1, 2, 3, 4), True), Sample("two", "e f", (5, 6), True))
    return fakes.result(
        cell=fakes.resolved(quant=quant),
        samples=answers,
        divergence=fakes.divergence(answers=theirs),
    )


def test_the_prompts_that_changed_most_come_first_with_the_changed_part_apart() -> None:
    same = answering(
        "bf16", Sample("one", "a b c d", (1, 2, 3, 4), True), Sample("two", "e f", (5, 6), True)
    )
    other = answering(
        "fp16", Sample("one", "a b x d", (1, 2, 9, 4), True), Sample("two", "z", (7,), True)
    )
    larger = replace(same, cell=fakes.resolved(quant="bf16", batch=8))  # has the same answers
    first, second = side_by_side(compare([same, larger, other], SWEEP))
    assert (first.prompt, second.prompt) == ("two", "one")
    assert [
        (answer.who, answer.same, answer.differs, answer.remarks) for answer in second.answers
    ] == [
        ("reference (smollm2-135m, fp32)", "a b c d", "", ""),
        ("bf16", "a b c d", "", "equal"),
        ("fp16", "a b ", "x d", "75% of tokens equal"),
    ]


def test_without_a_reference_nothing_is_put_side_by_side() -> None:
    assert side_by_side(compare([fakes.result(samples=(fakes.sample(1),))], SWEEP)) == []
    assert side_by_side(compare([], SWEEP)) == []
