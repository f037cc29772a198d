"""``python -m bench fetch MODEL``: download and convert models now, so that the first sweep need
not."""

import logging
import os
import sys
from collections.abc import Sequence

import yaml

from bench.config.cell import Model
from bench.config.models import own_model
from bench.config.parse import parse
from bench.errors import CellFailure, ConfigError
from bench.paths import CONF


def fetch(names: Sequence[str]) -> int:
    """Fetch each model; returns the exit code.

    Raises:
        ConfigError: for a name that is no model.
    """
    models = [_model(name) for name in names]
    # Read when tqdm is imported: transformers' conversion shows a bar and asks nobody
    os.environ["TQDM_DISABLE"] = "1"
    for chatty in ("torchao", "torch.utils._pytree"):  # of kernels for other devices
        logging.getLogger(chatty).setLevel(logging.ERROR)
    from bench.engine import sources

    for name, model in zip(names, models, strict=True):
        print(f"{name}: fetching it, unless it is here", file=sys.stderr)
        try:
            folder = sources.fetch(sources.pinned(model), _show)
        except CellFailure as failure:
            print(failure.reason, file=sys.stderr)
            return 1
        print(f"{name}: {folder or 'built from random weights, nothing to fetch'}")
    return 0


def _model(name: str) -> Model:
    """What ``model=name`` means on the command line of a sweep."""
    file = CONF / "model" / f"{name}.yaml"
    if file.is_file():
        return parse(Model, yaml.safe_load(file.read_text(encoding="utf-8")), "model")
    own = own_model(name)
    if own is None:
        known = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))
        raise ConfigError([f"model={name}: no such model; there are {', '.join(known)}"])
    return parse(Model, own, "model")


def _show(what: str) -> None:
    print(what, file=sys.stderr)
