"""Mistakes on the command line and what it answers by itself: ``main`` in this process.

A mistake is a line for each thing that is wrong, exit code 2, and nothing runs.
"""

import os
import sys
from pathlib import Path

import pytest

from bench.__main__ import main, words
from bench.driver import sweep
from bench.errors import ConfigError
from bench.paths import ROOT
from tests.command_line import from_readme

QUANTS = ", ".join(sorted(file.stem for file in (ROOT / "conf" / "quant").glob("*.yaml")))
NO_NF5 = f"quant=nf5: no such value; want one of {QUANTS}"
SWEEPS = ", ".join(sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml")))
LAUNCHER = (
    "cells run in processes of this tool, so that none disturbs another; use where=ray or"
    " where=slurm for a cluster"
)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, in which looking at the machine is a failure."""
    monkeypatch.chdir(tmp_path)
    for name in ("BENCH_ROOT", "BENCH_SCRATCH", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what composing sets is taken back
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sweep, "look_around", lambda *_, **__: pytest.fail("it ran"))


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line."""
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    try:
        code = main()
    except SystemExit as ended:  # how Hydra ends after --help
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


MISTAKES: list[tuple[str, list[str]]] = [
    ("quant=nf5", [NO_NF5]),
    ("bach=1", ["bach=1: unknown key; did you mean batch?"]),
    ("-m bach=1,8", ["bach=1,8: unknown key; did you mean batch?"]),
    (
        "workload.new_tokns=1",
        ["workload.new_tokns=1: unknown key; did you mean workload.new_tokens?"],
    ),
    ("batch=0", ["batch=0: want an integer or max, at least 1"]),
    ("batch=half", ["batch=half: want an integer or max, at least 1"]),
    ("workload.new_tokens=-1", ["workload.new_tokens=-1: want an integer, at least 2"]),
    (
        "model=gpt2 model.revision=12e45678",
        ["model.revision=inf: want a text or null; YAML did not read it as one: quote it"],
    ),
    ("+batchsize=4", ["batchsize=4: unknown key; did you mean batch?"]),
    ("quant=fp16,nf4", ["quant=fp16,nf4: several values; add -m to measure each of them"]),
    ("sweeps=headlin", [f"sweeps=headlin: no such value; want one of {SWEEPS}"]),
    (
        "quant=nf5 bach=1 seed=-1",
        [
            NO_NF5,
            "bach=1: unknown key; did you mean batch?",
            f"seed=-1: want an integer, at least 0, at most {2**64 - 1}",
        ],
    ),
    ("batch=0 -m quant=fp16,nf4", ["batch=0: want an integer or max, at least 1"]),
    # In the last cell
    ("-m batch=1,2,0", ["batch=0: want an integer or max, at least 1"]),
    (
        "-m tracking=local,none",
        [
            "tracking, where, baseline, output_dir, margin, price_per_hour, resume, profile and"
            " dry_run cannot vary within a sweep; give one value"
        ],
    ),
    ("where=cloud", ["where=cloud: no such value; want one of here, ray, slurm"]),
    (
        "where=ray profile=true",
        ["profile=true goes with where=here: a trace stays on its machine"],
    ),
    (
        "where=slurm device=cuda:1",
        ["device=cuda:1 goes with where=here: a cluster says itself which GPU a job has"],
    ),
    ("model=gpt2 model.revision=abc quant=nf5", [NO_NF5]),
    ("baseline.quant=fp61", ["baseline.quant=fp61: no cell of this sweep has it; there are bf16"]),
    ("price_per_hour=-2", ["price_per_hour=-2: want a number or null, above 0"]),
    ("price_per_hour=0", ["price_per_hour=0: want a number or null, above 0"]),
    ("price_per_hour=inf", ["price_per_hour=inf: want a number or null, above 0"]),
    ("price_per_hour=2.50EUR", ["price_per_hour=2.50EUR: want a number or null, above 0"]),
    ("output_dir=", ["output_dir=: want the name of a folder"]),
    (
        "output_dir=file/below",
        ["output_dir=HERE/file/below: cannot be written to (Not a directory)"],
    ),
    ("workload.text=nope", ["workload.text=nope: no such file; want one of alice, code, prose"]),
    ("quality.prompts=nope", ["quality.prompts=nope: no such file; want one of basic"]),
    ("--batch 8", ["--batch: keys are given as key=value; want batch=8"]),
    ("quant=nf4 --batch=8", ["--batch=8: keys are given as key=value; want batch=8"]),
    ("quant=nf4 batch 8", ["batch: keys are given as key=value; want batch=8"]),
    ("-m batch=1,2 hydra/launcher=joblib", [f"hydra/launcher=joblib: {LAUNCHER}"]),
    ("hydra.launcher.n_jobs=4", [f"hydra.launcher.n_jobs=4: {LAUNCHER}"]),
    ("+hydra.launcher.y=z", [f"+hydra.launcher.y=z: {LAUNCHER}"]),
    (
        "engine.name=magic",
        ["engine.name=magic: no such engine; there are transformers, llama_cpp, vllm, scripted"],
    ),
    (
        "frobnicate",
        [
            "frobnicate: no such command; there are push, fetch, compare, gate, choose, advise,"
            " report, import, reproduce, sensitivity, doctor, export, and key=value starts a sweep"
        ],
    ),
    ("overrides=workload.prompt=it's", ["No closing quotation"]),
]


@pytest.mark.parametrize(("arguments", "lines"), MISTAKES, ids=[given for given, _ in MISTAKES])
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    lines: list[str],
) -> None:
    Path("file").touch()
    code, out, err = answer(monkeypatch, capsys, *arguments.split(" "))
    assert (code, out) == (2, "")
    said = [line for line in err.splitlines() if line]
    assert len(said) == len(lines)
    for line, wanted in zip(said, lines, strict=True):
        wanted = wanted.replace("HERE", str(Path.cwd()))
        assert line == wanted or (wanted == "No closing quotation" and wanted in line)
    assert not Path("outputs/sweeps").exists() or not list(Path("outputs/sweeps").iterdir())


def test_help_lists_every_group_with_its_values_and_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = answer(monkeypatch, capsys, *from_readme("python -m bench --help"))
    assert code == 0
    assert f"quant: {QUANTS}" in out
    assert "\n  -m quant=fp16,int8,nf4 batch=1,8,32 " in out
    for group in ("model", "attn", "decode", "workload", "measure", "quality", "tracking"):
        assert f"\n{group}: " in out
    for command in ("push", "fetch", "doctor", "compare", "gate", "reproduce"):
        assert f"\n  {command} " in out
    groups = ("attn: ", "model: ", "quant: ")  # Hydra has a line for each
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith(groups))


def test_looking_at_the_configuration_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = answer(monkeypatch, capsys, "--cfg", "job")
    assert code == 0
    assert "batch: 1" in out
    assert not Path("outputs").exists()


def test_what_mlflow_quotes_as_one_word_are_several_overrides() -> None:
    assert words(["-m", "sweeps=", "", 'overrides=batch=1 workload.prompt="two words"']) == [
        "-m",
        "batch=1",
        "workload.prompt=two words",
    ]
    with pytest.raises(ConfigError, match="quote it as for a shell"):
        words(["overrides=workload.prompt=it's"])
