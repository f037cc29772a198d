"""Products with int8 and 4-bit weights in plain torch, as the layout of ``own.grids`` is described,
and how far Triton's kernels are from them.

``python -m tests.engine.own_products`` reads products from its input and writes their errors, with
``TRITON_INTERPRET=1`` on a CPU: what the kernels are is decided when they are imported.
"""

import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bench.engine.transformers.schemes import torch_dtype

# Of the largest number of a result. fp32: sums of up to 16,384 inputs in another order (an H200 is
# off by 2e-6 at 2,048; TF32 would be by 3e-4). Else a result rounded once, and on tensor cores
# inputs that were multiplied by their scale rounded too.
MOST = {"fp32": 8e-6, "fp16": 1e-3, "bf16": 8e-3}


@dataclass(frozen=True, slots=True)
class Product:
    """``group_size``: 0 for one group in a row, None for int8."""

    rows: int
    outputs: int
    inputs: int
    group_size: int | None
    dtype: str
    input_scale: bool = False
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Operands:
    x: Tensor
    weight: Tensor
    scale: Tensor
    zero: Tensor | None
    input_scale: Tensor | None
    bias: Tensor | None
    group_size: int

    def on(self, device: str) -> "Operands":
        fields = {name: getattr(self, name) for name in self.__slots__}
        return Operands(
            **{
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in fields.items()
            }
        )


def operands(product: Product) -> Operands:
    """Random numbers, also where the last block of inputs is padding."""
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = product.outputs, product.inputs
    padded = -(inputs // -64) * 64
    size = product.group_size or padded
    groups = -(inputs // -size)

    def numbers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    def near_one(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) + 0.5

    dtype = torch_dtype(product.dtype)
    is_int8 = product.group_size is None
    return Operands(
        x=torch.randn(product.rows, inputs, generator=generator).to(dtype),
        weight=numbers(-127, 128, outputs, padded).to(torch.int8)
        if is_int8
        else numbers(0, 256, outputs, padded // 2).to(torch.uint8),
        scale=near_one(outputs) / 1000 if is_int8 else (near_one(outputs, groups) / 100).half(),
        zero=None if is_int8 else numbers(0, 256, outputs, -(groups // -2)).to(torch.uint8),
        input_scale=near_one(inputs).half() if product.input_scale else None,
        bias=torch.randn(outputs, generator=generator).to(dtype) if product.bias else None,
        group_size=size,
    )


def weights(given: Operands) -> Tensor:
    """Each weight looked up by itself. Shapes: returns (outputs, inputs) fp32."""
    k = torch.arange(given.x.shape[-1], device=given.x.device)
    if given.zero is None:
        return given.weight[:, k].float() * given.scale[:, None]
    byte = given.weight[:, k // 64 * 32 + k % 32].int()
    q = torch.where(k % 64 < 32, byte & 15, byte >> 4)
    group = k // given.group_size
    zero = given.zero[:, group // 2].int() >> 4 * (group % 2) & 15
    return (q - zero).float() * given.scale[:, group].float()


def expected(given: Operands) -> Tensor:
    """In fp64."""
    x = given.x.double() if given.input_scale is None else given.x.double() * given.input_scale
    bias = None if given.bias is None else given.bias.double()
    return torch.nn.functional.linear(x, weights(given).double(), bias)


def found(given: Operands) -> Tensor:
    from bench.engine.transformers.own.triton_kernels import int4_linear, int8_linear

    x, weight, scale, more = given.x, given.weight, given.scale, (given.input_scale, given.bias)
    if given.zero is None:
        return int8_linear(x, weight, scale, *more)
    return int4_linear(x, weight, scale, given.zero, *more, given.group_size)


def error(product: Product, device: str = "cpu") -> float:
    """The largest difference, of the largest number."""
    given = operands(product).on(device)
    y, right = found(given), expected(given)
    assert y.dtype == given.x.dtype
    assert y.shape == right.shape
    return float((y - right).abs().max() / right.abs().max())


def as_json(products: list[Product]) -> str:
    return json.dumps([asdict(product) for product in products])


if __name__ == "__main__":
    json.dump([error(Product(**each)) for each in json.load(sys.stdin)], sys.stdout)
