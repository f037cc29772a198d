"""The grid before anything is loaded."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.driver import worker as attempt
from bench.driver.plan import resolve
from bench.record.result import Outcome, Result
from bench.report import dry
from tests import fakes
from tests.driver.test_worker import earlier


def shown(records: list[Result], outputs: Path) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(dry.grid(records, outputs))
    return capture.get()


def test_each_cell_says_what_it_needs_how_long_it_takes_and_what_becomes_of_it(
    tmp_path: Path,
) -> None:
    thrice = fakes.group("measure", "quick", passes=3)
    host = fakes.host()
    cells = [
        resolve(fakes.cell(batch=batch, quant="fp32", measure=thrice), host)
        for batch in (1, 2, 4, 8)
    ]
    fresh, skipped, partly, done = (attempt.begin(cell, host, "") for cell in cells)
    skipped = replace(skipped, outcome=Outcome("skipped", "because"))
    partly = replace(partly, passes=(fakes.process(),), reused_from="an earlier sweep")
    done = replace(done, passes=(fakes.process(),) * 3, reused_from="an earlier sweep")
    earlier(tmp_path, "2026-01-01_00-00-00", partly)
    text = shown([fresh, skipped, partly, done], tmp_path)
    rows = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in text.partition("4 cells")[0].splitlines()
        if line.strip()
    }
    assert rows["1"].endswith("? 3 processes")
    assert rows["1"].startswith("514 ")  # 134,515,008 x 4 bytes and a little cache, in MiB
    assert rows["2"].endswith("0 skipped: because")
    assert rows["4"].endswith("25 2 processes more, 1 taken from an earlier sweep")  # twice 12.5 s
    assert rows["8"].endswith("0 taken from an earlier sweep (ok)")
    assert "4 cells; about 25 s, by earlier runs of these cells" in text
    assert "1 cells never ran on this machine" in text
