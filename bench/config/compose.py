"""What is wrong with a command line that Hydra could not compose, in one line for each mistake.

Hydra stops at the first mistake and explains it in its own terms. So each override is composed by
itself here, and for each that fails the sentence says which value or key it is and what would be
right.
"""

import itertools
from collections.abc import Iterator, Sequence

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.cell import Cell
from bench.config.parse import unknown_key
from bench.config.settings import parse_config
from bench.errors import ConfigError
from bench.paths import CONF, PROMPT_SETS, ROOT, TEXTS


def explain(arguments: Sequence[str], error: Exception) -> list[str]:
    """One sentence for each wrong override in ``arguments``, or the error's own text when none is
    wrong by itself."""
    several = any(
        argument in ("-m", "--multirun") or argument.startswith("sweeps=") for argument in arguments
    )
    problems: dict[str, None] = {}  # ordered, each once
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [
            argument for argument in arguments if "=" in argument and not argument.startswith("-")
        ]
        # A key may exist in one value of a group only: the group's choices go along with each of
        # the others.
        choices = [override for override in overrides if _is_choice(override)]
        for argument in overrides:
            problems |= dict.fromkeys(
                _problems(argument, [] if argument in choices else choices, several)
            )
    return list(problems) or [_own_words(error)]


def keys_as_flags(arguments: Sequence[str]) -> list[str]:
    """A sentence for each key that was given like a flag of other programs: ``--batch 8``,
    ``--batch=8``, ``batch 8``."""
    config: dict[str, object] = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    keys = {*config, *(folder.name for folder in CONF.iterdir() if folder.is_dir()), "sweeps"} - {
        "hydra",
        "defaults",
    }
    found = []
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue="VALUE"):
        name, _, value = argument.removeprefix("--").partition("=")
        is_flag = argument.startswith("--")
        if name in keys and (is_flag or (not value and argument == name)):
            found.append(f"{argument}: keys are given as key=value; want {name}={value or after}")
    return found


def _is_choice(argument: str) -> bool:
    """Whether it names one value of a group, and one that exists."""
    key, _, value = argument.partition("=")
    return (CONF / key / f"{value}.yaml").is_file()


def _problems(argument: str, choices: list[str], several: bool) -> Iterator[str]:
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        yield f"{argument}: not an override that Hydra understands ({_own_words(error)})"
        return
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
        except (HydraException, OmegaConfBaseException) as error:
            yield _sentence(override, value, choices, error)


def _sentence(override: Override, value: str, choices: list[str], error: Exception) -> str:
    key = override.key_or_group
    group = CONF / key if key != "sweeps" else ROOT / "sweeps"
    if group.is_dir():
        options = ", ".join(sorted(file.stem for file in group.glob("*.yaml")))
        return f"{key}={value}: no such value; want one of {options}"
    known, path = _known_keys(key, choices)
    name = key.removeprefix(f"{path}.") if path else key
    if name not in known:
        return unknown_key(name, value, known, path)
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
    """Texts and prompt sets that the cell names and the package does not ship."""
    named = (
        ("workload.text", cell.workload.text, TEXTS),
        ("quality.prompts", cell.quality.prompts, PROMPT_SETS),
        *(("quality.texts", text, TEXTS) for text in cell.quality.texts),
    )
    return [
        f"{key}={name}: no such file; want one of {', '.join(known)}"
        for key, name, known in named
        if name is not None and name not in known
    ]
