"""Int8 and 4-bit weights of our own: which numbers they can be, and how they lie in memory.

*int8*: a signed byte for each weight and a scale in fp32 for each output, w = q * scale, with
scale = absmax / 127 of the row.

*int4*: unsigned 4-bit numbers in groups of inputs that share a scale in fp16 and a zero point of 4
bits, w = (q - zero) * scale. A group's range always holds 0, so that the zero point is one of its
numbers: scale = (max - min) / 15, zero = round(-min / scale). A group of 64 takes 4 + 20/64 = 4.31
bits a weight.

Inputs are padded to whole blocks of 64, whose weights stand for 0. In a block's 32 bytes, byte i
holds input i in its low nibble and input i + 32 in its high one: a register of 32 bytes becomes the
64 weights in their order by a mask and a shift, and a GPU's tile two tiles of 32 inputs. Zero
points lie two to a byte, the even group's in the low nibble. The last group of a row may be short.

An ``input_scale`` (AWQ, arXiv 2306.00978) multiplies the inputs before the product; the weights
have been divided by it. It stays at run time, in fp16: to fold it into the operator before, one
would have to know each architecture, and it costs little where inputs are quantized anyway.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK_INPUTS = 64
_LARGEST_INT8, _LARGEST_INT4 = 127, 15


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """Shapes: weight (outputs, padded inputs) int8, scale (outputs,) fp32."""

    weight: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class Int4Matrix:
    """Shapes: weight (outputs, padded inputs / 2) uint8, scale (outputs, groups) fp16, zero
    (outputs, ceil(groups / 2)) uint8."""

    weight: Tensor
    scale: Tensor
    zero: Tensor
    group_size: int


def padded(inputs: int) -> int:
    """Inputs as stored: whole blocks."""
    return -(inputs // -BLOCK_INPUTS) * BLOCK_INPUTS


def group_count(inputs: int, group_size: int) -> int:
    """Groups in a row, the last one may be short."""
    return -(inputs // -group_size)


def int8_bytes(outputs: int, inputs: int) -> int:
    """Weights and scales."""
    return outputs * padded(inputs) + 4 * outputs


def int4_bytes(outputs: int, inputs: int, group_size: int) -> int:
    """Weights, scales and zero points."""
    groups = group_count(inputs, group_size)
    return outputs * (padded(inputs) // 2 + 2 * groups + -(groups // -2))


def quantize_int8(weight: Tensor) -> Int8Matrix:
    """Rounded to nearest. Shapes: weight (outputs, inputs), any floating dtype."""
    wide = weight.float()
    scale = wide.abs().amax(1) / _LARGEST_INT8
    q = (wide / _not_zero(scale)[:, None]).round().to(torch.int8)
    return Int8Matrix(pad(q, (0, padded(q.shape[1]) - q.shape[1])), scale)


def dequantize_int8(matrix: Int8Matrix, inputs: int) -> Tensor:
    """In fp32. Shapes: returns (outputs, inputs)."""
    return matrix.weight[:, :inputs].float() * matrix.scale[:, None]


def int4_grid(group: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of groups, as they are stored.

    Shapes: group (..., n); returns (...,) fp16 and (...,) uint8.
    """
    low = group.amin(-1).float().clamp(max=0)
    high = group.amax(-1).float().clamp(min=0)
    scale = ((high - low) / _LARGEST_INT4).half()
    zero = (-low / _not_zero(scale.float())).round().clamp(0, _LARGEST_INT4).to(torch.uint8)
    return scale, zero


def to_int4(group: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Rounded to the nearest number of the grid. Shapes: group (..., n), scale and zero (...,)."""
    steps = group.float() / _not_zero(scale.float())[..., None] + zero[..., None]
    return steps.round().clamp(0, _LARGEST_INT4).to(torch.uint8)


def from_int4(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """In fp32. Shapes: q (..., n), scale and zero (...,)."""
    return (q.float() - zero[..., None].float()) * scale[..., None].float()


def quantize_int4(weight: Tensor, group_size: int) -> Int4Matrix:
    """Rounded to nearest. Shapes: weight (outputs, inputs), any floating dtype."""
    inputs = weight.shape[1]
    count = group_count(inputs, group_size)
    # Zeros behind a short group change no range, since each holds 0
    groups = pad(weight, (0, count * group_size - inputs)).unflatten(1, (count, group_size))
    scale, zero = int4_grid(groups)
    q = to_int4(groups, scale, zero).flatten(1)[:, :inputs]
    return packed_int4(q, scale, zero, group_size)


def packed_int4(q: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Int4Matrix:
    """As they lie in memory. Shapes: q (outputs, inputs), scale and zero (outputs, groups)."""
    last = zero[:, -1:].expand(-1, padded(q.shape[1]) - q.shape[1])
    blocks = torch.cat([q, last], 1).unflatten(1, (-1, 2, BLOCK_INPUTS // 2))
    weight = (blocks[:, :, 0] | blocks[:, :, 1] << 4).flatten(1)
    zeros = pad(zero, (0, zero.shape[1] % 2))
    return Int4Matrix(weight, scale, zeros[:, 0::2] | zeros[:, 1::2] << 4, group_size)


def unpacked_int4(matrix: Int4Matrix, inputs: int) -> tuple[Tensor, Tensor]:
    """The 4-bit numbers and zero points, a byte each. Shapes: (outputs, inputs), (outputs,
    groups)."""
    low, high = matrix.weight & 15, matrix.weight >> 4
    half = BLOCK_INPUTS // 2
    blocks = torch.stack([low.unflatten(1, (-1, half)), high.unflatten(1, (-1, half))], 2)
    zeros = torch.stack([matrix.zero & 15, matrix.zero >> 4], 2).flatten(1)
    return blocks.flatten(1)[:, :inputs], zeros[:, : matrix.scale.shape[1]]


def dequantize_int4(matrix: Int4Matrix, inputs: int) -> Tensor:
    """In fp32. Shapes: returns (outputs, inputs)."""
    q, zeros = unpacked_int4(matrix, inputs)
    size = matrix.group_size
    scale = matrix.scale.float().repeat_interleave(size, 1)[:, :inputs]
    return (q.float() - zeros.float().repeat_interleave(size, 1)[:, :inputs]) * scale


def _not_zero(scale: Tensor) -> Tensor:
    """Rows of zeros have scale 0, and any number of their grid stands for 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
