"""Every YAML in conf/ composes and parses; a new one is tested by being there."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench.config.cell import Model
from bench.config.settings import Config, parse_config
from bench.paths import CONF, ROOT

AT_LEAST = {
    "model": 7,
    "engine": 2,
    "quant": 12,
    "attn": 9,
    "decode": 2,
    "workload": 6,
    "measure": 3,
    "quality": 3,
    "tracking": 3,
    "where": 3,
}
VALUES = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml"))
MODELS = [name for group, name in VALUES if group == "model"]
OF_REPOSITORIES = [
    name
    for name in MODELS
    if "repo" in yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
]


@pytest.fixture(autouse=True)
def hydra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BENCH_ROOT", str(ROOT))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    config = compose("config", list(overrides))
    return cast(
        "dict[str, Any]", OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    )


def parsed(*overrides: str) -> Config:
    return parse_config(composed(*overrides))


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    """What an empty command line composes; other values are put in place of its own, as Hydra does
    with a file that has no package of its own: composing takes 0.2 s each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_ROOT", str(ROOT))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return composed()


def chosen(default: Mapping[str, Any], group: str, name: str, **needs: str) -> dict[str, Any]:
    file = OmegaConf.load(CONF / group / f"{name}.yaml")
    value = cast("dict[str, Any]", OmegaConf.to_container(file, resolve=True))
    return {**default, group: {**value, **needs}}


def model(default: Mapping[str, Any], name: str, **changes: str) -> Model:
    config = chosen(default, "model", name)
    return parse_config({**config, "model": config["model"] | changes}).cell.model


def test_no_group_has_lost_a_value() -> None:
    found = Counter(group for group, _ in VALUES)
    assert {group: count for group, count in AT_LEAST.items() if found[group] < count} == {}


def test_every_yaml_in_conf_is_a_value_of_a_known_group() -> None:
    files = {file.relative_to(CONF).as_posix() for file in CONF.rglob("*.y*ml")}
    assert files == {"config.yaml", *(f"{group}/{name}.yaml" for group, name in VALUES)}
    assert {group for group, _ in VALUES} == set(AT_LEAST)


def test_the_defaults_compose_and_parse(default: dict[str, Any]) -> None:
    config = parse_config(default)
    assert config.cell.model.name == "smollm2-135m"
    assert (config.cell.batch, config.cell.device, config.cell.cpus) == (1, "auto", "all")
    assert config.settings.output_dir == "outputs"


def test_hydras_own_settings_compose_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # A command line has a folder of its own for it
    monkeypatch.delenv("BENCH_SCRATCH", raising=False)
    own = compose("config", return_hydra_config=True).hydra
    assert [source.path for source in own.runtime.config_sources if source.schema == "file"] == [
        str(CONF),
        str(ROOT),
        str(ROOT),  # in place of the folder of models without a YAML
        str(ROOT),  # and of the one of what commands wrote
    ]
    assert (own.run.dir, own.sweep.dir, own.output_subdir) == (".", "outputs/hydra", None)
    assert (own.job_logging.root, own.hydra_logging.root) == (None, None)


@pytest.mark.parametrize("group", AT_LEAST)
def test_each_value_of_a_group_parses_and_is_called_like_its_file(
    group: str, default: dict[str, Any]
) -> None:
    names = [name for of, name in VALUES if of == group]
    assert composed(f"{group}={names[-1]}") == chosen(default, group, names[-1])
    for name in names:
        needs = {"path": "/x.jsonl"} if (group, name) == ("workload", "prompts") else {}
        config = parse_config(chosen(default, group, name, **needs))
        part = config.settings if group in ("tracking", "where") else config.cell
        value = getattr(part, group)
        assert value.name == name


def test_no_name_is_something_else_to_yaml() -> None:
    for name in sorted({name for _, name in VALUES}):
        assert yaml.safe_load(name) == name
        assert name.lower() not in {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def test_each_value_begins_with_a_comment_that_explains_it() -> None:
    for group, name in VALUES:
        lines = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        explained = lines[1] if lines[0] == "# @package _global_" else lines[0]
        assert explained.startswith("# "), name
        assert len(explained.removeprefix("# ").split()) >= 2, name


def test_each_model_can_have_random_weights_and_come_from_a_local_folder(
    default: dict[str, Any],
) -> None:
    for name in MODELS:
        assert model(default, name, weights="random").weights == "random"
        assert model(default, name, path="/x").path == "/x"


def test_each_model_of_a_repository_can_be_pinned_to_a_revision() -> None:
    (first, *_) = OF_REPOSITORIES
    assert parsed(f"model={first}", "model.revision=abc").cell.model.revision == "abc"


def test_the_models_of_repositories_are_found() -> None:
    assert len(OF_REPOSITORIES) >= 5


def test_an_axis_left_alone_keeps_its_default(default: dict[str, Any]) -> None:
    changed = composed("quant=nf4")
    assert {key for key in default if changed[key] != default[key]} == {"quant"}
