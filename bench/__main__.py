"""The command line: Hydra's, and a few commands of our own.

Hydra composes every job, but its task function only collects the composed configuration; when it
has returned, all of them are parsed and only then does anything run. So a mistake in the ninth cell
stops the sweep before the first, and order, resume and dry runs need no launcher. A first argument
that is a plain word is a command (``commands``); anything else is Hydra's.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from bench import paths
from bench.errors import BenchError, ConfigError


def main() -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0].isidentifier():
            from bench.commands import run_command

            return run_command(arguments[0], arguments[1:], collect)
        return _sweep(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while composing; a sweep that has begun handles its own
        return 130


def _sweep(arguments: list[str]) -> int:
    collected = collect(arguments)
    if not collected:  # --help, --cfg, --info: Hydra has answered
        return 0
    from bench.config.compose import missing_files
    from bench.config.settings import Config, parse_config

    problems: dict[str, None] = {}  # ordered, each once: a mistake repeats in every cell
    configs: list[Config] = []
    for mapping in collected:
        try:
            configs.append(parse_config(mapping))
            problems |= dict.fromkeys(missing_files(configs[-1].cell))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    from bench.driver.sweep import run_sweep

    return run_sweep(configs, arguments)


def collect(arguments: list[str]) -> list[Mapping[str, Any]]:
    """The composed configuration of every job that the arguments describe, as plain mappings.

    Raises:
        ConfigError: when Hydra cannot compose them.
    """
    from bench.config.compose import explain, keys_as_flags

    problems = keys_as_flags(arguments)
    if problems:
        raise ConfigError(problems)
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    jobs: list[Mapping[str, Any]] = []

    def task(config: Any) -> None:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        jobs.append(plain)  # type: ignore[arg-type]

    os.environ["BENCH_ROOT"] = str(paths.ROOT)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise to us, instead of printing and exiting
    # Hydra's parser gives up on an override behind a flag, as in `batch=8 -m quant=fp16,nf4`.
    overrides = [
        argument for argument in arguments if "=" in argument and not argument.startswith("-")
    ]
    sys.argv = [
        sys.argv[0],
        *(argument for argument in arguments if argument not in overrides),
        *overrides,
    ]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        os.environ["BENCH_SCRATCH"] = scratch
        try:
            hydra.main(config_path=str(paths.CONF), config_name="config", version_base="1.3")(
                task
            )()
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(arguments, error)) from error
    return jobs


if __name__ == "__main__":
    sys.exit(main())
