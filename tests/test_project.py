"""What ``mlflow run`` makes of MLproject: parameters to our command line, its run to our run, from
a folder and from git."""

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from bench.__main__ import words
from bench.config.compose import collect
from bench.errors import ConfigError
from bench.paths import ROOT
from tests.command_line import environment, from_readme

TINY = "workload.new_tokens=4 measure.warmups=1 measure.repeats=2 threads=1"
ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]


def filled_in(entry: str, **values: str) -> list[str]:
    """The words after ``python -m bench`` as a shell gets them from MLflow, which quotes each
    value."""
    point = ENTRY_POINTS[entry]
    defaults = {name: str(spec.get("default", "")) for name, spec in point["parameters"].items()}
    quoted = {name: shlex.quote(value) for name, value in (defaults | values).items()}
    command = shlex.split(point["command"].format(**quoted))
    assert command[:3] == ["python", "-m", "bench"]
    return command[3:]


@pytest.mark.parametrize(
    ("entry", "values", "wanted"),
    [
        (
            "main",
            {"quant": "nf4", "batch": "8", "overrides": 'seed=1 workload.prompt="two words"'},
            (
                "model=smollm2-135m quant=nf4 attn=auto decode=loop workload=quick batch=8"
                " measure=quick quality=samples seed=1 'workload.prompt=two words'"
            ),
        ),
        ("sweep", {"name": "headline"}, "-m sweeps=headline"),
        ("sweep", {"overrides": "quant=fp16,nf4 batch=1,8"}, "-m quant=fp16,nf4 batch=1,8"),
        ("sweep", {"name": "headline", "overrides": "batch=1"}, "-m sweeps=headline batch=1"),
        ("report", {}, "report"),
        ("report", {"sweep": "2026-01-31_12-00-00"}, "report 2026-01-31_12-00-00"),
        ("reproduce", {"run_id": "abc", "overrides": "--margin 0.1"}, "reproduce abc --margin 0.1"),
    ],
)
def test_parameters_become_our_command_line(
    entry: str, values: dict[str, str], wanted: str
) -> None:
    assert words(filled_in(entry, **values)) == shlex.split(wanted)


def test_a_sweep_s_entry_point_is_the_sweep_s_command() -> None:
    command = from_readme("mlflow run . --env-manager=local -e sweep -P name=headline")
    entry = command[command.index("-e") + 1]
    values = dict(w.split("=", 1) for flag, w in itertools.pairwise(command) if flag == "-P")
    assert words(filled_in(entry, **values)) == ["-m", "sweeps=headline"]


@pytest.mark.parametrize(
    ("entry", "values", "said"),
    [
        ("main", {"quant": "fp16,nf4"}, "quant=fp16,nf4: several values; add -m to measure each"),
        ("main", {"overrides": "workload.prompt=it's"}, "quote it as for a shell"),
    ],
)
def test_parameters_that_make_no_command_are_a_mistake(
    entry: str,
    values: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # Hydra writes below it
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(ConfigError, match=said):
        collect(words(filled_in(entry, **values)))


def test_every_parameter_stands_in_its_command() -> None:
    """MLflow makes a flag of any other."""
    for point in ENTRY_POINTS.values():
        assert all(f"{{{name}}}" in point["command"] for name in point["parameters"])
    groups = {"model", "quant", "attn", "decode", "workload", "measure", "quality"}
    assert ENTRY_POINTS["main"]["parameters"].keys() == {*groups, "batch", "overrides"}


def test_the_defaults_are_those_of_the_command_line() -> None:
    config = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text(encoding="utf-8"))
    groups = {
        name: value
        for entry in config["defaults"]
        if isinstance(entry, dict)
        for name, value in entry.items()
    }
    for name, spec in ENTRY_POINTS["main"]["parameters"].items():
        if name != "overrides":
            assert spec["default"] == str(groups.get(name, config.get(name)))


def test_the_environment_is_the_lock_file() -> None:
    wanted = yaml.safe_load((ROOT / "python_env.yaml").read_text(encoding="utf-8"))
    assert wanted["dependencies"] == ["-r requirements.lock"]
    assert all("==" in line for line in wanted["build_dependencies"])


def project(folder: Path, command: list[str], *extra: str, **variables: str) -> list[Run]:
    """``mlflow run`` in ``folder`` with a store of its own; its runs."""
    uri = f"sqlite:///{folder / 'runs.db'}"
    # Where a shell would have activated it
    path = f"{Path(sys.executable).parent}:{environment(folder)['PATH']}"
    own = {**environment(folder), "PATH": path, "MLFLOW_TRACKING_URI": uri, **variables}
    del own["PYTHONPATH"]
    done = subprocess.run(
        [*command, *extra], cwd=folder, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def test_a_cell_is_the_run_that_mlflow_has_opened_from_git_too(tmp_path: Path) -> None:
    """At a commit of a plain repository; the same command takes a folder."""
    bare = tmp_path / "project.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(ROOT), str(bare)], check=True)
    commit = subprocess.run(
        ["git", "-C", str(bare), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    command = from_readme("mlflow run . --env-manager=local -P quant=nf4 -P batch=8")
    # What exists on this disk MLflow takes for a folder, so git is told that this address is the
    # repository.
    address = "https://git.invalid/project.git"
    known = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{bare.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }
    command = [{".": address}.get(word, word) for word in command]
    version = ["-v", commit.stdout.strip()]
    (run,) = project(
        tmp_path, command, *version, "-P", "model=tiny", "-P", f"overrides={TINY}", **known
    )
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny/nf4/sdpa/b8"
    assert run.data.metrics["decode_tok_s"] > 0
    assert (run.data.params["batch"], run.data.params["cell.batch"]) == ("8", "8")
    assert run.data.tags["mlflow.source.git.commit"] == commit.stdout.strip()
    assert run.data.tags["bench.git_dirty"] == "false"
