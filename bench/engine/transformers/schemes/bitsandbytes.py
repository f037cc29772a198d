"""The schemes of bitsandbytes: LLM.int8() and 4-bit blocks, as version 0.50.2 stores them.

int8 keeps a scale for each output. 4-bit keeps one for each block of 64 weights, and these scales
may be quantized again. On a CPU with AVX512-BF16 the library repacks 4-bit weights at their first
use, which halves plain scales and expands nested ones; bytes are those afterwards. Dtypes are
always passed: left to the library, nf4 computes in fp32.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bench.config.cell import Auto, DtypeName, Quant
from bench.config.parse import parse
from bench.engine.transformers.schemes.scheme import (
    DTYPE_BYTES,
    TORCH_NAMES,
    Configuration,
    Scheme,
    dtype_name,
    rows_of,
    torch_dtype,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

# bitsandbytes 0.50.2, functional.py: weights that share a 4-bit scale, scales that share a nested
# one, table entries.
_PACKED_OUTPUTS = 32
_BLOCK_WEIGHTS, _NESTED_BLOCK_SCALES, _CODE_ENTRIES, _NESTED_CODE_ENTRIES = 64, 256, 16, 256


@dataclass(frozen=True, slots=True)
class Int8:
    """Activation columns with a value above ``threshold`` are computed in 16 bits; 0: none are."""

    threshold: float = field(metadata={"minimum": 0})


@dataclass(frozen=True, slots=True)
class FourBit:
    """Which 4-bit numbers, in which dtype their products are computed, whether scales have
    scales."""

    quant_type: Literal["nf4", "fp4"]
    compute_dtype: DtypeName | Auto  # auto: as the weights that stay unquantized
    double_quant: bool


def _int8(quant: Quant) -> Int8:
    return parse(Int8, quant.parameters, "quant.parameters")


def _four_bit(quant: Quant) -> FourBit:
    return parse(FourBit, quant.parameters, "quant.parameters")


def _compute_dtype(quant: Quant) -> str:
    asked = _four_bit(quant).compute_dtype
    return quant.dtype if asked == "auto" else asked


def _int8_configuration(quant: Quant, device: str) -> Configuration:
    arguments = {"load_in_8bit": True, "llm_int8_threshold": _int8(quant).threshold}
    return Configuration("BitsAndBytesConfig", arguments)


def _four_bit_configuration(quant: Quant, device: str) -> Configuration:
    wanted = _four_bit(quant)
    arguments = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": wanted.quant_type,
        "bnb_4bit_use_double_quant": wanted.double_quant,
        "bnb_4bit_compute_dtype": TORCH_NAMES[_compute_dtype(quant)],
    }
    return Configuration("BitsAndBytesConfig", arguments)


def _int8_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    return outputs * inputs + 4 * outputs  # a scale in fp32 for each output


def _four_bit_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    weights, is_nested = outputs * inputs, _four_bit(quant).double_quant
    blocks = -(weights // -_BLOCK_WEIGHTS)
    code = 4 * _CODE_ENTRIES
    if _repacks(device):
        # Bf16, not nested any more; the mean is left behind
        scales = 2 * blocks + 4 * is_nested
    elif is_nested:
        # Scales in a byte, scales of those in fp32, their table, and the mean that was taken off.
        scales = blocks + 4 * -(blocks // -_NESTED_BLOCK_SCALES) + 4 * _NESTED_CODE_ENTRIES + 4
    else:
        scales = 4 * blocks
    return -(weights // -2) + code + scales


def kept_bytes(name: str, dtype: str, saved_bytes: int, device: str) -> int:
    """What a tensor of a saved model takes in memory once its layer has been used.

    Args:
        dtype: as safetensors calls it.
    """
    is_repacked = _repacks(device)
    if ".nested_" in name:
        return 0 if is_repacked else saved_bytes
    if not name.endswith(".absmax"):
        return saved_bytes
    is_nested = dtype == "U8"
    bf16_bytes = 2 * saved_bytes if is_nested else saved_bytes // 2
    # The mean that was taken off is saved as text
    return (bf16_bytes if is_repacked else saved_bytes) + 4 * is_nested


def _int8_workspace_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    # Without AVX-512 the product is made of fp32 copies
    return 4 * outputs * inputs * (device == "cpu")


def _four_bit_workspace_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    # Repacked; or unpacked
    return outputs * inputs * (8 if device == "cpu" else DTYPE_BYTES[_compute_dtype(quant)])


def _four_bit_obstacle(outputs: int, inputs: int, quant: Quant, device: str) -> str | None:
    # 0.50.2, functional._convert_weight_packed_for_cpu asserts it
    is_packed = outputs % _PACKED_OUTPUTS == 0 and inputs % 2 == 0
    if is_packed or not _repacks(device):
        return None
    return (
        f"bitsandbytes packs 4-bit weights for this processor in blocks of {_PACKED_OUTPUTS}"
        f" outputs with an even number of inputs; want that instead of {outputs} x {inputs}"
    )


def _repacks(device: str) -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return device == "cpu" and bool(has_avx512bf16())


def _int8_state(layer: Any) -> "list[torch.Tensor]":
    kept = [layer.state.CB, layer.state.SCB, layer.weight.CB, layer.weight.SCB]
    return [tensor for tensor in kept if tensor is not None]


def _four_bit_state(layer: Any) -> "list[torch.Tensor]":
    kept = []
    state = layer.weight.quant_state
    while state is not None:  # double quantization: the scales have scales
        kept += [state.absmax, state.code, getattr(state, "offset", None)]
        state = getattr(state, "state2", None)
    return [tensor for tensor in kept if tensor is not None]


def _four_bit_settings(layer: Any) -> dict[str, Any]:
    state = layer.weight.quant_state
    return {
        "quant_type": state.quant_type,
        # Unnested when they are repacked, which the state remembers
        "double_quant": getattr(state, "original_nested", state.nested),
        "compute_dtype": dtype_name(layer.compute_dtype),
    }


def _four_bit_wanted(quant: Quant) -> dict[str, Any]:
    wanted = _four_bit(quant)
    return {
        "quant_type": wanted.quant_type,
        "double_quant": wanted.double_quant,
        "compute_dtype": _compute_dtype(quant),
    }


def _int8_layer(layer: Any, quant: Quant) -> "nn.Module":
    import bitsandbytes as bnb

    made = bnb.nn.Linear8bitLt(
        *_sizes(layer),
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=_int8(quant).threshold,
        device="meta",
    )
    weight = bnb.nn.Int8Params(
        rows_of(layer).contiguous(), requires_grad=False, has_fp16_weights=False
    )
    return _filled(made, weight, layer)


def _four_bit_layer(layer: Any, quant: Quant) -> "nn.Module":
    import bitsandbytes as bnb

    wanted = _four_bit(quant)
    made = bnb.nn.Linear4bit(
        *_sizes(layer),
        bias=layer.bias is not None,
        compute_dtype=torch_dtype(_compute_dtype(quant)),
        device="meta",
    )
    weight = bnb.nn.Params4bit(
        rows_of(layer).contiguous(),
        requires_grad=False,
        quant_type=wanted.quant_type,
        compress_statistics=wanted.double_quant,
    )
    return _filled(made, weight, layer)


def _sizes(layer: Any) -> tuple[int, int]:
    outputs, inputs = rows_of(layer).shape
    return inputs, outputs


def _filled(made: Any, weight: Any, layer: Any) -> "nn.Module":
    """With the weight, which is quantized by being moved to where the layer is, and its bias."""
    made.weight, made.bias = weight, layer.bias
    quantized: nn.Module = made.to(layer.weight.device)
    return quantized


INT8 = Scheme(
    parameters=Int8,
    package="bitsandbytes",
    layer_classes=("Linear8bitLt",),
    configuration=_int8_configuration,
    executed_dtype=lambda quant: "int8",
    matrix_bytes=_int8_bytes,
    workspace_bytes=_int8_workspace_bytes,
    state=_int8_state,
    settings=lambda layer: {"threshold": layer.state.threshold},
    wanted=lambda quant: {"threshold": _int8(quant).threshold},
    # Products are made in int32 and scaled in fp32: three such tensors are alive on a CPU
    product_bytes=12,
    layer=_int8_layer,
)

FOUR_BIT = Scheme(
    parameters=FourBit,
    package="bitsandbytes",
    layer_classes=("Linear4bit",),
    configuration=_four_bit_configuration,
    executed_dtype=_compute_dtype,
    matrix_bytes=_four_bit_bytes,
    workspace_bytes=_four_bit_workspace_bytes,
    obstacle=_four_bit_obstacle,
    state=_four_bit_state,
    settings=_four_bit_settings,
    wanted=_four_bit_wanted,
    layer=_four_bit_layer,
)
