"""``bench::int8_linear`` and ``bench::int4_linear``: products with our own weights, as operators of
torch, so that a profile names them and a compiled graph can hold them.

On a CPU they are the compiled kernels of ``build``, which the first product compiles and registers,
on CUDA those of Triton: who packs weights for a GPU needs no C++ compiler. ``portable_int8`` and
``portable_int4`` say in plain torch what is computed, slowly: tests compare the kernels with them.

With ``int8_activations`` each row of the inputs is quantized in blocks of 64, to absmax / 127 of
the block: the product of the integers is exact, and scaled in fp32. Without, weights are multiplied
in fp32. Shapes everywhere: x (..., inputs), the result (..., outputs), in the dtype of x; the
weights' are in ``grids``.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.engine.transformers.own.build import kernels
from bench.engine.transformers.own.grids import (
    BLOCK_INPUTS,
    Int4Matrix,
    Int8Matrix,
    dequantize_int4,
    dequantize_int8,
    padded,
)

_LIBRARY = torch.library.Library("bench", "DEF")
_LIBRARY.define(
    "int8_linear(Tensor x, Tensor weight, Tensor scale, Tensor? input_scale, Tensor? bias,"
    " bool int8_activations) -> Tensor"
)
_LIBRARY.define(
    "int4_linear(Tensor x, Tensor weight, Tensor scale, Tensor zero, Tensor? input_scale,"
    " Tensor? bias, int group_size, bool int8_activations) -> Tensor"
)


def quantized_activations(x: Tensor) -> Tensor:
    """x as the integer kernels see it, in fp32. Shapes: (rows, inputs) in and out."""
    inputs = x.shape[-1]
    blocks = pad(x.float(), (0, padded(inputs) - inputs)).unflatten(-1, (-1, BLOCK_INPUTS))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    q = (blocks / torch.where(scale == 0, torch.ones_like(scale), scale)).round()
    integers: Tensor = (q * scale).flatten(-2)[..., :inputs]
    return integers


def portable_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    int8_activations: bool,
) -> Tensor:
    """What ``bench::int8_linear`` computes, in plain torch."""
    wide = dequantize_int8(Int8Matrix(weight, scale), x.shape[-1])
    return _portable(x, wide, input_scale, bias, int8_activations)


def portable_int4(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    int8_activations: bool,
) -> Tensor:
    """What ``bench::int4_linear`` computes, in plain torch."""
    wide = dequantize_int4(Int4Matrix(weight, scale, zero, group_size), x.shape[-1])
    return _portable(x, wide, input_scale, bias, int8_activations)


def _portable(
    x: Tensor, wide: Tensor, input_scale: Tensor | None, bias: Tensor | None, is_int8: bool
) -> Tensor:
    scaled = x.float() if input_scale is None else x.float() * input_scale.float()
    inputs = quantized_activations(scaled) if is_int8 else scaled
    product = inputs @ wide.T
    return (product if bias is None else product + bias.float()).to(x.dtype)


def _int8_on_cuda(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    int8_activations: bool,
) -> Tensor:
    from bench.engine.transformers.own.triton_kernels import int8_linear

    return int8_linear(x, weight, scale, input_scale, bias)


def _int4_on_cuda(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    input_scale: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    int8_activations: bool,
) -> Tensor:
    from bench.engine.transformers.own.triton_kernels import int4_linear

    return int4_linear(x, weight, scale, zero, input_scale, bias, group_size)


def _first_on_cpu(name: str, x: Tensor, *rest: object) -> Tensor:
    """Called until the CPU's kernels are loaded, which take its place."""
    if x.device.type != "cpu":
        raise NotImplementedError(f"bench::{name} has no kernels for {x.device}")
    kernels()
    product: Tensor = getattr(torch.ops.bench, name)(x, *rest)
    return product


for _name in ("int8_linear", "int4_linear"):
    _LIBRARY.impl(_name, partial(_first_on_cpu, _name), "CompositeExplicitAutograd")
_LIBRARY.impl("int8_linear", _int8_on_cuda, "CUDA")
_LIBRARY.impl("int4_linear", _int4_on_cuda, "CUDA")


def _shape(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


for _name in ("int8_linear", "int4_linear"):
    torch.library.register_fake(f"bench::{_name}", _shape, lib=_LIBRARY)

int8_linear = torch.ops.bench.int8_linear.default
int4_linear = torch.ops.bench.int4_linear.default
