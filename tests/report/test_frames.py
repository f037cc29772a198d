"""Sweeps as DataFrames, and the notebook that shows them, executed."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

import bench
from bench.errors import ConfigError
from bench.paths import ROOT
from bench.record.result import Outcome
from tests import fakes, stores
from tests.analysis.test_advice import KNOWN

NOTEBOOK = json.loads((ROOT / "sweeps" / "explore.ipynb").read_text(encoding="utf-8"))


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    failed = fakes.result(cell=fakes.resolved(quant="fp4"), outcome=Outcome("oom", "no memory"))
    return stores.swept(tmp_path / "outputs", *KNOWN, failed)


def test_a_row_is_a_cell_with_values_intervals_and_verdicts(swept: Path) -> None:
    found = bench.results()
    assert list(found["quant"].unique()) == ["bf16", "int8", "nf4", "fp4"]
    nf4 = found[(found["quant"] == "nf4") & (found["batch"] == "1")].iloc[0]
    assert nf4["tpot_s"] == pytest.approx(0.02)
    assert nf4["tpot_s_low"] <= nf4["tpot_s"] <= nf4["tpot_s_high"]
    assert nf4["tpot_speedup"] == pytest.approx(2.0)
    assert nf4["tpot_speedup_verdict"] == "faster"
    assert found.iloc[-1]["status"] == "oom"
    assert found.index.is_unique
    assert bench.results(swept.name).equals(found)
    assert bench.results(str(swept)).equals(found)


def test_readings_are_raw_and_one_row_each(swept: Path) -> None:
    found = bench.readings()
    timed = found[~found["is_warmup"]]
    assert len(timed) == sum(len(m.repeats) for r in KNOWN for m in r.measurements)
    first = KNOWN[0].measurements[0].repeats[0]
    assert tuple(timed.iloc[0]["decode_step_s"]) == first.decode_step_s
    assert set(timed["process"]) == {0, 1, 2}


def test_no_sweep_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no sweep in outputs/sweeps"):
        bench.results()
    with pytest.raises(AttributeError, match="no attribute 'result'"):
        bench.result  # noqa: B018


def test_the_notebook_runs(swept: Path) -> None:
    mpl.use("Agg")
    names: dict[str, Any] = {}
    code = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
    assert len(code) >= 4
    for source in code:
        exec(source, names)
    assert len(names["cells"]) == len(KNOWN) + 1
    assert names["medians"].shape == (3, len(KNOWN))
