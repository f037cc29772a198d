"""From a command line to composed configurations, or to a sentence for each mistake in it.

Hydra composes; what it composes is only collected here. Composing takes 0.15 s, so a grid is not
composed cell by cell, as Hydra's own sweeper does (twice each): the values of each axis are, and a
cell takes from each of them what it changes. That is the same as long as no two axes change one
group; where two do, their combinations are composed.
"""

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from bench.config.cell import Cell
from bench.config.explain import REFUSALS, explain, keys_as_flags, values_of_groups
from bench.config.models import stand_in
from bench.config.prompt_file import cells_of, is_file, with_digests
from bench.config.settings import Config, parse_config
from bench.errors import ConfigError
from bench.paths import (
    CHOICE_SETS,
    CONF,
    PROMPT_SETS,
    ROOT,
    TEXTS,
    searched_folders,
    whole_path,
)

_ANSWERED_BY_HYDRA = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "-sc")
_SEVERAL = ("-m", "--multirun")
_OF_A_SWEEP = ("sweeps", "hydra")  # keys that say what is swept, not with which values

Axes = dict[str, list[str]]  # by key the overrides, one value each


def collect(arguments: Sequence[str]) -> list[Mapping[str, Any]]:
    """The composed configuration of every job that the arguments describe, as plain mappings; none
    where Hydra has answered them itself.

    Raises:
        ConfigError: when Hydra cannot compose them.
    """
    problems = [
        *keys_as_flags(arguments),
        *_other_launchers(arguments),
        *values_of_groups(arguments),
    ]
    if problems:
        raise ConfigError(problems)
    os.environ["BENCH_ROOT"] = str(ROOT)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise to us, instead of printing and exiting
    overrides = [each for each in arguments if "=" in each and not each.startswith("-")]
    flags, own_folder = _own_folder([each for each in arguments if each not in overrides])
    with _scratch() as scratch:
        os.environ["BENCH_SCRATCH"] = scratch
        os.environ["BENCH_WRITTEN"] = str(searched_folders()[-1])
        overrides = [
            _with_layers(_with_own_models(override, Path(scratch))) for override in overrides
        ]
        if own_folder is not None:
            searched = (*searched_folders(), scratch, own_folder)
            folders = ",".join(f"file://{place}" for place in searched)
            overrides.append(f"hydra.searchpath=[{folders}]")
        try:
            if set(flags) <= set(_SEVERAL):
                return _jobs(overrides, bool(flags))
            _answer(flags, overrides)
        except REFUSALS as error:
            raise ConfigError(explain(overrides, bool(flags), error)) from error
        finally:
            del os.environ["BENCH_SCRATCH"], os.environ["BENCH_WRITTEN"]
    return []


def _own_folder(flags: list[str]) -> tuple[list[str], str | None]:
    """The flags without ``--config-dir FOLDER``, and that folder, which has YAML files of the
    user's."""
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            behind = flags[index + 1 : index + 2]
            folder = value if equals else "".join(behind)
            if not Path(whole_path(folder)).is_dir() or not folder:
                raise ConfigError([f"{flag}: want a folder with folders like those of conf/"])
            return flags[:index] + flags[index + 1 + (not equals) :], whole_path(folder)
    return flags, None


def _answer(flags: Sequence[str], overrides: Sequence[str]) -> None:
    """Have Hydra print what a flag of its own asks for."""
    if not any(flag.startswith(_ANSWERED_BY_HYDRA) for flag in flags):
        known = ", ".join((*_SEVERAL, "--config-dir", *_ANSWERED_BY_HYDRA))
        raise ConfigError([f"{' '.join(flags)}: unknown flag; known are {known}"])
    # Its parser gives up on an override behind a flag, as in `batch=8 --cfg job`.
    sys.argv = [sys.argv[0], *flags, *overrides]
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(lambda _: None)()


