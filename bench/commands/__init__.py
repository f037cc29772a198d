"""The commands beside Hydra's command line: ``python -m bench COMMAND ...``."""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bench.commands.parsers import (
    command_parser,
    limits_of,
    plain_parser,
    sweep_parser,
    take_limits,
    take_price,
    typed_path,
)
from bench.commands.quantities import count, share
from bench.config.settings import Settings, parse_config
from bench.errors import ConfigError, StoreError, TrackingError
from bench.paths import CONF, from_here

if TYPE_CHECKING:  # it imports mlflow
    from bench.store.mlflow_fetch import Recorded

_OF_THE_MACHINE = ("quant", "attn", "decode")  # axes whose values may not work on every machine


def run_command(name: str, arguments: list[str]) -> int:
    """Run the command ``name``; returns the exit code.

    Raises:
        ConfigError: when there is no such command.
    """
    commands: dict[str, Callable[[list[str]], int]] = {
        "push": _push,
        "fetch": _fetch,
        "compare": _of_module("compare"),
        "gate": _of_module("gate"),
        "choose": _of_module("choose"),
        "advise": _advise,
        "report": _of_module("report"),
        "import": _import,
        "reproduce": _reproduce,
        "sensitivity": _of_module("sensitivity"),
        "doctor": _doctor,
        "export": _export,
    }
    if name not in commands:
        raise ConfigError(
            [
                f"{name}: no such command; there are {', '.join(commands)}, and key=value starts a"
                " sweep"
            ]
        )
    return commands[name](arguments)


def _of_module(name: str) -> Callable[[list[str]], int]:
    """A command that reads its own command line; its module is imported when it is asked for."""

    def command(arguments: list[str]) -> int:
        code: int = import_module(f"bench.commands.{name}").command(arguments)
        return code

    return command


def _push(arguments: list[str]) -> int:
    given = sweep_parser("push", "Send a sweep's results to MLflow (again).").parse_args(arguments)
    from bench.commands.push import push

    return push(_sweep_folder(given))


def _fetch(arguments: list[str]) -> int:
    parser = plain_parser("fetch", "Download and convert models now, not at their first use.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a value of conf/model")
    models = parser.parse_args(arguments).models
    if not models:
        raise ConfigError(["fetch: want one or more models; see conf/model/"])
    from bench.commands.fetch import fetch

    return fetch(models)


def _advise(arguments: list[str]) -> int:
    # Imports numpy, which no other command line needs to wait for
    from bench.analysis.advice import USE_CASES

    parser = sweep_parser("advise", "Which configuration to take, and how sure that is.")
    of_uses = "; ".join(f"{name}: {case.what}" for name, case in USE_CASES.items())
    parser.add_argument(
        "--goal", choices=USE_CASES, help=f"{of_uses}; without it the usual questions are answered"
    )
    take_limits(parser)
    parser.add_argument(
        "--json", action="store_true", help="for programs, as bench/data/advice.schema.json has it"
    )
    take_price(parser)
    given = parser.parse_args(arguments)
    from bench.commands.advise import advise

    folder, limits = _sweep_folder(given), limits_of(given)
    return advise(folder, limits, given.goal, given.price_per_hour, given.json)


def _doctor(arguments: list[str]) -> int:
    parser = plain_parser("doctor", "What this machine is, and what works on it.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--calibrate", action="store_true", help="find the spread between processes (a few minutes)"
    )
    what.add_argument(
        "--selftest",
        action="store_true",
        help="does this tool measure truly on this machine? (a few minutes; exit code 1: it does"
        " not)",
    )
    what.add_argument(
        "--read", type=typed_path, metavar="FILE", help="print a bundle of a self-test"
    )
    parser.add_argument(
        "--bundle",
        type=typed_path,
        metavar="FILE",
        help="with --selftest: keep it all, for an issue",
    )
    given = parser.parse_args(arguments)
    if given.bundle is not None and not given.selftest:
        raise ConfigError(["--bundle: goes with --selftest"])
    if given.selftest or given.read is not None:
        from bench.commands.selftest import read, selftest

        return selftest(given.bundle) if given.read is None else read(given.read)
    default = _default()
    variants = [
        (
            axis,
            file.stem,
            parse_config({**default, axis: yaml.safe_load(file.read_text(encoding="utf-8"))}).cell,
        )
        for axis in _OF_THE_MACHINE
        for file in sorted((CONF / axis).glob("*.yaml"))
    ]
    variants = [each for each in variants if not each[2].quant.layers]  # of a certain model's
    from bench.commands.doctor import doctor

    return doctor(parse_config(default).cell, variants, given.calibrate)


