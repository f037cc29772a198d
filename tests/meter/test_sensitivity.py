"""The windows of a study's text, and an engine without layers."""

from pathlib import Path

import pytest

from bench.engine.prompts import ByteTokenizer
from bench.engine.protocol import ENGINES
from bench.errors import CellFailure
from bench.meter.sensitivity import Plan, spread_windows, study
from tests import fakes


class Marked(ByteTokenizer):
    begins = (300,)


def test_windows_are_spread_over_the_whole_text() -> None:
    text = "".join(chr(ord("a") + i) for i in range(20))
    windows = spread_windows(text, ByteTokenizer(), 3, 4)
    assert [bytes(window.tolist()).decode() for window in windows] == ["abcd", "ijkl", "qrst"]
    assert spread_windows(text, ByteTokenizer(), 1, 4).tolist() == [list(b"abcd")]


def test_each_window_begins_as_a_text_does() -> None:
    windows = spread_windows("abcdefgh", Marked(), 2, 5)
    assert windows.tolist() == [[300, *b"abcd"], [300, *b"efgh"]]


def test_windows_do_not_overlap() -> None:
    with pytest.raises(CellFailure, match="has 8 tokens, less than 3 windows of 4"):
        spread_windows("abcdefgh", ByteTokenizer(), 3, 4)


def test_an_engine_without_layers_says_so(tmp_path: Path) -> None:
    cell = fakes.cell(model="tiny", engine="scripted", quant="bf16")
    plan = Plan({}, {}, "nf4", str(tmp_path / "text"), 1, 8, is_exact=False)
    with pytest.raises(CellFailure, match="engine=scripted has no layers"):
        study(lambda *_: None, ENGINES["scripted"], cell, plan)
