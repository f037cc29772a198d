"""What a quantization scheme has to say of itself, and the names of dtypes.

Nothing here imports torch, transformers or a quantization library before one of them is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.config.cell import Quant

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a scheme's weights are asked for, what they take, and how they are recognized afterwards.

    Sizes are functions of (outputs, inputs, quant, device); every ``quant`` is a resolved cell's.
    ``settings`` and ``wanted`` have the same keys: what is in force in one layer, and what should
    be.
    """

    parameters: type  # the frozen dataclass that quant.parameters become
    package: str | None  # import name of what it needs besides torch and transformers
    layer_class: str  # of its layers once they are quantized
    configuration: Callable[[Quant], Any]  # that from_pretrained takes; None for plain weights
    executed_dtype: Callable[[Quant], str]  # of its products: fp32, fp16, bf16, int8
    matrix_bytes: Callable[[int, int, Quant, str], int]  # stored, with the state beside it
    workspace_bytes: Callable[[int, int, Quant, str], int]  # while a product is made
    state: Callable[[Any], "list[torch.Tensor]"]  # that a layer keeps beside its weights
    settings: Callable[[Any], dict[str, Any]]
    wanted: Callable[[Quant], dict[str, Any]]
    product_bytes: int = 0  # beside each number of a product's result, while it is made


def torch_dtype(name: str) -> "torch.dtype":
    """The dtype of that name; imports torch."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """``bf16`` for ``torch.bfloat16``; torch's own name for a dtype that no cell can ask for."""
    of_torch = str(dtype).removeprefix("torch.")
    return next((name for name, torchs in _TORCH_NAMES.items() if torchs == of_torch), of_torch)