def _jobs(overrides: Sequence[str], several: bool) -> list[Mapping[str, Any]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        typed = parser.parse_overrides(list(overrides))
        of_sweep = [str(o.input_line) for o in typed if o.key_or_group.startswith(_OF_A_SWEEP)]
        mode, written_down = _of_sweep(of_sweep) if of_sweep else (None, [])
        swept = [str(o.input_line) for o in typed if o.is_sweep_override()]
        if swept and not several and mode != RunMode.MULTIRUN:
            raise HydraException(f"{swept[0]}: several values")
        axes: Axes = {}
        for override in (*parser.parse_overrides(written_down), *typed):
            axes[override.get_key_element()] = _single_values(override)
        return _grid(axes)


def _of_sweep(overrides: Sequence[str]) -> tuple[RunMode | None, list[str]]:
    """What a file of ``sweeps/`` says: its mode, and the overrides that are its axes."""
    own = compose("config", list(overrides), return_hydra_config=True).hydra
    scratch = Path(os.environ["BENCH_SCRATCH"])
    axes = (own.sweeper.params or {}).items()
    return own.mode, [_with_own_models(f"{key}={values}", scratch) for key, values in axes]


def _with_own_models(argument: str, folder: Path) -> str:
    """The override ``model=...`` with stand-ins for models that have no YAML."""
    if not argument.startswith("model="):
        return argument
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return argument  # the whole command line is refused for it
    typed = override.value()
    if isinstance(typed, ChoiceSweep):
        values = [getattr(value, "text", value) for value in typed.list]  # .text: of a quoted one
    elif isinstance(typed, str):
        values = [typed]
    else:
        return argument
    return "model=" + ",".join(stand_in(str(value), folder) for value in values)


def _with_layers(argument: str) -> str:
    """The override ``quant.layers={"model.layers.{0,29}.mlp.*": int8_channel}`` as Hydra reads it:
    a mapping that a file of ``conf/quant`` need not have, whose keys are not quoted but escaped."""
    if not argument.startswith("quant.layers="):
        return argument
    quoted = re.compile(r"""(["'])(.+?)\1(?=\s*:)""")
    return "+" + quoted.sub(lambda found: re.sub(r"([{},:=() ])", r"\\\1", found[2]), argument)


def _single_values(override: Override) -> list[str]:
    """An override for each of its values."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: want a list of values")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _grid(axes: Axes) -> list[Mapping[str, Any]]:
    """The configuration of each combination, in the order of nested loops, the last axis inmost."""
    groups: dict[str, list[str]] = {}  # axes by the key at the top that they change
    for key in axes:
        if len(axes[key]) > 1:
            groups.setdefault(re.split(r"[./@]", key.lstrip("+~"))[0], []).append(key)
    first = {key: values[0] for key, values in axes.items()}
    base = _composed(first)
    changes: dict[str, dict[tuple[str, ...], Mapping[str, Any]]] = {}
    for group, keys in groups.items():
        changes[group] = {
            values: _changed(_composed({**first, **dict(zip(keys, values, strict=True))}), base)
            for values in itertools.product(*(axes[key] for key in keys))
        }
    touched = [
        key for of in changes.values() for key in {key for each in of.values() for key in each}
    ]
    combinations = (
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    )
    if len(set(touched)) < len(touched):
        return [_composed(combination) for combination in combinations]
    jobs: list[Mapping[str, Any]] = []
    for combination in combinations:
        job = dict(base)
        for group, keys in groups.items():
            job |= changes[group][tuple(combination[key] for key in keys)]
        jobs.append(job)
    return jobs


def _composed(overrides: Mapping[str, str]) -> dict[str, Any]:
    config = compose("config", list(overrides.values()))
    plain = cast(
        "dict[str, Any]", OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    )
    quant = plain["quant"]
    if isinstance(quant, dict) and isinstance(quant.get("layers"), Mapping):
        quant["layers"] = {
            pattern: _quant_of_layers(name, overrides) for pattern, name in quant["layers"].items()
        }
    return plain


def _quant_of_layers(name: Any, overrides: Mapping[str, str]) -> Any:
    """What ``quant.layers`` means by the name of a value of ``conf/quant``."""
    if name in (None, "none"):
        return {"name": "none", "scheme": "none"}
    if not isinstance(name, str):
        return name  # refused, or written out
    searched = [each for each in overrides.values() if "hydra.searchpath=" in each]
    quant = cast("dict[str, Any]", compose("config", [*searched, f"quant={name}"])["quant"])
    kept = {key: quant[key] for key in ("name", "scheme", "dtype", "parameters") if key in quant}
    return OmegaConf.to_container(OmegaConf.create(kept))


def _changed(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in base or base[key] != value}


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
        f"{argument}: cells run in processes of this tool, so that none disturbs another; use"
        " where=ray or where=slurm for a cluster"
        for argument in arguments
        if argument.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))
    ]


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
    if model.config is not None:
        model = replace(model, config=whole_path(model.config))
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


def missing_files(cell: Cell) -> list[str]:
    """A sentence for each text and set of prompts or choices that is named and not shipped."""
    shipped = [text for text in cell.quality.texts if not is_file(text)]
    named = (
        ("workload.text", cell.workload.text, TEXTS, ""),
        ("quality.prompts", cell.quality.prompts, PROMPT_SETS, ""),
        ("quality.choices", cell.quality.choices, CHOICE_SETS, ""),
        *(("quality.texts", text, TEXTS, ", or a path like ./mine.txt") for text in shipped),
    )
    return [
        f"{key}={name}: no such file; want one of {', '.join(known)}{path}"
        for key, name, known, path in named
        if name is not None and name not in known
    ]
