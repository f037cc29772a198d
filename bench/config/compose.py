"""From a command line to composed configurations, or to a sentence for each mistake in it.

Hydra composes every job of a sweep in this process; its task function only collects. Hydra stops at
the first mistake and explains it in its own terms, so each override is then composed by itself, and
for each that fails the sentence says which value or key it is and what would be right.
"""

import itertools
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.cell import Cell
from bench.config.parse import unknown_key
from bench.config.prompt_file import cells_of, is_file, with_digests
from bench.config.settings import Config, parse_config
from bench.errors import ConfigError
from bench.paths import CONF, PROMPT_SETS, ROOT, TEXTS, whole_path

# What composing raises over a command line, and over a YAML file that cannot be read
_REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeError, OSError)
_ANSWERED_BY_HYDRA = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "-sc")


def collect(arguments: list[str]) -> list[Mapping[str, Any]]:
    """The composed configuration of every job that the arguments describe, as plain mappings.

    Raises:
        ConfigError: when Hydra cannot compose them, or would run them elsewhere.
    """
    problems = [
        *keys_as_flags(arguments),
        *_other_launchers(arguments),
        *_values_of_groups(arguments),
    ]
    if problems:
        raise ConfigError(problems)
    jobs: list[Mapping[str, Any]] = []

    def task(config: Any) -> None:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        jobs.append(plain)  # type: ignore[arg-type]

    os.environ["BENCH_ROOT"] = str(ROOT)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise to us, instead of printing and exiting
    # Hydra's parser gives up on an override behind a flag, as in `batch=8 -m quant=fp16,nf4`.
    overrides = [each for each in arguments if "=" in each and not each.startswith("-")]
    flags = [each for each in arguments if each not in overrides]
    sys.argv = [sys.argv[0], *flags, *overrides]
    with _scratch() as scratch:
        os.environ["BENCH_SCRATCH"] = scratch
        try:
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()
        except _REFUSALS as error:
            raise ConfigError(explain(arguments, error)) from error
    if not jobs and not any(each.startswith(_ANSWERED_BY_HYDRA) for each in arguments):
        raise ConfigError(["hydra.launcher: it ran the cells elsewhere, where nothing is measured"])
    return jobs


def _scratch() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="bench-")
    except OSError as error:
        raise ConfigError(
            [f"TMPDIR: no temporary folder can be made ({error.strerror}); set it to another one"]
        ) from error


def _other_launchers(arguments: Sequence[str]) -> list[str]:
    """A sentence for each override that would have Hydra run jobs in processes of its own."""
    return [
        f"{argument}: cells run one after another in processes of this tool, so that none disturbs"
        " another; leave Hydra's launcher alone"
        for argument in arguments
        if argument.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))
    ]


def _values_of_groups(arguments: Sequence[str]) -> list[str]:
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
    folder = ROOT / "sweeps" if group == "sweeps" else CONF / group
    return sorted(file.stem for file in folder.glob("*.yaml"))


def parsed(collected: Sequence[Mapping[str, Any]]) -> list[Config]:
    """The composed jobs as frozen dataclasses. Raises: ConfigError with each mistake once."""
    problems: dict[str, None] = {}  # ordered: a mistake repeats in every cell
    configs: list[Config] = []
    for mapping in collected:
        try:
            config = _with_whole_paths(parse_config(mapping))
            problems |= dict.fromkeys(missing_files(config.cell))
            configs += [replace(config, cell=cell) for cell in cells_of(with_digests(config.cell))]
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return configs


def _with_whole_paths(config: Config) -> Config:
    """With every path as it is meant where the command was typed; the only place that reads one."""
    cell, settings = config.cell, config.settings
    model, workload, quality = cell.model, cell.workload, cell.quality
    if model.path is not None:
        model = replace(model, path=whole_path(model.path))
    if quality.task_folder is not None:
        quality = replace(quality, task_folder=whole_path(quality.task_folder))
    if workload.path is not None:
        workload = replace(workload, path=whole_path(workload.path))
    texts = tuple(whole_path(text) if is_file(text) else text for text in quality.texts)
    quality = replace(quality, texts=texts)
    return Config(
        replace(cell, model=model, workload=workload, quality=quality),
        replace(settings, output_dir=whole_path(settings.output_dir)),
    )


def explain(arguments: Sequence[str], error: Exception) -> list[str]:
    """One sentence for each wrong override in ``arguments``, or the error's own text when none is
    wrong by itself."""
    several = any(
        argument in ("-m", "--multirun") or argument.startswith("sweeps=") for argument in arguments
    )
    problems: dict[str, None] = {}  # ordered, each once
    if unreadable := [sentence for each in arguments if "=" in each for sentence in _unread(each)]:
        return unreadable  # until they can be read nothing can be said of the others
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [
            argument for argument in arguments if "=" in argument and not argument.startswith("-")
        ]
        # A key may exist in one value of a group only: the group's choices go along with each of
        # the others.
        choices = [override for override in overrides if _is_choice(override)]
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
    return (CONF / key / f"{value}.yaml").is_file()


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
        except _REFUSALS as error:
            yield _sentence(override, value, choices, error)


def _sentence(override: Override, value: str, choices: list[str], error: Exception) -> str:
    key = override.key_or_group
    group = CONF / key if key != "sweeps" else ROOT / "sweeps"
    if group.is_dir():
        options = _options(key)
        if value in options:  # it is there, and cannot be read or composed
            return f"{key}={value}: {group / value}.yaml: {_own_words(error)}"
        return f"{key}={value}: no such value; want one of {', '.join(options)}"
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


def missing_files(cell: Cell) -> list[str]:
    """A sentence for each text and prompt set that the cell names and the package does not ship."""
    shipped = [text for text in cell.quality.texts if not is_file(text)]
    named = (
        ("workload.text", cell.workload.text, TEXTS, ""),
        ("quality.prompts", cell.quality.prompts, PROMPT_SETS, ""),
        *(("quality.texts", text, TEXTS, ", or a path like ./mine.txt") for text in shipped),
    )
    return [
        f"{key}={name}: no such file; want one of {', '.join(known)}{path}"
        for key, name, known, path in named
        if name is not None and name not in known
    ]