def _import(arguments: list[str]) -> int:
    parser = command_parser(
        "import",
        "Put what other tools measured beside a sweep's cells: llama-bench's json or jsonl,"
        " lm-eval's results or samples, llm-d's Benchmark Report 0.2, tables of studies.",
    )
    parser.add_argument("files", nargs="+", type=typed_path, metavar="FILE")
    parser.add_argument(
        "--sweep", help="folder of a sweep, or its name in DIR/sweeps; the newest if left out"
    )
    given = parser.parse_args(arguments)
    from bench.commands.importing import import_files
    from bench.store.files import sweep_folder

    return import_files(given.files, sweep_folder(given.sweep, given.output_dir))


def _reproduce(arguments: list[str]) -> int:
    about = "Run a cell or a sweep once more: does the same come out?"
    parser = command_parser("reproduce", about, allow_abbrev=False)
    parser.add_argument(
        "run",
        help="id of an MLflow run, or folder of a sweep or cell, or a sweep's name in DIR/sweeps",
    )
    parser.add_argument(
        "--margin",
        type=share,
        default=0.05,
        help="relative difference that counts as equal (default 0.05: 5%%)",
    )
    parser.add_argument(
        "--processes",
        type=count,
        metavar="N",
        help="of each cell; default: as recorded, at least 5",
    )
    parser.add_argument(
        "--checkout",
        action="store_true",
        help="in a temporary worktree of the commit that is recorded",
    )
    given = parser.parse_args(arguments)
    settings = replace(parse_config(_default()).settings, output_dir=str(given.output_dir))
    recorded = _recorded(given.run, settings)
    from bench.commands.reproduce import in_worktree, reproduce

    if given.checkout:
        code = recorded.sweep.provenance
        return in_worktree(
            code.commit, code.changed, [word for word in arguments if word != "--checkout"]
        )
    tracking = replace(settings.tracking, experiment=recorded.sweep.tracking.experiment)
    baseline = recorded.sweep.baseline  # which decides what predictions are compared with
    return reproduce(
        recorded,
        replace(
            settings,
            tracking=tracking,
            baseline=baseline,
            margin=given.margin,
            price_per_hour=recorded.sweep.price_per_hour,
        ),
        given.processes,
    )


def _export(arguments: list[str]) -> int:
    parser = command_parser(
        "export", "Write a cell's quantized weights as a checkpoint for transformers."
    )
    parser.add_argument(
        "cell", help="id of an MLflow run, or folder of a cell, or of a sweep of one"
    )
    parser.add_argument("folder", type=typed_path, help="a new one, for the checkpoint")
    given = parser.parse_args(arguments)
    settings = replace(parse_config(_default()).settings, output_dir=str(given.output_dir))
    results = _recorded(given.cell, settings).results
    if len(results) != 1:
        names = ", ".join(result.cell.label for result in results)
        raise ConfigError([f"{given.cell}: holds {len(results)} cells, want one of {names}"])
    from bench.commands.export import export

    return export(results[0].cell, given.folder)


def _recorded(given: str, settings: Settings) -> "Recorded":
    from bench.store.files import find
    from bench.store.mlflow_fetch import from_folder, from_mlflow

    try:
        folder = find(given, Path(settings.output_dir))
        if folder is not None:
            return from_folder(folder)
        return from_mlflow(given, _store_of_runs(given, settings))
    except StoreError as error:
        raise ConfigError([str(error)]) from error  # exit code 1 is for what differs
    except TrackingError as error:
        raise ConfigError([f"{given}: no such folder, and {error}"]) from error


def _store_of_runs(given: str, settings: Settings) -> str:
    from bench.store.database import bring_along, tracking_uri

    outputs = Path(settings.output_dir)
    uri, own = tracking_uri(settings.tracking, outputs), outputs / "mlflow.db"
    if "MLFLOW_TRACKING_URI" not in os.environ and not own.is_file():
        raise ConfigError(
            [
                f"{given}: no such folder, and no store of runs at {from_here(own)}; want one in"
                " MLFLOW_TRACKING_URI"
            ]
        )
    bring_along(uri, outputs)
    return uri


def _default() -> Mapping[str, Any]:
    """The configuration that an empty command line describes."""
    from bench.config.compose import collect  # imports hydra

    (default,) = collect([])
    return default


def _sweep_folder(given: argparse.Namespace) -> Path:
    """The one that is named, or the newest."""
    from bench.store.files import sweep_folder

    return sweep_folder(given.folder, given.output_dir)
