"""Each group with each kind of value that it cannot take, YAML files that cannot be read, and what
shells and MLflow make of a command: a sentence each, exit code 2, and never a traceback."""

import shutil
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.config import compose, explain
from bench.driver import sweep
from bench.paths import CONF

GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
BROKEN = {
    "tab": b"name: broken\n\tscheme: none\n",
    "bracket": b"name: [broken\n",
    "bytes": b"name: \xff\xfe\n",
    "interpolation": b"name: broken\nscheme: ${nosuch}\ndtype: bf16\n",
    "missing": b"name: broken\nscheme: ???\ndtype: bf16\n",
    "base": b"defaults: [nosuch]\nname: broken\n",
    "text": b"just a text\n",
    "list": b"- a\n- b\n",
    "empty": b"",
}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BENCH_ROOT", "BENCH_SCRATCH"):
        monkeypatch.setenv(name, "")  # what composing sets is taken back
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sweep, "look_around", lambda *_, **__: pytest.fail("it ran"))


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    code = main()
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_takes_one_value_that_it_has(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("null", "", "[a,b]", "zz"):
        lines = said(monkeypatch, capsys, f"{group}={value}")
        assert len(lines) == 1
        assert lines[0].startswith(f"{group}={value}: "), lines
    assert lines[0].startswith(f"{group}=zz: no such value; want one of ")


def test_a_list_says_how_to_measure_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, capsys, "quant=[nf4, fp32]") == [
        "quant=[nf4, fp32]: one cell has one quant; to measure each of them: -m quant=nf4,fp32"
    ]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_yaml_that_cannot_be_read_is_named(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "conf"
    shutil.copytree(CONF, own)
    (own / "quant" / "broken.yaml").write_bytes(BROKEN[kind])
    for module in (compose, explain):
        monkeypatch.setattr(module, "CONF", own)
    lines = said(monkeypatch, capsys, "quant=broken")
    assert 1 <= len(lines) <= 4
    assert all("quant" in line for line in lines)
    assert not any("no such value" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ["+sweeps=headline"],
            "sweeps is there without the plus; want sweeps=headline",
        ),
        (["workload.text=null", "workload.prompt="], "workload.prompt=: want at least a character"),
        (["workload=prompts"], "workload.path=null: want a file of prompts, a JSON object a line"),
        (["workload=prompts", "workload.path=x", "bach=4"], "did you mean batch?"),
        (
            ["workload=prompts", "workload.path=none.jsonl"],
            "workload.path=none.jsonl: cannot be read",
        ),
        (["model.path="], "model.path=: want a folder that save_pretrained wrote, or null"),
        (["seed=18446744073709551616"], "at most 18446744073709551615"),
        (["workload.text=null", "workload.prompt=h\xe9 \xe0?"], "if it is a text, quote it: "),
        (["--workload.new_tokens", "4"], "want workload.new_tokens=4"),
        (["--workload.new_tokens=4"], "want workload.new_tokens=4"),
    ],
)
def test_a_sentence_says_what_would_be_right(
    arguments: list[str],
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (line,) = said(monkeypatch, capsys, *arguments)
    assert wanted in line


def test_a_parameter_that_mlproject_does_not_name_is_an_override(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    (line,) = said(monkeypatch, capsys, "quant=nf4", "--workload.new_tokens", "4")
    assert line.endswith(
        'want workload.new_tokens=4; with mlflow run: -P overrides="workload.new_tokens=4"'
    )


@pytest.mark.parametrize("typed", ["~/m", "./m", "x/../m", "m/"])
def test_a_path_is_read_once(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = str(tmp_path / "m")
    Path(whole).write_text('{"prompt": "a"}')
    keys = ("model.path", "output_dir", "workload.path", "quality.texts")
    values = (typed, typed, typed, [typed])
    own = [f"{key}={value!r}" for key, value in zip(keys, values, strict=True)]
    (config,) = compose.parsed(compose.collect([*own, "workload=prompts"]))
    cell = config.cell
    assert (cell.model.path, cell.workload.path, cell.quality.texts) == (whole, whole, (whole,))
    assert config.settings.output_dir == whole
