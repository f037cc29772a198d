"""What the names of quantization schemes mean, in this engine.

To add one: a YAML in ``conf/quant``, a ``Scheme`` in a file of its family here, a line in
``SCHEMES``. Importing this imports no library: the driver asks it about names before anything runs.
"""

from typing import Any

from bench.config.cell import LayerQuant, Quant
from bench.config.parse import parse
from bench.engine.transformers.schemes import own, torchao
from bench.engine.transformers.schemes.bitsandbytes import FOUR_BIT, INT8
from bench.engine.transformers.schemes.checkpoint import CHECKPOINT
from bench.engine.transformers.schemes.scheme import (
    DTYPE_BYTES,
    TORCH_NAMES,
    Configuration,
    Scheme,
    dtype_name,
    torch_dtype,
)
from bench.errors import ConfigError

__all__ = [
    "DTYPE_BYTES",
    "SCHEMES",
    "TORCH_NAMES",
    "Configuration",
    "Scheme",
    "dtype_name",
    "layer_quant",
    "layer_quants",
    "packs",
    "parameters_of",
    "torch_dtype",
    "unknown_names",
]


SCHEMES: dict[str, Scheme] = {
    "none": Scheme(),
    "bnb_int8": INT8,
    "bnb_4bit": FOUR_BIT,
    "torchao_int8": torchao.INT8,
    "torchao_int4": torchao.INT4,
    "torchao_fp8": torchao.FP8,
    "own_int8": own.INT8,
    "own_int4": own.INT4,
    "checkpoint": CHECKPOINT,
}


def layer_quant(quant: Quant, layer: LayerQuant) -> Quant:
    """What a layer has that ``quant.layers`` names, as the quantization of a model."""
    parameters = dict(layer.parameters)
    dtype = quant.dtype if layer.dtype == "auto" else layer.dtype
    return Quant(layer.name, layer.scheme, dtype, parameters)


def layer_quants(quant: Quant) -> list[Quant]:
    """Those that some layers have instead."""
    return [layer_quant(quant, layer) for layer in quant.layers.values()]


def packs(quant: Quant) -> bool:
    """Whether some layers of a model have weights of our own, which are packed before a load."""
    return any(SCHEMES[each.scheme].is_own for each in (quant, *layer_quants(quant)))


def parameters_of(quant: Quant) -> Any:
    """The scheme's own parameters, as its dataclass.

    Raises:
        ConfigError: for an unknown scheme, and for parameters that it does not have or take.
    """
    if quant.scheme not in SCHEMES:
        raise ConfigError(
            [
                f"quant.scheme={quant.scheme}: no such scheme; engine=transformers has"
                f" {', '.join(SCHEMES)}"
            ]
        )
    return parse(SCHEMES[quant.scheme].parameters, quant.parameters, "quant.parameters")


def unknown_names(quant: Quant) -> list[str]:
    """What ``parameters_of`` objects to, a sentence each; empty when nothing."""
    try:
        parameters_of(quant)
        for each in layer_quants(quant):
            parameters_of(each)
    except ConfigError as error:
        return error.problems
    if quant.layers and "checkpoint" in (quant.scheme, *(e.scheme for e in quant.layers.values())):
        return [
            "quant.layers: a checkpoint's layers are as its files have them; want another quant"
        ]
    if quant.dtype == "saved" and quant.scheme != "checkpoint":
        return ["quant.dtype=saved: goes with quant=checkpoint; want auto, fp32, fp16 or bf16"]
    return []
