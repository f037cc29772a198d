"""The line that says where a running sweep is."""

import re

import pytest

from bench.report.progress import ProgressLine


def progress(capsys: pytest.CaptureFixture[str]) -> str:
    with ProgressLine() as line:
        line.plan(3)
        for label in ("tiny/nf4/sdpa/b1", "tiny/nf4/sdpa/b2"):
            line.cell(label)
            line.show("measure", "2/5")
            line.finished()
    return capsys.readouterr().err


def test_the_line_says_where_the_sweep_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown = progress(capsys)
    clock = r"\d:\d\d"
    first, second = (rf"cell {n}/3 · tiny/nf4/sdpa/b{n} · measure 2/5 · {clock}" for n in (1, 2))
    assert re.search(f"{first} elapsed", shown)
    assert re.search(f"{second} elapsed · about {clock} left", shown)


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1", "CI": "true"}])
def test_pipes_and_ci_see_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str]
) -> None:
    for name in ("CI", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert progress(capsys) == ""
