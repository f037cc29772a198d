"""``python -m bench fetch MODEL``: download and convert models now, so that the first sweep need
not."""

import os
import sys
from collections.abc import Sequence

import yaml

from bench.config.cell import Model
from bench.config.parse import parse
from bench.errors import CellFailure, ConfigError
from bench.paths import CONF


def fetch(names: Sequence[str]) -> int:
    """Fetch each model; returns the exit code.

    Raises:
        ConfigError: for a name that has no YAML.
    """
    known = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            [f"model={name}: no such model; there are {', '.join(known)}" for name in unknown]
        )
    # Read when tqdm is imported: transformers' conversion shows a bar and asks nobody
    os.environ["TQDM_DISABLE"] = "1"
    from bench.engine import sources

    for name in names:
        model = parse(
            Model,
            yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8")),
            "model",
        )
        print(f"{name}: fetching it, unless it is here", file=sys.stderr)
        try:
            folder = sources.fetch(model)
        except CellFailure as failure:
            print(failure.reason, file=sys.stderr)
            return 1
        print(f"{name}: {folder or 'built from random weights, nothing to fetch'}")
    return 0
