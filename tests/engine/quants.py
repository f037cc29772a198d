"""The values of conf/quant as parameters of tests; what needs a missing package is skipped."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import pytest

from bench.engine.transformers.schemes import SCHEMES
from bench.paths import CONF
from tests import fakes

# Of transformers and any model: what a checkpoint is depends on its folder
# (tests/engine/test_checkpoint.py), and single layers are a certain model's
QUANTS = sorted(
    path.stem
    for path in (CONF / "quant").glob("*.yaml")
    if path.stem != "checkpoint"
    and not fakes.group("quant", path.stem).get("layers")
    and fakes.group("quant", path.stem)["scheme"] in SCHEMES
)


def tried(quants: Iterable[str], *beside: Any, slow: Iterable[str] = ()) -> list[Any]:
    """Parameters ``(*beside, quant)`` of a test."""
    return [
        pytest.param(*beside, quant, marks=[*_needs(quant), *[pytest.mark.slow] * (quant in slow)])
        for quant in quants
    ]


def _needs(quant: str) -> list[pytest.MarkDecorator]:
    package = SCHEMES[fakes.group("quant", quant)["scheme"]].package
    if package is None or importlib.util.find_spec(package) is not None:
        return []
    return [pytest.mark.skip(reason=f"{package} is not installed")]
