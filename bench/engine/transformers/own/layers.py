"""Linear layers with weights of our own; what they compute is in ``ops``, how they lie in
``grids``."""

from typing import Any

from torch import Tensor, nn

from bench.engine.transformers.own import ops
from bench.engine.transformers.own.build import kernels
from bench.engine.transformers.own.grids import Int4Matrix, Int8Matrix


class Int8Linear(nn.Module):
    """A linear layer with a byte a weight."""

    def __init__(
        self,
        matrix: Int8Matrix,
        inputs: int,
        bias: Tensor | None,
        int8_activations: bool,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        _ready(matrix.weight)
        self.in_features, self.out_features = inputs, matrix.weight.shape[0]
        self.int8_activations = int8_activations
        self.register_buffer("weight", matrix.weight)
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("input_scale", input_scale)
        self.register_parameter("bias", _kept(bias))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., inputs); returns (..., outputs)."""
        kept, bias = self._buffers, self._parameters["bias"]  # quicker than by their names
        product: Tensor = ops.int8_linear(
            x, kept["weight"], kept["scale"], kept["input_scale"], bias, self.int8_activations
        )
        return product

    def matrix(self) -> Int8Matrix:
        return Int8Matrix(_tensor(self.weight), _tensor(self.scale))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8 activations: {self.int8_activations}"


class Int4Linear(nn.Module):
    """A linear layer with 4 bits a weight."""

    def __init__(
        self,
        matrix: Int4Matrix,
        inputs: int,
        bias: Tensor | None,
        int8_activations: bool,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        _ready(matrix.weight)
        self.in_features, self.out_features = inputs, matrix.weight.shape[0]
        self.group_size, self.int8_activations = matrix.group_size, int8_activations
        self.register_buffer("weight", matrix.weight)
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("zero", matrix.zero)
        self.register_buffer("input_scale", input_scale)
        self.register_parameter("bias", _kept(bias))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (..., inputs); returns (..., outputs)."""
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

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, group_size={self.group_size}, int8"
            f" activations: {self.int8_activations}"
        )


def _ready(weight: Tensor) -> None:
    """On a CPU the operators are there once their kernels have been loaded."""
    if weight.device.type == "cpu":
        kernels()


def _tensor(buffer: Any) -> Tensor:
    """What torch's types take for a tensor or a module."""
    tensor: Tensor = buffer
    return tensor


def _kept(bias: Tensor | None) -> nn.Parameter | None:
    """In the dtype of what is not quantized, whatever that becomes."""
    return None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
