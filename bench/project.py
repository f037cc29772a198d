"""The entry points of ``MLproject``: ``python -m bench.project ENTRY name=value ...`` becomes our
own command line.

MLflow fills each parameter in as one quoted word, an empty one too, so several overrides in a
parameter have to be taken apart here. The run that MLflow has opened reaches us as MLFLOW_RUN_ID
(``output.tracking`` adopts it).
"""

import shlex
import sys
from collections.abc import Mapping, Sequence

from bench.__main__ import main
from bench.errors import ConfigError


def command_line(entry: str, given: Sequence[str]) -> list[str]:
    """What ``python -m bench`` would be given.

    Raises:
        ConfigError: when the parameters make no command.
    """
    values = dict(word.split("=", 1) for word in given)
    try:
        more = shlex.split(asked := values.pop("overrides", ""))
    except ValueError as error:
        raise ConfigError([f"overrides={asked}: {error}; quote it as for a shell"]) from error
    if entry == "main":
        return [*_one_cell(values), *more]
    if entry == "sweep":
        name = values["name"]
        if not name and not more:
            raise ConfigError(
                ['sweep: want -P name=headline, or -P overrides="quant=fp16,nf4 batch=1,8"']
            )
        return ["-m", *([f"sweeps={name}"] if name else []), *more]
    return [entry, *(value for value in values.values() if value), *more]


def _one_cell(values: Mapping[str, str]) -> list[str]:
    several = [f"{key}={value}" for key, value in values.items() if "," in value]
    if several:
        asked = " ".join(several)
        raise ConfigError(
            [f'{asked}: main measures one cell; for several -e sweep -P overrides="{asked}"']
        )
    return [f"{key}={value}" for key, value in values.items()]


def run() -> int:
    """Run an entry point; returns the exit code."""
    try:
        sys.argv = [sys.argv[0], *command_line(sys.argv[1], sys.argv[2:])]
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(run())
