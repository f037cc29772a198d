"""Products with int8 and 4-bit weights on NVIDIA GPUs, in Triton. Layout and grids: grids.py beside
this file. Only what runs on CUDA imports it: torch for a CPU comes without Triton.

Two kernels, each for both widths. One row of inputs (a decode step at batch 1) reads every weight
once and multiplies in fp32, whatever the dtype of the inputs: what bounds it is memory. More rows
are a product on the tensor cores, transposed: outputs are the side of 16 or 64 that an instruction
wants at least, rows the side of which 8 are enough. Integers and their differences from the zero
point are exact in 16 bits; scales are applied to sums in fp32. No weight is rounded.

A product with few programs for the GPU is split along its inputs: each split writes its sums in
fp32, and a third kernel adds these up, always in the same order. Tiles come from a table: nothing
is tuned at run time.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = tl.constexpr(64)  # inputs whose 4-bit numbers are interleaved: grids.BLOCK_INPUTS
_HALF = tl.constexpr(32)  # low nibbles hold this many inputs of a block, high ones the next
_SPLIT_STEPS = 8  # at least so many in a split: a second kernel has to be worth its launch
_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: so many outputs of so many rows, in so many blocks of inputs at a
    time, by so many warps that load so many steps ahead."""

    outputs: int
    rows: int
    blocks: int
    warps: int
    stages: int


# By compute capability; a chip between takes the one below. None stores registers in its loop; of
# groups of 32 a few read one again there. All fit the shared memory of their chip: 99 KiB a program
# on 89 and 120.
_FEW = (Tile(8, 1, 8, 2, 3), Tile(32, 8, 2, 4, 4), Tile(32, 16, 2, 4, 4), Tile(32, 32, 2, 4, 4))
_MANY = (*_FEW, Tile(64, 64, 2, 8, 3), Tile(128, 64, 2, 8, 3))
TILES: dict[int, tuple[Tile, ...]] = {
    80: _MANY,
    89: _MANY,
    90: (*_FEW, Tile(64, 64, 2, 4, 3), Tile(128, 128, 2, 8, 3)),
    120: _MANY,
}


