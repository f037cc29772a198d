"""Weights quantized by torchao, as version 0.18.0 stores them: int8, 4-bit groups, 8-bit floats.

A layer stays torch's Linear; its weight becomes a tensor subclass that holds the numbers and their
scales. All three quantize weights alone, and products are made in the dtype of the activations:

* int8 has a scale in fp32 and a zero point of one byte for each output. A product first copies all
  of its weights into its dtype.
* fp8 (e4m3) has a scale in fp32 for each output. A product dequantizes its weights by way of fp32.
* int4 has a scale and a zero in 16 bits for each group of inputs, and a kernel of torch's that
  unpacks as it multiplies. The packing depends on the device. On CUDA it is the one that needs no
  further package ("plain", the default, needs mslk): tiles, which want bf16 and pad the inputs to
  1,024. On a CPU it is in torchao's prototypes.

Which layers: every Linear and subclass of it, so not GPT-2's Conv1D. A layer whose inputs the group
size does not divide torchao leaves as it is, with a line in a log; here that is an obstacle.
"""

from dataclasses import dataclass
from typing import Any, Literal

from bench.config.cell import Quant, Requires
from bench.config.parse import parse
from bench.engine.transformers.schemes.scheme import (
    DTYPE_BYTES,
    Configuration,
    Scheme,
    dtype_name,
)

# torchao 0.18.0, int4_tile_packed_to_4d_tensor.py: what sizes are padded to
_TILE_OUTPUTS, _TILE_INPUTS = 8, 1024
_PACKED_OUTPUTS = 16  # torch 2.13.0, _convert_weight_to_int4pack_for_cpu


@dataclass(frozen=True, slots=True)
class Int4:
    """How many weights of one output share a scale."""

    group_size: Literal[32, 64, 128]


def _group_size(quant: Quant) -> int:
    return parse(Int4, quant.parameters, "quant.parameters").group_size


def _configuration(name: str, module: str = "torchao.quantization", **given: Any) -> Configuration:
    return Configuration("TorchAoConfig", {"quant_type": Configuration(name, given, module)})


def _int4_configuration(quant: Quant, device: str) -> Configuration:
    size = _group_size(quant)
    if device == "cpu":
        prototypes = "torchao.prototype.quantization.int4"
        return _configuration("PrototypeInt4WeightOnlyConfig", prototypes, group_size=size)
    tiles = "tile_packed_to_4d"
    return _configuration("Int4WeightOnlyConfig", group_size=size, int4_packing_format=tiles)


def _replaces(layer: Any) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear)


def _int8_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    return outputs * inputs + (4 + 1) * outputs


def _fp8_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    return outputs * inputs + 4 * outputs


def _int4_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    if device != "cpu":
        outputs = -(outputs // -_TILE_OUTPUTS) * _TILE_OUTPUTS
        inputs = -(inputs // -_TILE_INPUTS) * _TILE_INPUTS
    scale_and_zero = 2 * DTYPE_BYTES[quant.dtype]
    return outputs * inputs // 2 + inputs // _group_size(quant) * outputs * scale_and_zero


def _int8_workspace_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    return outputs * inputs * DTYPE_BYTES[quant.dtype]


def _fp8_workspace_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    # In fp32, multiplied by the scales, and in the dtype of the product
    cast = 0 if quant.dtype == "fp32" else DTYPE_BYTES[quant.dtype]
    return outputs * inputs * (4 + 4 + cast)


def _int4_obstacle(outputs: int, inputs: int, quant: Quant, device: str) -> str | None:
    group = _group_size(quant)
    if inputs % group:
        return (
            f"torchao cannot split {inputs} inputs into groups of"
            f" quant.parameters.group_size={group}; want one that divides them"
        )
    if device == "cpu" and outputs % _PACKED_OUTPUTS:
        return (
            f"torchao packs 4-bit weights for a CPU in blocks of {_PACKED_OUTPUTS} outputs;"
            f" want a multiple of that instead of {outputs}"
        )
    return None


def _settings(layer: Any) -> dict[str, Any]:
    weight = layer.weight
    activations = ("act_quant_kwargs", "act_mapping_type")  # of 8 bits, and of 4
    return {
        "dtype": dtype_name(weight.dtype),
        "activations": any(getattr(weight, name, None) is not None for name in activations),
    }


def _wanted(quant: Quant) -> dict[str, Any]:
    return {"dtype": quant.dtype, "activations": False}


def _settings_8_bit(layer: Any) -> dict[str, Any]:
    """``per_output``: all inputs share a scale."""
    is_row = list(layer.weight.block_size) == [1, layer.weight.shape[-1]]
    return {**_settings(layer), "per_output": is_row}


def _wanted_8_bit(quant: Quant) -> dict[str, Any]:
    return {**_wanted(quant), "per_output": True}


INT8 = Scheme(
    package="torchao",
    layer_classes=("Linear of Int8Tensor",),
    replaces=_replaces,
    configuration=lambda quant, device: _configuration("Int8WeightOnlyConfig"),
    matrix_bytes=_int8_bytes,
    workspace_bytes=_int8_workspace_bytes,
    settings=_settings_8_bit,
    wanted=_wanted_8_bit,
    product_bytes=4,  # before it is scaled, in fp32 at most
)

FP8 = Scheme(
    package="torchao",
    layer_classes=("Linear of Float8Tensor",),
    replaces=_replaces,
    configuration=lambda quant, device: _configuration("Float8WeightOnlyConfig"),
    matrix_bytes=_fp8_bytes,
    workspace_bytes=_fp8_workspace_bytes,
    settings=_settings_8_bit,
    wanted=_wanted_8_bit,
)

INT4 = Scheme(
    parameters=Int4,
    package="torchao",
    layer_classes=("Linear of Int4OpaqueTensor", "Linear of Int4TilePackedTo4dTensor"),
    replaces=_replaces,
    configuration=_int4_configuration,
    matrix_bytes=_int4_bytes,
    obstacle=_int4_obstacle,
    settings=lambda layer: {**_settings(layer), "group_size": layer.weight.block_size[-1]},
    wanted=lambda quant: {**_wanted(quant), "group_size": _group_size(quant)},
    on_cuda=Requires(capability=8.0, dtypes=("bf16",)),
)
