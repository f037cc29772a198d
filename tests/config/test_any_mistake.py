"""Ten configuration mistakes that nobody thought of: each is told clearly, and none as a
traceback.

They go through ``main`` in this process, as the command line would take them; what it prints and
returns is all that a user sees. None of them may get as far as looking at the machine.
"""

import sys

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bench import __main__
from bench.driver import sweep

GROUPS = (
    "model",
    "engine",
    "quant",
    "attn",
    "decode",
    "workload",
    "measure",
    "quality",
    "tracking",
)
WHOLE = (
    "batch",
    "seed",
    "threads",
    "workload.new_tokens",
    "workload.prompt_tokens",
    "measure.warmups",
    "measure.repeats",
)
WHOLE += ("measure.passes", "measure.window", "quality.max_new_tokens")
REAL = (
    "measure.target",
    "measure.budget_s",
    "margin",
    "price_per_hour",
    "measure.limits_s.load",
    "measure.telemetry_s",
)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=3, max_size=12).map(
    lambda word: f"zz{word}"
)

wrong_value_of_a_group = st.builds("{}={}".format, st.sampled_from(GROUPS), WORDS)
unknown_key = st.builds(
    "{}{}={}".format,
    st.sampled_from(["", "+", "quant.", "+measure.", "model."]),
    WORDS,
    st.integers(0, 9),
)
impossible_number = st.builds(
    "{}={}".format, st.sampled_from((*WHOLE, *REAL)), st.integers(-1000, -1)
)
WRONG = st.one_of(WORDS, st.sampled_from(["true", "[1,2]", "{a:1}", "nan", "inf"]))
wrong_type = st.builds("{}={}".format, st.sampled_from((*WHOLE, *REAL)), WRONG)
no_override = st.sampled_from(
    ["batch==4", "quant=[", "batch=1,,2", "quant={fp16", "=", "model.=1", "batch='1", "a b=1"]
)
COMPANY = st.lists(
    st.sampled_from(["-m", "quant=nf4", "batch=8", "model=tiny"]), max_size=2, unique=True
)
MISTAKES = st.one_of(
    wrong_value_of_a_group, unknown_key, impossible_number, wrong_type, no_override
)


@pytest.mark.timeout(300)
@settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(mistake=MISTAKES, also=COMPANY)
def test_a_mistake_is_told_in_a_line_and_nothing_runs(
    mistake: str,
    also: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(sweep, "look_around", lambda *_, **__: ran.append(mistake))
    monkeypatch.setattr(sys, "argv", ["bench", *also, mistake])
    code = __main__.main()
    said = capsys.readouterr()
    assert ran == []
    assert code == 2
    assert said.out == ""
    assert 1 <= len(said.err.splitlines()) <= 3
    assert "Traceback" not in said.err
    name = mistake.lstrip("+").partition("=")[0]
    assert name in said.err or mistake in said.err
