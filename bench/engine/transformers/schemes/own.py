"""Schemes of our own: a byte a weight and 4 bits, in the layout of ``own.grids``.

The layers are this project's, so are their kernels: C++ on a CPU, compiled on the machine, Triton's
on CUDA. ``activations: int8`` multiplies integers and is another number than ``none``, which
multiplies unpacked weights: both are attested. The head, which others leave unquantized, may have a
byte a weight too; a head that is the embedding then becomes a matrix of its own.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from bench.config.cell import Quant, Requires
from bench.config.parse import parse
from bench.engine.transformers.schemes.scheme import Scheme, rows_of

if TYPE_CHECKING:
    from torch import nn

# int8_on_cpu: int8 there, none on CUDA, as ``driver.plan`` resolves it
Activations = Literal["int8", "int8_on_cpu", "none"]
HeadScheme = Literal["int8", "none"]


@dataclass(frozen=True, slots=True)
class Int8:
    """Whether products are made of int8 activations, and whether the head is quantized."""

    activations: Activations
    head: HeadScheme


@dataclass(frozen=True, slots=True)
class Int4:
    """How many weights of one output share a scale, and how they are rounded: to the nearest
    number, or after reading a calibration text, by AWQ's scales, by GPTQ's compensation, or both.
    """

    group_size: Literal[32, 64, 128, "row"]
    quantizer: Literal["nearest", "awq", "gptq", "awq_gptq"]
    activations: Activations
    head: HeadScheme


def int8_of(quant: Quant) -> Int8:
    return parse(Int8, quant.parameters, "quant.parameters")


def int4_of(quant: Quant) -> Int4:
    return parse(Int4, quant.parameters, "quant.parameters")


def group_size(quant: Quant, inputs: int) -> int:
    """Inputs of one group; all of a padded row for ``row``."""
    from bench.engine.transformers.own.grids import padded

    size = int4_of(quant).group_size
    return padded(inputs) if size == "row" else size


def _int8_layer(layer: Any, quant: Quant) -> "nn.Module":
    from bench.engine.transformers.own.grids import quantize_int8
    from bench.engine.transformers.own.layers import Int8Linear

    weight = rows_of(layer)
    matrix = quantize_int8(weight)
    return Int8Linear(matrix, weight.shape[1], layer.bias, int8_of(quant).activations != "none")


def _int4_layer(layer: Any, quant: Quant) -> "nn.Module":
    from bench.engine.transformers.own.grids import quantize_int4
    from bench.engine.transformers.own.layers import Int4Linear

    own, weight = int4_of(quant), rows_of(layer)
    inputs = weight.shape[1]
    matrix = quantize_int4(weight, group_size(quant, inputs))
    # Of random weights and of an empty layout; calibration makes layers of its own
    scale = weight.new_ones(inputs).half() if "awq" in own.quantizer else None
    return Int4Linear(matrix, inputs, layer.bias, own.activations != "none", scale)


def _int8_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    from bench.engine.transformers.own.grids import int8_bytes

    return int8_bytes(outputs, inputs)


def _int4_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    from bench.engine.transformers.own.grids import int4_bytes

    scales = 2 * inputs if "awq" in int4_of(quant).quantizer else 0
    return int4_bytes(outputs, inputs, group_size(quant, inputs)) + scales


def _int8_head(quant: Quant) -> Quant | None:
    return quant if int8_of(quant).head == "int8" else None


def _int4_head(quant: Quant) -> Quant | None:
    own = int4_of(quant)
    parameters = {"activations": own.activations, "head": "int8"}
    int8 = replace(quant, scheme="own_int8", parameters=parameters)
    return int8 if own.head == "int8" else None


def _needs(quant: Quant, device: str) -> str | None:
    from bench.engine.transformers.own.build import obstacle

    if device == "cpu":
        return obstacle()
    if quant.parameters["activations"] != "none":
        return "quant.parameters.activations=none: int8 activations are multiplied on a CPU alone"
    return None


def _int8_settings(layer: Any) -> dict[str, Any]:
    return {"int8_activations": layer.int8_activations}


def _int4_settings(layer: Any) -> dict[str, Any]:
    return {
        **_int8_settings(layer),
        "group_size": layer.group_size,
        "input_scale": layer.input_scale is not None,
    }


def _int4_wanted(quant: Quant) -> dict[str, Any]:
    own = int4_of(quant)
    # How long a row is its layer knows
    size = {} if own.group_size == "row" else {"group_size": own.group_size}
    is_int8 = own.activations != "none"
    return {"int8_activations": is_int8, "input_scale": "awq" in own.quantizer, **size}


def _executed_dtype(quant: Quant) -> str:
    return "int8" if quant.parameters["activations"] != "none" else str(quant.dtype)


_ON_CUDA = Requires(capability=8.0, compiler=True)  # of Triton's kernels

INT8 = Scheme(
    parameters=Int8,
    layer_classes=("Int8Linear",),
    executed_dtype=_executed_dtype,
    matrix_bytes=_int8_bytes,
    settings=_int8_settings,
    wanted=lambda quant: {"int8_activations": int8_of(quant).activations != "none"},
    product_bytes=4,  # inputs in fp32 on their way to int8
    needs=_needs,
    on_cuda=_ON_CUDA,
    layer=_int8_layer,
    head=_int8_head,
    is_own=True,
)

INT4 = Scheme(
    parameters=Int4,
    layer_classes=("Int4Linear",),
    executed_dtype=_executed_dtype,
    matrix_bytes=_int4_bytes,
    settings=_int4_settings,
    wanted=_int4_wanted,
    product_bytes=4,
    needs=_needs,
    on_cuda=_ON_CUDA,
    layer=_int4_layer,
    head=_int4_head,
    is_own=True,
)
