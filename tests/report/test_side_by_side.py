"""Sweeps side by side as they are shown: on terminals of any width, on a page, for other tools."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.analysis.side_by_side import SideBySide, side_by_side
from bench.report import drawing
from bench.report.side_by_side import notes, summary, verdicts, what_differs
from bench.report.side_by_side_page import as_markdown, chart, page, table, write_comparison
from tests import fakes
from tests.analysis.test_side_by_side import AGAIN, EIGHT, FIRST, ONE, SLOWER, THEN, asked, side

ELSEWHERE = replace(
    AGAIN,
    results=tuple(
        replace(r, host=fakes.host(cpu_name="Other CPU", device_name="Other CPU"))
        for r in AGAIN.results
    ),
)
TWO, THREE = side_by_side([FIRST, SLOWER], 0.03), side_by_side([FIRST, SLOWER, ELSEWHERE], 0.03)
ONCE = side_by_side([side(fakes.paced(ONE, 0.5)), side(fakes.paced(ONE, 0.6))], 0.03)


def printed(found: SideBySide, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(summary(found))
    return capture.get()


def test_what_differs_comes_before_the_numbers() -> None:
    text = printed(THREE, 160)
    said = [
        "A = 2026-01-31_12-00-00: 2 cells, Some CPU, torch 2.9.0, commit 0123abc with changes",
        "B from A: machine, versions and code are the same",
        "C from A, what could matter most first:",
        "  device: Some CPU in A; Other CPU in C",
        "C to A is a ratio of that too, not of one change alone: device",
        "B against A: worse: of 4 times in 2 cells 1 slower by over 3% or lost, 3 not"
        " slower by that, 0 unclear",
        "C against A: no worse: ",
        "TPOT ms, times as fast",
        "0.91x slower (0.9",
        "TTFT ms",
    ]
    places = [text.index(each) for each in said]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160])
@pytest.mark.parametrize("found", [TWO, THREE, ONCE], ids=["two", "three", "once"])
def test_every_number_is_whole_at_any_width(found: SideBySide, width: int) -> None:
    text = printed(found, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "500.00" in text or found is not ONCE
    wanted = "0.83x ?" if found is ONCE else "0.91x slower"
    assert wanted in " ".join(text.split())


def test_cells_of_one_sweep_alone_are_counted_and_named() -> None:
    found = side_by_side([side(FIRST.results[0]), AGAIN], 0.03)
    assert what_differs(found)[-1] == f"only in B, not compared: 1 cell ({EIGHT.label})"
    many = side(*(fakes.paced(fakes.cell(batch=b), 0.5) for b in (1, 2, 3, 4, 5, 6)))
    found = side_by_side([side(FIRST.results[0]), many], 0.03)
    assert "only in B, not compared: 5 cells (" in (short := what_differs(found, brief=True)[-1])
    assert short.endswith(" and 2 more)")
    assert "more" not in what_differs(found)[-1]


def test_cells_that_only_look_alike_are_told_apart() -> None:
    careful = fakes.cell(measure=fakes.group("measure", "standard"))
    found = side_by_side([side(fakes.paced(cell, 0.5)) for cell in (ONE, careful)], 0.03)
    said = "cells of one name that are not the same differ in measure"
    assert said in what_differs(found)
    two = [side(fakes.paced(ONE, 0.5)) for _ in range(2)]
    assert said in what_differs(side_by_side([*two, side(fakes.paced(careful, 0.5))], 0.03))
    assert said not in what_differs(side_by_side(two, 0.03))


def test_another_base_and_what_has_no_number_are_said() -> None:
    failed = fakes.result(cell=ONE, outcome=fakes.Outcome("oom", "too large"))
    found = side_by_side([side(failed), AGAIN, SLOWER], 0.03)
    text = printed(found, 160)
    assert "oom" in text
    assert "0.91x slower to B" in text
    damaged = replace(side(FIRST.results[1]), damaged={FIRST.results[0].cell_id: "no JSON"})
    found = side_by_side([damaged, AGAIN, SLOWER], 0.03)
    assert "damaged" in printed(found, 160)
    assert "and a result cannot be read" in verdicts(found)[0]


def test_one_process_each_says_what_it_takes() -> None:
    assert any(line.startswith("?: one process on each side") for line in notes(ONCE))
    assert "cannot tell whether something is worse" in verdicts(ONCE)[0]


def test_medians_that_say_otherwise_are_a_note() -> None:
    """The least of two requests is as before, their median is not."""
    steady, slow_half = (
        fakes.result(
            cell=ONE,
            replicates=tuple(
                fakes.process(
                    repeats=tuple(
                        fakes.Repeat(1.0, (step_s,) * 3, 1 + 3 * step_s)
                        for step_s in (least, least * other, least * other)
                    )
                )
                for least in (0.500 + by, 0.501 + by, 0.502 + by)
            ),
        )
        for other, by in ((1.0, 0.0), (1.2, 0.0003))
    )
    found = side_by_side([side(steady), side(slow_half)], 0.03)
    (said,) = [line for line in notes(found) if "medians of TPOT" in line]
    assert said.startswith("B, smollm2-135m bf16 batch 1: the medians of TPOT say 0.83x")


def test_equal_quality_is_a_line_and_moved_quality_a_table() -> None:
    sides = [
        side(fakes.paced(ONE, *steps, divergence=each))
        for steps, each in (((0.5, 0.501), THEN), ((0.5005, 0.5015), THEN))
    ]
    text = printed(side_by_side(sides, 0.03), 160)
    assert "divergence and perplexity: equal in every window of text, to the last digit" in text
    assert "KL nat" not in text
    moved = asked((2.1, 2.61, 3.09, 2.3), (0.52, 0.82, 0.319, 0.621))
    sides[1] = side(fakes.paced(ONE, 0.5005, 0.5015, divergence=moved))
    text = printed(side_by_side(sides, 0.03), 160)
    assert "+0.02 higher (+0.0" in text
    assert "1.1052x higher (1.0" in text


def test_the_page_needs_no_network_and_has_all_of_it(tmp_path: Path) -> None:
    files = write_comparison(tmp_path, THREE)
    assert [f.name for f in files] == ["comparison.html", "comparison.md", "comparison.csv"]
    text = files[0].read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    for reference in ('src="http', 'href="http', "url(http", "@import", "<script"):
        assert reference not in text.replace('xmlns:xlink="http', "").replace('xmlns="http', "")
    for line in (*what_differs(THREE), *verdicts(THREE), *notes(THREE)):
        assert line.strip() in text
    assert text.count("<svg") == 1
    assert "0.91x slower" in as_markdown(THREE)


def test_the_page_escapes_what_a_sweep_was_asked() -> None:
    evil = replace(FIRST, sweep=replace(FIRST.sweep, overrides=("workload.prompt=<b>hi</b>",)))
    assert "<b>hi" not in page(side_by_side([evil, AGAIN], 0.03))


def test_the_picture_says_what_moved_most_and_is_well_formed() -> None:
    drawn = chart(TWO)
    assert drawn is not None
    assert drawn.title == "TPOT of batch 1 moved most: 0.91 times as fast in B"
    ElementTree.fromstring(drawing.svg(drawn))
    many = [
        side(
            *(fakes.paced(fakes.cell(batch=b), 0.5 + b + by, 0.501 + b + by) for b in range(1, 40))
        )
        for by in (0.0, 0.1)
    ]
    few = chart(side_by_side(many, 0.03))
    assert few is not None
    assert few.title.endswith("(the 24 that moved most, of 39)")
    taken_over = side_by_side([FIRST, FIRST], 0.03)
    assert chart(taken_over) is None
    assert "the same readings" in page(taken_over)


def test_the_table_for_other_tools_has_every_number() -> None:
    rows = list(csv.DictReader(io.StringIO(table(THREE))))
    steps = [row for row in rows if row["metric"] == "tpot_s" and row["batch"] == "1"]
    assert [row["verdict"] for row in steps] == ["", "slower", "equivalent"]
    assert float(steps[0]["value"]) == pytest.approx(0.501, abs=1e-4)
    assert float(steps[1]["low"]) < float(steps[1]["ratio"]) < float(steps[1]["high"])