def int4_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    """``(x * input_scale) @ w.T + bias``, w of 4 bits, in the dtype of x.

    Shapes: x (..., inputs) fp32, fp16 or bf16; weight (outputs, padded inputs / 2) uint8; scale
    (outputs, groups) fp16; zero (outputs, ceil(groups / 2)) uint8; input_scale (inputs,); bias
    (outputs,); returns (..., outputs). All on one device, which is the current one.
    """
    # What is one group in a row has one scale, applied at the end
    group = 0 if scale.shape[1] == 1 else group_size
    return _linear(x, weight, scale, zero, input_scale, bias, group, 4)


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, input_scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``(x * input_scale) @ w.T + bias``, w of 8 bits, in the dtype of x.

    Shapes: as ``int4_linear``'s, but weight (outputs, padded inputs) int8; scale (outputs,) fp32.
    """
    return _linear(x, weight, scale, None, input_scale, bias, 0, 8)


def tiles_of(capability: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """A chip's, 90 for compute capability 9.0. Fp32 has small ones alone: no tensor core multiplies
    it, and it takes twice the room."""
    chip = max((known for known in TILES if known <= capability), default=min(TILES))
    return _FEW if dtype == torch.float32 else TILES[chip]


def tile_of(rows: int, tiles: tuple[Tile, ...]) -> Tile:
    """The first that holds so many rows, or the last."""
    return next((tile for tile in tiles if rows <= tile.rows), tiles[-1])


def splits_of(programs: int, steps: int, processors: int) -> int:
    """Into how many parts the inputs are split so that each processor has four programs; 1 where
    there are enough of them, or too few inputs."""
    return max(1, min(4 * processors // programs, steps // _SPLIT_STEPS))


def _linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    input_scale: Tensor | None,
    bias: Tensor | None,
    group: int,
    bits: int,
) -> Tensor:
    outputs, inputs = weight.shape[0], x.shape[-1]
    flat = x.reshape(-1, inputs).contiguous()
    rows = flat.shape[0]
    capability, processors = _chip(x.device)
    tile = tile_of(rows, tiles_of(capability, x.dtype))
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
    kept = constants(x.dtype, group, bits, tile)
    blocks = triton.cdiv(inputs, _BLOCK.value)
    steps = triton.cdiv(blocks, kept["BLOCKS"])
    splits = splits_of(programs, steps, processors)
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    sums = y if splits == 1 else y.new_empty(splits, rows, outputs, dtype=torch.float32)
    operands = (flat, weight, scale, zero, input_scale, bias if splits == 1 else None, sums)
    sizes = (outputs, inputs, blocks, triton.cdiv(steps, splits) * kept["BLOCKS"])
    if tile.rows == 1:
        matvec[programs, splits](*operands, *sizes, **kept)
    else:
        matmul[programs, splits](*operands, rows, *sizes, **kept)
    if splits > 1:
        _add_up[triton.cdiv(rows * outputs, 1024),](
            sums, bias, y, rows * outputs, outputs, splits, 1024
        )
    return y.view(*x.shape[:-1], outputs)


def constants(dtype: torch.dtype, group: int, bits: int, tile: Tile) -> dict[str, Any]:
    """What a kernel is compiled for. ``group``: 0 for one scale a row."""
    # A step ends with a group, so that one scale is right for all its sums
    blocks = max(1, group // _BLOCK.value) if group and tile.rows > 1 else tile.blocks
    # The interpreter keeps bf16 as raw words, with which it would calculate
    is_raw = triton.knobs.runtime.interpret and dtype == torch.bfloat16
    dot = tl.float32 if is_raw else _DTYPES[dtype]
    names = {"BITS": bits, "GROUP": group, "OUTPUTS": tile.outputs, "BLOCKS": blocks}
    if tile.rows > 1:
        names |= {"ROWS": tile.rows, "DOT": dot}
    settings = {"STAGES": tile.stages, "num_stages": tile.stages, "num_warps": tile.warps}
    return names | settings | {"enable_fp_fusion": True}


@functools.cache
def _chip(device: torch.device) -> tuple[int, int]:
    """Compute capability and number of multiprocessors; of an H100 where Triton interprets."""
    if device.type == "cpu":
        return 90, 132
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


@triton.jit
def _inputs(line, input_scale, inputs, k, mask):
    """Inputs of rows that begin at ``line``, in fp32 and multiplied by their scale."""
    mask = mask & (k < inputs)
    value = tl.load(line + k, mask=mask, other=0).to(tl.float32)
    if input_scale is not None:
        value *= tl.load(input_scale + k, mask=mask, other=0).to(tl.float32)
    return value


@triton.jit
def _int4_grid(scale, zero, n, group, groups):
    """Scales and zero points of outputs in groups; scale 0 beyond the last group."""
    mask = group < groups
    factor = tl.load(scale + n * groups + group, mask=mask, other=0).to(tl.float32)
    pair = tl.load(zero + n * ((groups + 1) // 2) + group // 2, mask=mask, other=0)
    return factor, (pair >> (group % 2 * 4)).to(tl.int32) & 15


@triton.jit
def _exact(q, zero, DTYPE: tl.constexpr):
    """``q - zero`` of small integers, exact in DTYPE and without a conversion, which is slow: the
    bits of q are the last ones of 2**23 + q in fp32, of 1024 + q in fp16, of 128 + q in bf16."""
    if DTYPE == tl.float32:
        wide = (q.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True)
        return wide - (zero | 0x4B000000).to(tl.float32, bitcast=True)
    elif DTYPE == tl.float16:
        return (q.to(tl.int16) | 0x6400).to(DTYPE, bitcast=True) - (zero + 1024).to(DTYPE)
    else:
        return (q.to(tl.int16) | 0x4300).to(DTYPE, bitcast=True) - (zero + 128).to(DTYPE)


@triton.jit
def _nibble(word, zero, value, SHIFT: tl.constexpr):
    """Four bits of words less their zero points, times ``value``. They stay where they are, SHIFT
    from the right, and the value is divided instead, which is exact."""
    return _exact(word & (15 << SHIFT), zero << SHIFT, tl.float32) * (value * (1 / (1 << SHIFT)))


@triton.jit
def matvec(
    x,
    weight,
    scale,
    zero,
    input_scale,
    bias,
    out,
    outputs,
    inputs,
    blocks,
    split_blocks,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One row of inputs. Axes: outputs, blocks, words of a block."""
    split = tl.program_id(1)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = n < outputs
    n = tl.where(inside, n, 0).to(tl.int64)
    line = n[:, None, None]
    last = tl.minimum((split + 1) * split_blocks, blocks)
    groups = 1 if GROUP == 0 else tl.cdiv(inputs, GROUP)
    if BITS == 4 and GROUP == 0:
        _, z = _int4_grid(scale, zero, line, line * 0, groups)
    word = tl.arange(0, BITS * 2)[None, None, :]
    words = weight.to(tl.pointer_type(tl.int32), bitcast=True) + line * (blocks * (BITS * 2)) + word
    total = tl.zeros((OUTPUTS, BLOCKS, BITS * 2), tl.float32)
    for first in tl.range(split * split_blocks, last, BLOCKS, num_stages=STAGES):
        block = tl.arange(0, BLOCKS)[None, :, None] + first
        here = block < last
        k = block * _BLOCK + word * 4
        q = tl.load(words + block * (BITS * 2), mask=here, other=0)
        if BITS == 8:
            for byte in tl.static_range(4):
                value = _inputs(x, input_scale, inputs, k + byte, here)
                total += (q << 24 - 8 * byte >> 24).to(tl.float32) * value
        else:
            for half in tl.static_range(2):
                if GROUP == 32 or (GROUP != 0 and half == 0):
                    group = block * 2 + half if GROUP == 32 else block // (GROUP // _BLOCK)
                    s, z = _int4_grid(scale, zero, line, group, groups)
                part = tl.zeros((OUTPUTS, BLOCKS, BITS * 2), tl.float32)
                for byte in tl.static_range(4):
                    value = _inputs(x, input_scale, inputs, k + byte + half * _HALF, here)
                    part += _nibble(q >> byte // 2 * 16, z, value, byte % 2 * 8 + half * 4)
                total += part if GROUP == 0 else s * part
    y = tl.sum(tl.sum(total, 2), 1)
    if GROUP == 0:
        y *= tl.load(scale + n).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + n).to(tl.float32)
    tl.store(out + split * outputs + n, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def matmul(
    x,
    weight,
    scale,
    zero,
    input_scale,
    bias,
    out,
    rows,
    outputs,
    inputs,
    blocks,
    split_blocks,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    ROWS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Axes: outputs, inputs of a step, rows."""
    row_tiles, split = tl.cdiv(rows, ROWS), tl.program_id(1)
    n = tl.program_id(0) // row_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    m = (tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS))[None, :]
    inside = (n < outputs)[:, None] & (m < rows)
    n = tl.where(n < outputs, n, 0).to(tl.int64)
    m = tl.where(m < rows, m, 0).to(tl.int64)
    x += m * inputs
    last = tl.minimum((split + 1) * split_blocks, blocks)
    groups = 1 if GROUP == 0 else tl.cdiv(inputs, GROUP)
    if BITS == 4 and GROUP == 0:
        _, z = _int4_grid(scale, zero, n, n * 0, groups)
    at = tl.arange(0, BITS * 8 * BLOCKS)  # a byte of a step, and its input or the lower one
    column = at if BITS == 8 else at // _HALF * _BLOCK + at % _HALF
    line = weight + n[:, None] * (blocks * (BITS * 8)) + at[None, :]
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for block in tl.range(split * split_blocks, last, BLOCKS, num_stages=STAGES):
        here = at < (last - block) * (BITS * 8)
        q = tl.load(line + block * (BITS * 8), mask=here[None, :], other=0)
        k = (column + block * _BLOCK)[:, None]
        if BITS == 8:
            value = _inputs(x, input_scale, inputs, k, here[:, None]).to(DOT)
            total = tl.dot(q.to(DOT), value, total, input_precision="ieee")
        else:
            part = total if GROUP == 0 else tl.zeros((OUTPUTS, ROWS), tl.float32)
            for half in tl.static_range(2):
                if GROUP == 32 or (GROUP != 0 and half == 0):
                    group = block * 2 + half if GROUP == 32 else block // (GROUP // _BLOCK)
                    s, z = _int4_grid(scale, zero, n, n * 0 + group, groups)
                low = _exact(q >> half * 4 & 15, z[:, None], DOT)
                value = _inputs(x, input_scale, inputs, k + half * _HALF, here[:, None]).to(DOT)
                if GROUP == 32:
                    total += s[:, None] * tl.dot(low, value, input_precision="ieee")
                else:
                    part = tl.dot(low, value, part, input_precision="ieee")
            if GROUP == 0:
                total = part
            elif GROUP != 32:
                total += s[:, None] * part
    if GROUP == 0:
        total *= tl.load(scale + n).to(tl.float32)[:, None]
    if bias is not None:
        total += tl.load(bias + n).to(tl.float32)[:, None]
    place = out + (split * rows + m) * outputs + n[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_up(sums, bias, out, count, outputs, splits, SIZE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for split in range(splits):
        total += tl.load(sums + split * count + i, mask=i < count, other=0)
    if bias is not None:
        total += tl.load(bias + i % outputs, mask=i < count, other=0).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < count)
