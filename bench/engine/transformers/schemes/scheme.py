"""What a quantization scheme has to say of itself, and the names of dtypes.

Nothing here imports torch, transformers or a quantization library before one of them is needed.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.config.cell import Quant, Requires

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class NoParameters:
    """Of a scheme that has none."""


@dataclass(frozen=True, slots=True, repr=False)
class Configuration:
    """What ``from_pretrained`` takes to quantize: a class, the module that has it, and its
    arguments: plain values, and objects like this one."""

    name: str
    arguments: Mapping[str, Any]
    module: str = "transformers"

    def __repr__(self) -> str:
        """As one would write it."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({given})"

    def parts(self) -> Iterator["Configuration"]:
        """It, and those among its arguments."""
        yield self
        for value in self.arguments.values():
            if isinstance(value, Configuration):
                yield from value.parts()

    def made(self) -> Any:
        """The object; imports its module."""
        given = {
            name: value.made() if isinstance(value, Configuration) else value
            for name, value in self.arguments.items()
        }
        return getattr(importlib.import_module(self.module), self.name)(**given)


def _is_plain_linear(layer: Any) -> bool:
    """As transformers' replace_with_bnb_linear: no subclass of a linear layer is replaced."""
    from torch import nn
    from transformers import Conv1D

    return isinstance(layer, Conv1D) or type(layer) is nn.Linear


def rows_of(layer: Any) -> "torch.Tensor":
    """A linear layer's weight (outputs, inputs), without a gradient. GPT-2's Conv1D keeps it the
    other way round."""
    from transformers import Conv1D

    weight: torch.Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def _unquantized_bytes(outputs: int, inputs: int, quant: Quant, device: str) -> int:
    return outputs * inputs * DTYPE_BYTES[quant.dtype]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a scheme's weights are asked for, what they take, and how they are recognized afterwards.

    Sizes are functions of (outputs, inputs, quant, device); every ``quant`` is a resolved cell's.
    ``settings`` is what is in force in one layer, ``wanted`` what should be, of the same keys or
    fewer. What is left out is as in plain weights.
    """

    parameters: type = NoParameters  # the frozen dataclass that quant.parameters become
    package: str | None = None  # import name of what it needs besides torch and transformers
    layer_classes: tuple[str, ...] = ("Linear",)  # of quantized layers, as ``packed.kind`` has it
    replaces: Callable[[Any], bool] = _is_plain_linear  # layers of an unquantized model
    # By the cell's device
    configuration: Callable[[Quant, str], Configuration | None] = lambda quant, device: None
    # Of its products: fp32, fp16, bf16, int8
    executed_dtype: Callable[[Quant], str] = lambda quant: quant.dtype
    # Stored, with the state beside it
    matrix_bytes: Callable[[int, int, Quant, str], int] = _unquantized_bytes
    # While a product is made
    workspace_bytes: Callable[[int, int, Quant, str], int] = lambda *_: 0
    # Why a matrix cannot be held on this machine; None: it can
    obstacle: Callable[[int, int, Quant, str], str | None] = lambda *_: None
    # That a layer keeps beside its weights
    state: Callable[[Any], "list[torch.Tensor]"] = lambda layer: []
    settings: Callable[[Any], dict[str, Any]] = lambda layer: {}
    wanted: Callable[[Quant], dict[str, Any]] = lambda quant: {}
    product_bytes: int = 0  # beside each number of a product's result, while it is made
    on_cuda: Requires = field(default=Requires())  # what a GPU has to have, and not a CPU
    # Why this machine cannot run it at all, as a phrase that follows "needs"; by the cell's device
    needs: Callable[[Quant, str], str | None] = lambda quant, device: None
    # A quantized layer in place of a plain linear one, by the layer's quantization; None: only
    # transformers can make them, of a whole model
    layer: "Callable[[nn.Module, Quant], nn.Module] | None" = None
    # What the head of a model is quantized with, besides its layers; None: it stays as it is
    head: Callable[[Quant], Quant | None] = lambda quant: None
    is_own: bool = False  # of this project: packed before the load, from unquantized weights


def torch_dtype(name: str) -> "torch.dtype":
    """The dtype of that name; imports torch."""
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """``bf16`` for ``torch.bfloat16``; torch's own name for a dtype that no cell can ask for."""
    of_torch = str(dtype).removeprefix("torch.")
    return next((name for name, torchs in TORCH_NAMES.items() if torchs == of_torch), of_torch)
