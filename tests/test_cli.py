"""Mistakes on the command line: one clear line each, exit code 2, no traceback, nothing heavy
imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.paths import ROOT
from tests.command_line import bench, environment, from_readme

NO_NF5 = (
    "quant=nf5: no such value; want one of bf16, fp16, fp32, fp4, int8, int8_nodecomp, nf4,"
    " nf4_double"
)
HEAVY = ("torch", "transformers", "mlflow", "bitsandbytes")

SWEEPS = ", ".join(sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml")))
COMMANDS = "push, fetch, gate, advise, report, reproduce, doctor"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["quant=nf5"],
            [NO_NF5],
        ),
        (["bach=1"], ["bach=1: unknown key; did you mean batch?"]),
        (
            ["workload.new_tokns=1"],
            ["workload.new_tokns=1: unknown key; did you mean workload.new_tokens?"],
        ),
        (["batch=0"], ["batch=0: want an integer, at least 1"]),
        (["workload.new_tokens=-1"], ["workload.new_tokens=-1: want an integer, at least 2"]),
        (["batch=eight"], ["batch=eight: want an integer, at least 1"]),
        (["batch=true"], ["batch=true: want an integer, at least 1"]),
        (
            ["model=gpt2", "model.revision=12e45678"],
            ["model.revision=inf: want a text or null; YAML did not read it as one: quote it"],
        ),
        (["+batchsize=4"], ["batchsize=4: unknown key; did you mean batch?"]),
        (["quant=fp16,nf4"], ["quant=fp16,nf4: several values; add -m to measure each of them"]),
        (["sweeps=headlin"], [f"sweeps=headlin: no such value; want one of {SWEEPS}"]),
        (
            ["quant=nf5", "bach=1", "seed=-1"],
            [
                NO_NF5,
                "bach=1: unknown key; did you mean batch?",
                "seed=-1: want an integer, at least 0",
            ],
        ),
        (["-m", "batch=1,0", "quant=fp16,nf4"], ["batch=0: want an integer, at least 1"]),
        (
            ["-m", "tracking=local,none"],
            [
                "tracking, baseline, output_dir, margin, resume, profile and dry_run are no axes:"
                " want one value of each"
            ],
        ),
        (["model=gpt2", "model.revision=abc", "quant=nf5"], [NO_NF5]),
        (
            ["baseline.quant=fp61"],
            ["baseline.quant=fp61: no cell of this sweep has it; there are bf16"],
        ),
        (["output_dir="], ["output_dir=: want the name of a folder"]),
        (
            ["workload.text=nope"],
            ["workload.text=nope: no such file; want one of alice, code, prose"],
        ),
        (["quality.prompts=nope"], ["quality.prompts=nope: no such file; want one of basic"]),
        (
            ["frobnicate"],
            [f"frobnicate: no such command; there are {COMMANDS}, and key=value starts a sweep"],
        ),
        (
            ["push"],
            ["no sweep in outputs/sweeps; want a folder like outputs/sweeps/2026-01-31_12-00-00"],
        ),
        (
            ["reproduce", "nowhere"],
            [
                "nowhere: no such folder, and no store of runs at outputs/mlflow.db; want one in"
                " MLFLOW_TRACKING_URI"
            ],
        ),
        (["--batch", "8"], ["--batch: keys are given as key=value; want batch=8"]),
        (["quant=nf4", "--batch=8"], ["--batch=8: keys are given as key=value; want batch=8"]),
        (["quant=nf4", "batch", "8"], ["batch: keys are given as key=value; want batch=8"]),
        (["batch=0", "-m", "quant=fp16,nf4"], ["batch=0: want an integer, at least 1"]),
        (["measure.target=7"], ["measure.target=7: want a share like 0.02 for 2 %, or null"]),
        (["margin=3"], ["margin=3: want a share like 0.03 for 3 %"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], lines: list[str]) -> None:
    done = bench(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line] == lines


def test_a_mistake_in_the_ninth_cell_stops_the_sweep_before_the_first(tmp_path: Path) -> None:
    done = bench(tmp_path, "-m", "model=tiny", "batch=1,2,3,4,5,6,7,8,0")
    assert done.returncode == 2
    assert not (tmp_path / "outputs" / "sweeps").exists()


def test_a_folder_that_is_no_sweep_is_an_error(tmp_path: Path) -> None:
    done = bench(tmp_path, "push", str(tmp_path))
    assert done.returncode == 1
    assert "no sweep.json in it" in done.stderr
    assert "Traceback" not in done.stderr


def test_outputs_that_cannot_be_written_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = bench(tmp_path, "model=tiny", "output_dir=file/below")
    assert done.returncode == 2
    assert done.stderr == "output_dir=file/below: cannot write there (Not a directory)\n"


def test_nothing_heavy_is_imported_before_the_configuration_is_checked(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['bench', 'batch=0']\n"
        "from bench.__main__ import main\n"
        "code = main()\n"
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2 []\n"


def test_help_lists_every_group_with_its_values_and_every_command(tmp_path: Path) -> None:
    done = bench(tmp_path, *from_readme("python -m bench --help"))
    assert done.returncode == 0
    assert "quant: bf16, fp16, fp32, fp4, int8, int8_nodecomp, nf4, nf4_double" in done.stdout
    assert "python -m bench -m quant=fp16,int8,nf4 batch=1,8,32" in done.stdout
    for group in ("model", "attn", "decode", "workload", "measure", "quality", "tracking"):
        assert f"\n{group}: " in done.stdout
    for command in ("push", "fetch", "doctor", "gate", "reproduce"):
        assert f"python -m bench {command} " in done.stdout


@pytest.mark.parametrize(
    ("flags", "shown"), [(["--cfg", "job"], "batch: 1"), (["--info", "defaults"], "quant/bf16")]
)
def test_looking_at_the_configuration_runs_nothing(
    tmp_path: Path, flags: list[str], shown: str
) -> None:
    done = bench(tmp_path, *flags)
    assert done.returncode == 0
    assert shown in done.stdout
    assert not (tmp_path / "outputs" / "sweeps").exists()
