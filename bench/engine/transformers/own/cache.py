"""Where packed weights are kept: by everything that decides them, not in which dtype they are
multiplied. Imports no library, for the driver."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.config.cell import Quant, digest
from bench.engine.sources import digests
from bench.paths import CALIBRATION_TEXT, cache_folder

_CODE = ("cache.py", "calibration.py", "grids.py", "packing.py")


def packed_place(quant: Quant, folder: Path) -> Path:
    """The folder of these unquantized weights under this quantization, made or not.

    Args:
        folder: with the unquantized weights.
    """
    schemes = [("", quant.scheme, _of_weights(quant.parameters))]
    for pattern, layer in quant.layers.items():
        schemes.append((pattern, layer.scheme, _of_weights(layer.parameters)))
    code = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _CODE]
    text = CALIBRATION_TEXT.read_text(encoding="utf-8")
    return cache_folder() / "packed" / digest([digests(str(folder)), schemes, code, text])


def _of_weights(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "activations"}
