"""At any width of a terminal every number is whole; what has no room is named."""

from dataclasses import replace

import pytest
from rich.console import Console

from bench.analysis.comparison import Comparison, compare
from bench.report import grid, terminal
from tests.analysis.test_advice import KNOWN, SWEEP
from tests.report.test_terminal import RESULTS, sweep

WIDTHS = (60, 80, 100, 120, 160)
COMPARED = compare(KNOWN, SWEEP)
ENDED_BADLY = compare(RESULTS, sweep())


def printed(comparison: Comparison, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(terminal.summary(comparison))
    return capture.get()


def numbers(comparison: Comparison) -> dict[str, list[str]]:
    """By heading, what stands in a column of numbers."""
    cells = grid.cells(comparison)
    return {
        column.heading: [row[i].text for row in cells.rows]
        for i, column in enumerate(cells.columns)
        if column.is_number and column.is_brief
    }


@pytest.mark.parametrize("width", range(60, 161, 4))
@pytest.mark.parametrize("comparison", [COMPARED, ENDED_BADLY], ids=["ok", "oom"])
def test_every_number_is_whole_or_its_column_is_named(comparison: Comparison, width: int) -> None:
    text = printed(comparison, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    words = set(text.split())
    left_out = " ".join(text.split()).partition("no room for: ")[2]
    shown = 0
    for heading, entries in numbers(comparison).items():
        if heading not in left_out:
            shown += 1
            assert set(entries) <= words
    assert shown >= 2


@pytest.mark.parametrize("width", WIDTHS)
def test_the_least_telling_go_first(width: int) -> None:
    text = printed(COMPARED, width)
    assert ("no room for" in text) == (width < 126)
    assert "TTFT" in text
    assert "TPOT" in text


def test_where_nothing_more_can_go_each_row_is_a_record() -> None:
    long = replace(KNOWN[0].cell.model, name="m" * 50)
    renamed = replace(KNOWN[0], cell_id="other", cell=replace(KNOWN[0].cell, model=long))
    text = " ".join(printed(compare([*KNOWN, renamed], SWEEP), 60).split())
    assert "quant=nf4 batch=32" in text
    assert "TTFT ms 1,200.0, TPOT ms 150.00" in text
