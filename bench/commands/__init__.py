"""The commands beside Hydra's command line: ``python -m bench COMMAND ...``."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from bench.config.settings import Settings, parse_config
from bench.errors import ConfigError, StoreError, TrackingError
from bench.paths import CONF

if TYPE_CHECKING:  # it imports mlflow
    from bench.store.mlflow_fetch import Recorded

Compose = Callable[[list[str]], list[Mapping[str, Any]]]

_SWEEPS = Path("outputs/sweeps")
_OF_THE_MACHINE = ("quant", "attn", "decode")  # axes whose values may not work on every machine


def run_command(name: str, arguments: list[str], compose: Compose) -> int:
    """Run the command ``name``; returns the exit code.

    Args:
        compose: gives the configurations that a command line describes.
    Raises:
        ConfigError: when there is no such command.
    """
    commands: dict[str, Callable[[list[str]], int]] = {
        "push": _push,
        "fetch": _fetch,
        "gate": _gate,
        "advise": _advise,
        "report": _report,
        "reproduce": lambda rest: _reproduce(rest, compose),
        "doctor": lambda rest: _doctor(rest, compose),
    }
    if name not in commands:
        raise ConfigError(
            [
                f"{name}: no such command; there are {', '.join(commands)}, and key=value starts a"
                " sweep"
            ]
        )
    return commands[name](arguments)


def _push(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "bench push", description="Send a sweep's results to MLflow (again)."
    )
    parser.add_argument(
        "folder",
        nargs="?",
        help=f"folder of a sweep, or its name in {_SWEEPS}; the newest if left out",
    )
    given = parser.parse_args(arguments).folder
    from bench.commands.push import push

    return push(_newest() if given is None else _place(given))


def _fetch(arguments: list[str]) -> int:
    if not arguments:
        raise ConfigError(["fetch: want one or more models; see conf/model/"])
    from bench.commands.fetch import fetch

    return fetch(arguments)


def _gate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "bench gate", description="Exit code 1 when something has become slower."
    )
    parser.add_argument(
        "current", help=f"folder of a sweep or of one of its cells, or a sweep's name in {_SWEEPS}"
    )
    parser.add_argument(
        "--baseline", required=True, metavar="RUN_OR_SWEEP", help="what to compare with; likewise"
    )
    parser.add_argument(
        "--threshold",
        type=_share,
        default=0.05,
        help="slowdown that is let through (default 0.05: 5 %%)",
    )
    given = parser.parse_args(arguments)
    from bench.commands.gate import gate

    try:
        return gate(_place(given.current), _place(given.baseline), given.threshold)
    except StoreError as error:
        raise ConfigError([str(error)]) from error  # exit code 1 is for regressions


def _advise(arguments: list[str]) -> int:
    # Imports numpy, which no other command line needs to wait for
    from bench.analysis.advice import Goal, Limits

    parser = argparse.ArgumentParser(
        "bench advise", description="Which configuration to take, and how sure that is."
    )
    parser.add_argument(
        "folder",
        nargs="?",
        help=f"folder of a sweep, or its name in {_SWEEPS}; the newest if left out",
    )
    parser.add_argument(
        "--goal", choices=get_args(Goal), help="without it the usual questions are answered"
    )
    parser.add_argument(
        "--max-memory",
        type=_bytes,
        metavar="SIZE",
        help="of the GPU, or of the process: 8GiB, 500MB",
    )
    parser.add_argument(
        "--max-ttft", type=_seconds, metavar="TIME", help="time to first token: 200ms, 1.5s"
    )
    parser.add_argument("--max-tpot", type=_seconds, metavar="TIME", help="time per output token")
    parser.add_argument(
        "--max-kl",
        type=_positive,
        metavar="NATS",
        help="divergence from the unquantized model: 0.05",
    )
    parser.add_argument(
        "--min-throughput",
        type=_positive,
        metavar="TOK_S",
        help="output tokens per second of the batch",
    )
    given = parser.parse_args(arguments)
    from bench.report.advice import advise_on

    limits = Limits(
        given.max_memory, given.max_ttft, given.max_tpot, given.max_kl, given.min_throughput
    )
    return advise_on(
        _newest() if given.folder is None else _place(given.folder), limits, given.goal
    )


def _doctor(arguments: list[str], compose: Compose) -> int:
    parser = argparse.ArgumentParser(
        "bench doctor", description="What this machine is, and what works on it."
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="find the spread between processes (a few minutes)"
    )
    calibrate = parser.parse_args(arguments).calibrate
    (default,) = compose([])
    variants = [
        (
            axis,
            file.stem,
            parse_config({**default, axis: yaml.safe_load(file.read_text(encoding="utf-8"))}).cell,
        )
        for axis in _OF_THE_MACHINE
        for file in sorted((CONF / axis).glob("*.yaml"))
    ]
    from bench.commands.doctor import doctor

    return doctor(parse_config(default).cell, variants, calibrate)


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "bench report", description="Write a sweep's report (again): HTML, Markdown, CSV, PNG."
    )
    parser.add_argument(
        "folder",
        nargs="?",
        help=f"folder of a sweep, or its name in {_SWEEPS}; the newest if left out",
    )
    given = parser.parse_args(arguments).folder
    from bench.report.page import write_report

    folder = _newest() if given is None else _place(given)
    files = write_report(folder)
    # By `mlflow run -e report`
    if (run_id := os.environ.get("MLFLOW_RUN_ID")) and "MLFLOW_TRACKING_URI" in os.environ:
        from bench.store.mlflow import keep_report

        keep_report(run_id, folder.name, files)
    for file in files:
        print(file)
    return 0


def _reproduce(arguments: list[str], compose: Compose) -> int:
    about = "Run a cell or a sweep once more: does the same come out?"
    parser = argparse.ArgumentParser("bench reproduce", description=about, allow_abbrev=False)
    parser.add_argument(
        "run",
        help=(
            f"id of an MLflow run, folder of a sweep or of one of its cells, or a name in {_SWEEPS}"
        ),
    )
    parser.add_argument(
        "--margin",
        type=_margin,
        default=0.05,
        help="times within it are alike (default 0.05: 5 %%)",
    )
    parser.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="of each cell; default: as recorded, at least 5",
    )
    parser.add_argument(
        "--checkout",
        action="store_true",
        help="in a temporary worktree of the commit that is recorded",
    )
    given = parser.parse_args(arguments)
    (default,) = compose([])
    settings = parse_config(default).settings
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
        replace(settings, tracking=tracking, baseline=baseline, margin=given.margin),
        given.processes,
    )


def _recorded(given: str, settings: Settings) -> "Recorded":
    from bench.store.mlflow_fetch import from_folder, from_mlflow

    try:
        if _place(given).exists():
            return from_folder(_place(given))
        return from_mlflow(given, _store_of_runs(given, settings))
    except StoreError as error:
        raise ConfigError([str(error)]) from error  # exit code 1 is for what differs
    except TrackingError as error:
        raise ConfigError([f"{given}: no such folder, and {error}"]) from error


def _store_of_runs(given: str, settings: Settings) -> str:
    from bench.store.mlflow import tracking_uri

    uri, own = (
        tracking_uri(settings.tracking, Path(settings.output_dir)),
        Path(settings.output_dir, "mlflow.db"),
    )
    if "MLFLOW_TRACKING_URI" not in os.environ and not own.is_file():
        raise ConfigError(
            [
                f"{given}: no such folder, and no store of runs at {own}; want one in"
                " MLFLOW_TRACKING_URI"
            ]
        )
    return uri


_SIZES = {"GiB": 2**30, "MiB": 2**20, "GB": 1e9, "MB": 1e6}
_TIMES = {"ms": 1e-3, "s": 1.0}


def _bytes(text: str) -> float:
    return _with_unit(text, _SIZES)


def _seconds(text: str) -> float:
    return _with_unit(text, _TIMES)


def _with_unit(text: str, units: Mapping[str, float]) -> float:
    for unit, factor in units.items():
        if text.endswith(unit):
            return _positive(text.removesuffix(unit)) * factor
    raise argparse.ArgumentTypeError(f"{text}: want a number with one of {', '.join(units)}")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: want a number") from error
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: want a number above 0")
    return value


def _margin(text: str) -> float:
    if not 0 < (value := _positive(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: want a share like 0.05 for 5 %")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: want a whole number, at least 1")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: want a share like 0.05 for 5 %")
    return value


def _place(given: str) -> Path:
    return (
        Path(given) if Path(given).exists() or not (_SWEEPS / given).exists() else _SWEEPS / given
    )


def _newest() -> Path:
    sweeps: Sequence[Path] = sorted(_SWEEPS.glob("*/sweep.json"))
    if not sweeps:
        raise ConfigError(
            [f"no sweep in {_SWEEPS}; want a folder like {_SWEEPS}/2026-01-31_12-00-00"]
        )
    return sweeps[-1].parent
