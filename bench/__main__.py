"""The command line: Hydra's, and a few commands of our own.

Hydra composes every job, but its task function only collects the composed configuration; when it
has returned, all of them are parsed and only then does anything run. So a mistake in the ninth cell
stops the sweep before the first, and order, resume and dry runs need no launcher. A first argument
that is a plain word is a command (``commands``); anything else is Hydra's.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError, ConfigError


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        _check_working_folder()
        arguments = words(sys.argv[1:])
        if arguments and arguments[0].isidentifier():
            from bench.commands import run_command

            return run_command(arguments[0], arguments[1:])
        from bench.config.compose import collect, parsed

        collected = collect(arguments)
        if not collected:  # --help, --cfg, --info: Hydra has answered
            return 0
        configs = parsed(collected)
        if configs[0].settings.where.name != "here":
            from bench.driver.elsewhere import run_elsewhere

            return run_elsewhere(configs, arguments)
        from bench.driver.sweep import run_sweep

        return run_sweep(configs, arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:  # while composing; a sweep that has begun handles its own
        return 130


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(["the working folder is gone; cd to one that is there"]) from error


def words(given: Sequence[str]) -> list[str]:
    """The arguments as typed. ``mlflow run`` quotes each parameter as one word, also an empty one;
    several overrides come in one, ``overrides="a=1 b=2"``.

    Raises:
        ConfigError: for quotes that do not close.
    """
    arguments: list[str] = []
    for argument in given:
        name, _, value = argument.partition("=")
        if name == "overrides":
            try:
                arguments += shlex.split(value)
            except ValueError as error:
                raise ConfigError([f"{argument}: {error}; quote it as for a shell"]) from error
        elif argument not in ("", "sweeps="):
            arguments.append(argument)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
