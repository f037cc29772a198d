"""What is wrong with a command line: a sentence for each mistake.

Hydra stops at the first mistake and explains it in its own terms, so each override is composed by
itself, and for each that fails the sentence says which value or key it is and what would be right.
"""

import itertools
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.parse import unknown_key
from bench.config.settings import parse_config
from bench.errors import ConfigError
from bench.paths import CONF, ROOT, searched_folders

# What composing raises over a command line, and over a YAML file that cannot be read
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeError, OSError)


def values_of_groups(arguments: Sequence[str]) -> list[str]:
    """A sentence for each group that was given something else than one of its values: nothing, a
    list (which Hydra would merge into one), or a value besides the one that it has."""
    problems = []
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        if not equals or not ((CONF / key).is_dir() or key == "sweeps"):
            continue
        if value.startswith("["):
            values = value.strip("[]").replace(" ", "")
            problems.append(
                f"{argument}: one cell has one {key}; to measure each of them: -m {key}={values}"
            )
        elif argument.startswith("+"):
            problems.append(f"{argument}: {key} is there without the plus; want {key}={value}")
        elif value in ("", "null") and key != "sweeps":
            problems.append(f"{argument}: want one of {', '.join(_options(key))}")
    return problems


def _options(group: str) -> list[str]:
    folders = searched_folders() if group == "sweeps" else [CONF, *searched_folders()[1:]]
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def explain(overrides: Sequence[str], several: bool, error: Exception) -> list[str]:
    """One sentence for each wrong override, or the error's own text when none is wrong by itself.

    Args:
        several: whether an axis may have several values.
    """
    problems: dict[str, None] = {}  # ordered, each once
    if unreadable := [sentence for each in overrides for sentence in _unread(each)]:
        return unreadable  # until they can be read nothing can be said of the others
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # A key may exist in one value of a group only: the group's choices go along with each of
        # the others.
        choices = [override for override in overrides if _is_choice(override)]
        several = several or any(each.startswith("sweeps=") for each in overrides)
        keys = {override.partition("=")[0] for override in overrides}
        for argument in overrides:
            # What is said of a key that is given too holds without it: that one has its turn
            others = keys - {argument.partition("=")[0]}
            problems |= dict.fromkeys(
                problem
                for problem in _problems(argument, [] if argument in choices else choices, several)
                if problem.partition("=")[0] not in others
            )
    return list(problems) or [_own_words(error)]


def keys_as_flags(arguments: Sequence[str]) -> list[str]:
    """A sentence for each key that was given like a flag of other programs: ``--batch 8``,
    ``--batch=8``, ``batch 8``; MLflow makes such flags of parameters that MLproject does not
    name."""
    config: dict[str, object] = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    keys = {*config, *(folder.name for folder in CONF.iterdir() if folder.is_dir()), "sweeps"} - {
        "hydra",
        "defaults",
    }
    found = []
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue="VALUE"):
        name, _, value = argument.removeprefix("--").partition("=")
        is_flag = argument.startswith("--")
        if name.partition(".")[0] in keys and (is_flag or (not value and argument == name)):
            wanted = f"{name}={value or after}"
            by_mlflow = (
                f'; with mlflow run: -P overrides="{wanted}"'
                if "MLFLOW_RUN_ID" in os.environ
                else ""
            )
            found.append(f"{argument}: keys are given as key=value; want {wanted}{by_mlflow}")
    return found


def _is_choice(argument: str) -> bool:
    """Whether it names one value of a group, and one that exists."""
    key, _, value = argument.partition("=")
    folders = (CONF, Path(os.environ["BENCH_SCRATCH"]), *searched_folders())
    return any((folder / key / f"{value}.yaml").is_file() for folder in folders)


def _unread(argument: str) -> Iterator[str]:
    """Why an argument is no override."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException as error:
        key, _, value = argument.partition("=")
        quoted = shlex.quote(f"{key}='{value}'") if value and "'" not in value else ""
        advice = f"; if it is a text, quote it: {quoted}" if quoted else ""
        yield f"{argument}: not an override that Hydra understands ({_own_words(error)}){advice}"


def _problems(argument: str, choices: list[str], several: bool) -> Iterator[str]:
    override = OverridesParser.create().parse_override(argument)
    if override.is_sweep_override():
        if not several:
            yield f"{argument}: several values; add -m to measure each of them"
            return
        values = list(override.sweep_string_iterator())
    else:
        values = [argument.partition("=")[2]]  # as typed: 12e45678 is infinity to the parser
    for value in values:
        try:
            config = compose("config", [*choices, f"{argument.partition('=')[0]}={value}"])
            parse_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
        except ConfigError as error:
            yield from error.problems
        except REFUSALS as error:
            yield _sentence(override, value, choices, error)


def _sentence(override: Override, value: str, choices: list[str], error: Exception) -> str:
    key = override.key_or_group
    group = (ROOT if key == "sweeps" else CONF) / key
    if group.is_dir():
        options = _options(key)
        if value in options:  # it is there, and cannot be read or composed
            folders = (folder / key for folder in (group.parent, *searched_folders()))
            file = next(f / f"{value}.yaml" for f in folders if (f / f"{value}.yaml").is_file())
            return f"{key}={value}: {file}: {_own_words(error)}"
        others = ", a folder, a .gguf file, or OWNER/NAME on the hub" if key == "model" else ""
        return f"{key}={value}: no such value; want one of {', '.join(options)}{others}"
    known, path = _known_keys(key, choices)
    name = key.removeprefix(f"{path}.") if path else key
    if name not in known:
        typed = str(override.input_line).partition("=")[2]  # one key, one sentence for all values
        return unknown_key(name, typed, known, path)
    return f"{key}={value}: {_own_words(error)}"


def _known_keys(key: str, choices: list[str]) -> tuple[list[str], str]:
    """The keys beside the first unknown part of a dotted key, and the path to them."""
    place: object = compose("config", choices)
    path = ""
    for part in key.split(".")[:-1]:
        below = OmegaConf.select(place, part) if isinstance(place, DictConfig) else None
        if not isinstance(below, DictConfig):
            break
        place, path = below, f"{path}.{part}" if path else part
    return ([str(name) for name in place] if isinstance(place, DictConfig) else []), path


def _own_words(error: Exception) -> str:
    """The library's message without its layout."""
    return " ".join(str(error).split())
