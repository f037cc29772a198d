"""Models without a YAML: what a name means, and how it goes through Hydra."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from bench.config.cell import Model
from bench.config.compose import collect, parsed
from bench.errors import ConfigError
from bench.paths import CONF, ROOT


@pytest.fixture(autouse=True)
def an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BENCH_ROOT", "HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "")  # what composing sets is taken back
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["bench"])


def models(*arguments: str) -> list[Model]:
    return [config.cell.model for config in parsed(collect(list(arguments)))]


def test_folders_files_repositories_and_shipped_names_stand_in_one_list(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    (tmp_path / "x.gguf").touch()
    found = models("-m", "model='my model',./x.gguf,Qwen/Qwen3-0.6B,tiny", "quant=bf16,nf4")
    assert [model.name for model in found[::2]] == ["my model", "x", "Qwen3-0.6B", "tiny"]
    folder, file, hub, shipped = found[::2]
    assert found[1::2] == found[::2]
    assert (folder.path, file.path) == (str(tmp_path / "my model"), str(tmp_path / "x.gguf"))
    assert (hub.repo, hub.revision, hub.path) == ("Qwen/Qwen3-0.6B", None, None)
    assert shipped.architecture is not None


def test_a_shipped_name_comes_before_a_folder_and_a_folder_before_the_hub(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert models("model=tiny")[0].path is None
    assert models("model=./tiny")[0].path == str(tmp_path / "tiny")
    assert models("model=owner/name")[0].path == str(tmp_path / "owner" / "name")


def test_a_configuration_alone_has_random_weights(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (by_file,) = models("model=big/config.json")
    assert (by_file.name, by_file.weights) == ("big", "random")
    (by_key,) = models("model=tiny", "model.config=big")
    assert by_key.config == str(tmp_path / "big")
    with pytest.raises(ConfigError, match="goes with weights=random"):
        models("model=smollm2-135m", "model.config=big")


def test_every_key_of_a_model_can_be_given() -> None:
    (found,) = models("model=a/b", "model.revision=v1", "model.weights=random", "model.name=mine")
    assert (found.name, found.repo, found.revision, found.weights) == (
        "mine",
        "a/b",
        "v1",
        "random",
    )


@pytest.mark.parametrize("typed", ["./nothing", "../x", "nothing.gguf", "a/b/config.json"])
def test_a_path_with_nothing_at_its_end_is_named(typed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models(f"model={typed}")
    (problem,) = caught.value.problems
    assert problem.startswith(f"model={typed}: no such folder or file; want a folder")


def test_a_word_that_names_nothing_is_told_what_it_could_be() -> None:
    with pytest.raises(ConfigError) as caught:
        models("model=smollm")
    (problem,) = caught.value.problems
    assert "smollm2-135m, tiny, a folder, a .gguf file, or OWNER/NAME on the hub" in problem


def test_a_file_of_sweeps_may_name_any_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = models("sweeps=headline", "model=a/b", "batch=1")
    assert {model.repo for model in found} == {"a/b"}
    assert len(found) == 3


GRIDS = [
    ["quant=fp16,nf4", "batch=1,8", "workload=quick,chat"],
    ["quant=nf4,fp4", "quant.parameters.double_quant=true,false", "batch=1,2"],
    ["measure=quick,standard", "measure.repeats=3,4", "seed=1,2"],
    ["model=gpt2,mistral-7b", "model.revision=a,b", "attn=sdpa"],
    ["baseline.quant=nf4", "quant=fp16,nf4", "model.weights=random", "model=tiny,gpt2"],
]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_is_composed_as_hydra_would_cell_by_cell(grid: list[str]) -> None:
    each = [
        [f"{key}={value}" for value in values.split(",")]
        for key, _, values in (override.partition("=") for override in grid)
    ]
    wanted: list[Any] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        patch.setenv("BENCH_ROOT", str(ROOT))
        for overrides in itertools.product(*each):
            config = hydra_compose("config", list(overrides))
            wanted.append(OmegaConf.to_container(config, resolve=True))
    assert collect(["-m", *grid]) == wanted


def test_axes_that_change_one_another_are_composed_together(tmp_path: Path) -> None:
    (own := tmp_path / "workload").mkdir()
    for name, dtype in (("a", "fp16"), ("b", "fp32")):
        (own / f"{name}.yaml").write_text(
            f"# @package _global_\nquant: {{dtype: {dtype}}}\n"
            f"workload: {{name: {name}, text: prose, prompt_tokens: 8, new_tokens: 4}}\n"
        )
    search = f"hydra.searchpath=[file://{ROOT},file://{tmp_path}]"
    jobs = collect(["-m", search, "quant=bf16,nf4", "workload=a,b"])
    seen = [(job["quant"]["name"], job["quant"]["dtype"], job["workload"]["name"]) for job in jobs]
    assert seen == [
        ("bf16", "fp16", "a"),
        ("bf16", "fp32", "b"),
        ("nf4", "fp16", "a"),
        ("nf4", "fp32", "b"),
    ]


def test_a_folder_of_the_users_own_has_more_values(tmp_path: Path) -> None:
    (own := tmp_path / "mine" / "workload").mkdir(parents=True)
    (own / "odd.yaml").write_text("name: odd\ntext: prose\nprompt_tokens: 7\nnew_tokens: 3\n")
    for flags in (["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "./mine"]):
        (job,) = collect([*flags, "workload=odd"])
        assert job["workload"]["prompt_tokens"] == 7
    with pytest.raises(ConfigError, match=r"--config-dir: want a folder with folders like"):
        collect(["workload=odd", "--config-dir", "nothing"])
    with pytest.raises(ConfigError, match=r"--what: unknown flag; known are -m"):
        collect(["--what"])
