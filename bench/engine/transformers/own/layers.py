"""Linear layers with weights of our own; what they compute is in ``ops``, how they lie in
``grids``, and why some are one product in ``siblings``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from bench.engine.transformers.own import ops
from bench.engine.transformers.own.grids import Int4Matrix, Int8Matrix

if TYPE_CHECKING:
    from bench.engine.transformers.own.siblings import Siblings


class OwnLinear(nn.Module):
    """What both kinds have in common. Buffers but for the input scale have a row an output."""

    bias: nn.Parameter | None

    def __init__(
        self,
        rows: dict[str, Tensor],
        inputs: int,
        bias: Tensor | None,
        int8_activations: bool,
        input_scale: Tensor | None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, rows["weight"].shape[0]
        self.int8_activations = int8_activations
        self.rows = tuple(rows)
        for name, tensor in rows.items():
            self.register_buffer(name, tensor)
        self.register_buffer("input_scale", input_scale)
        self.register_parameter("bias", _kept(bias))
        self.siblings: Siblings | None = None
        self.place = 0  # among them

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., inputs); returns (..., outputs)."""
        if self.siblings is None:
            return self.product(x)
        output = self.siblings.output(self.place, x)
        return self.product(x) if output is None else output

    def join(self, siblings: "Siblings", place: int, start: int) -> None:
        """Take part in their product, whose rows from ``start`` on are this layer's."""
        end = start + self.out_features
        for name in self.rows:
            setattr(self, name, siblings.whole.get_buffer(name)[start:end])
        self.bias = None if siblings.whole.bias is None else _kept(siblings.whole.bias[start:end])
        self.siblings, self.place = siblings, place

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        """To another device or dtype each layer goes by itself."""
        self.siblings = None
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        return self

    def product(self, x: Tensor) -> Tensor:
        """The same of this layer alone."""
        raise NotImplementedError

    def kind(self) -> tuple[Any, ...]:
        """Layers with the same kind and the same input can be one product."""
        bias = None if self.bias is None else self.bias.dtype
        return type(self), self.in_features, self.int8_activations, bias

    @classmethod
    def stacked(cls, layers: Sequence[Self]) -> Self:
        """One layer with the outputs of several of the same kind, in their order."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8 activations: {self.int8_activations}"


class Int8Linear(OwnLinear):
    """A linear layer with a byte a weight."""

    def __init__(
        self,
        matrix: Int8Matrix,
        inputs: int,
        bias: Tensor | None,
        int8_activations: bool,
        input_scale: Tensor | None = None,
    ) -> None:
        rows = {"weight": matrix.weight, "scale": matrix.scale}
        super().__init__(rows, inputs, bias, int8_activations, input_scale)

    def product(self, x: Tensor) -> Tensor:
        kept, bias = self._buffers, self._parameters["bias"]  # quicker than by their names
        product: Tensor = ops.int8_linear(
            x, kept["weight"], kept["scale"], kept["input_scale"], bias, self.int8_activations
        )
        return product

    def matrix(self) -> Int8Matrix:
        return Int8Matrix(_tensor(self.weight), _tensor(self.scale))

    @classmethod
    def stacked(cls, layers: Sequence[Self]) -> Self:
        first, rows = layers[0], _stacked_rows(layers)
        bias = _stacked_bias(layers)
        return cls(Int8Matrix(**rows), first.in_features, bias, first.int8_activations)


class Int4Linear(OwnLinear):
    """A linear layer with 4 bits a weight."""

    def __init__(
        self,
        matrix: Int4Matrix,
        inputs: int,
        bias: Tensor | None,
        int8_activations: bool,
        input_scale: Tensor | None = None,
    ) -> None:
        rows = {"weight": matrix.weight, "scale": matrix.scale, "zero": matrix.zero}
        super().__init__(rows, inputs, bias, int8_activations, input_scale)
        self.group_size = matrix.group_size

    def product(self, x: Tensor) -> Tensor:
        kept, bias = self._buffers, self._parameters["bias"]  # as above
        product: Tensor = ops.int4_linear(
            x,
            kept["weight"],
            kept["scale"],
            kept["zero"],
            kept["input_scale"],
            bias,
            self.group_size,
            self.int8_activations,
        )
        return product

    def matrix(self) -> Int4Matrix:
        stored = (_tensor(self.weight), _tensor(self.scale), _tensor(self.zero))
        return Int4Matrix(*stored, self.group_size)

    def kind(self) -> tuple[Any, ...]:
        return *super().kind(), self.group_size

    @classmethod
    def stacked(cls, layers: Sequence[Self]) -> Self:
        first, rows = layers[0], _stacked_rows(layers)
        matrix = Int4Matrix(**rows, group_size=first.group_size)
        return cls(matrix, first.in_features, _stacked_bias(layers), first.int8_activations)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}"


def _stacked_rows(layers: Sequence[OwnLinear]) -> dict[str, Tensor]:
    names = layers[0].rows
    return {name: torch.cat([layer.get_buffer(name) for layer in layers]) for name in names}


def _stacked_bias(layers: Sequence[OwnLinear]) -> Tensor | None:
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return torch.cat(biases) if biases else None


def _tensor(buffer: Any) -> Tensor:
    """What torch's types take for a tensor or a module."""
    tensor: Tensor = buffer
    return tensor


def _kept(bias: Tensor | None) -> nn.Parameter | None:
    """In the dtype of what is not quantized, whatever that becomes."""
    return None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
