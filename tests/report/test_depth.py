"""The picture and the table of fits over the depth, on the page and in files."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from bench.analysis.comparison import compare
from bench.record.result import Result
from bench.report import depth, drawing, page
from tests import fakes
from tests.analysis.test_depth import BF16, DEPTHS, NF4, deep, measured

BOTH = compare([*BF16, *NF4], fakes.sweep())


def rows_of(results: list[Result]) -> list[list[str]]:
    table = depth.grid(compare(results, fakes.sweep()))
    assert table is not None
    return [[entry.text for entry in row] for row in table.rows]


def test_the_report_has_picture_table_and_definitions(tmp_path: Path) -> None:
    files = page.write_report(tmp_path, BOTH)
    assert "depth.png" in [file.name for file in files]
    text = files[0].read_text(encoding="utf-8")
    assert "How times grow with the context" in text
    assert "Each 1,000 tokens of context cost a decode step 2 to 6 ms" in text
    assert "step_per_context_token_s" in text
    # Among what to use, and not only among the notes
    assert text.count("decodes faster than nf4 from a context of 2,500 tokens on") == 2


def test_without_several_depths_it_has_none(tmp_path: Path) -> None:
    files = page.write_report(tmp_path, compare(BF16[:2], fakes.sweep()))
    assert "depth.png" not in [file.name for file in files]
    text = files[0].read_text(encoding="utf-8")
    assert "How times grow" not in text
    assert "step_per_context_token_s" not in text


def test_the_picture_has_a_point_a_depth_and_a_line_a_configuration() -> None:
    chart = depth.chart(BOTH)
    steps, _ = chart.figure.axes
    points, lines = [], []
    for line in steps.get_lines():
        (points if line.get_marker() == "o" else lines).append(line)
    assert [len(line.get_xdata()) for line in points] == [len(DEPTHS)] * 2
    curves = [line for line in lines if len(line.get_xdata()) > len(DEPTHS)]
    assert [line.get_color() for line in curves] == list(drawing.COLOURS[:2])
    ElementTree.fromstring(drawing.svg(chart))


def test_the_title_claims_no_growth_that_cannot_be_told() -> None:
    flat = compare(deep("bf16", 0.020, 0.0), fakes.sweep())
    assert depth.chart(flat).title.startswith("Up to 4,096 tokens no growth")


def test_the_table_says_whether_curves_fit_or_why_that_is_not_tested() -> None:
    bf16, nf4 = rows_of([*BF16, *NF4])
    assert bf16[:3] == ["bf16", "20", "2"]
    assert nf4[:3] == ["nf4", "10", "6"]
    assert bf16[3].startswith("10,000 tokens (")
    assert bf16[4] == "fits (p 1)"
    alone = [replace(result, replicates=result.replicates[:1]) for result in BF16]
    (row,) = rows_of(alone)
    assert row.count("not tested: one process a depth, no calibration") == 2
    (row,) = rows_of(BF16[:3])
    assert "not tested: 3 depths fix it" in row  # the prefill's three coefficients
    curved = [
        measured("bf16", n, 0.99 * step_s, 1.01 * step_s)
        for n, step_s in zip(DEPTHS, (0.02, 0.02, 0.04, 0.10), strict=True)
    ]
    (row,) = rows_of(curved)
    assert any(text.startswith("does not fit (p below 0.001, up to ") for text in row)
