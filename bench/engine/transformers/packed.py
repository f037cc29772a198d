"""Packed weights in memory, whoever packed them: where they lie, and in which dtype they multiply.

A quantized layer may be a class of its own (bitsandbytes, gptq), or torch's Linear whose weight is
a tensor subclass (torchao), with the numbers in tensors inside it. What all have in common is a
stored matrix whose elements are integers or have 8 bits. Libraries unpack such matrices without
saying so, at the load (fp8 without a kernel) or at the first forward (compressed-tensors): then
none is left.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import Conv1D, PreTrainedModel

from bench.config.cell import Cell
from bench.engine.transformers.schemes import checkpoint, dtype_name

_INDICES = (torch.bool, torch.int64)  # masks, positions, shapes
# Operators that multiply matrices: aten::mm, aten::_int_mm, aten::_weight_int8pack_mm, gemm_4bit
_PRODUCT = re.compile(r"(?<![a-z])(mm|addmm|gemm)(?![a-z])|int8_linear_matmul")
_NAMES = {  # as the profiler calls them
    "float": "fp32",
    "c10::Half": "fp16",
    "c10::BFloat16": "bf16",
    "c10::Float8_e4m3fn": "fp8",
    "signed char": "int8",
    "unsigned char": "int8",
}


def tensors_within(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that hold a tensor's numbers: itself, or those inside a subclass."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from tensors_within(getattr(tensor, name))


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """What a module itself stores, without its children."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return [inner for tensor in own for inner in tensors_within(tensor)]


def is_packed(module: nn.Module) -> bool:
    """Whether the module stores a matrix that is no matrix of ordinary floating point numbers."""
    return any(
        tensor.dim() > 1 and tensor.dtype not in _INDICES and not _is_ordinary(tensor.dtype)
        for tensor in own_tensors(module)
    )


def _is_ordinary(dtype: torch.dtype) -> bool:
    return dtype.is_complex or (dtype.is_floating_point and dtype.itemsize > 1)


def matrices(model: PreTrainedModel) -> list[Any]:
    """The layers that multiply by a matrix, packed or not."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) or is_packed(m)]


def ordinary_dtypes(model: PreTrainedModel) -> set[torch.dtype]:
    """Of what is not packed, but for what transformers itself wants in fp32."""
    fp32 = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    precise = [re.compile(rf"(^|\.){part}(\.|$)") for part in fp32]
    return {
        parameter.dtype
        for place, module in model.named_modules()
        if not is_packed(module)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point()
        and not any(pattern.search(f"{place}.{name}") for pattern in precise)
    }


def saved_quantization(cell: Cell, model: PreTrainedModel) -> dict[str, Any]:
    """What the folder of a checkpoint says of itself; nothing for other cells."""
    if cell.quant.scheme != "checkpoint":
        return {}
    folder = Path(model.name_or_path)
    own = dict(checkpoint.quantization(folder) or {})
    return {"quantized_by": checkpoint.method(folder), "quantization": own}


def unpacked(cell: Cell, model: PreTrainedModel) -> Iterator[str]:
    """Why the loaded folder is not what it says: its weights are not packed any more, or the rest
    is in another dtype than the cell's."""
    names = ", ".join(sorted(dtype_name(dtype) for dtype in ordinary_dtypes(model)))
    layers = matrices(model)
    if not any(map(is_packed, layers)):
        by = checkpoint.method(Path(model.name_or_path))
        yield (
            f"transformers has dequantized the {by} weights: no kernel for them runs here, all"
            f" {len(layers)} layers are plain {names}"
        )
    elif cell.quant.dtype not in ("saved", names):
        yield f"unquantized weights are {names}, want {cell.quant.dtype}"


def kind(module: nn.Module) -> str:
    """The class of a layer, and that of its weight where it is a subclass of a tensor."""
    name, weight = type(module).__name__, getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and is_traceable_wrapper_subclass(weight):
        return f"{name} of {type(weight).__name__}"
    return name


def plain_layout(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture unquantized, laid out without storage."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return type(model)(config)


def logical_weights(plain: PreTrainedModel) -> tuple[int, int]:
    """Numbers in all parameters of an unquantized layout, and of these in matrix products other
    than the head's."""
    head = plain.get_output_embeddings()
    linear = [m for m in plain.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    everything = sum(parameter.numel() for parameter in plain.parameters())
    return everything, sum(module.weight.numel() for module in linear)


def product_dtypes(events: Iterable[Any]) -> Counter[str]:
    """How many matrix products ran in which dtype, by the profiler's record of one request.

    It is the first factor's, but int8 only where both are bytes (with VNNI torch's first factor is
    unsigned). An operator that is made of others counts beside them: bitsandbytes' for int8
    multiplies two times in int8 and, on a CPU, once in fp32.

    Args:
        events: of a profile with shapes.
    """
    found: Counter[str] = Counter()
    for event in events:
        if _PRODUCT.search(event.name()):
            first, second = (*event.dtypes(), "", "")[:2]
            if first in _NAMES and ("char" not in first or second == "signed char"):
                found[_NAMES[first]] += 1
    return found
