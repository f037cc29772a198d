"""Which layer of a model gets which quantization: the cell's, or what ``quant.layers`` says."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from bench.config.cell import Quant
from bench.engine.transformers.schemes import SCHEMES, layer_quant
from bench.errors import ConfigError


def assigned(model: PreTrainedModel, quant: Quant) -> dict[str, Quant]:
    """By the name of a module what its weights are quantized with; layers that stay as they are by
    a pattern of ``quant.layers`` have the scheme ``none``, all others are not in it.

    Args:
        model: unquantized; its layout is enough.
    Raises:
        ConfigError: for a pattern that fits no layer.
    """
    scheme = SCHEMES[quant.scheme]
    is_quantizing = quant.scheme not in ("none", "checkpoint")
    own = dict.fromkeys(candidates(model, scheme.replaces), quant) if is_quantizing else {}
    unused = set(quant.layers)
    replaceable = own or dict.fromkeys(candidates(model, SCHEMES["none"].replaces))
    for name in replaceable:
        pattern = next((p for p in quant.layers if fits(p, name)), None)
        if pattern is not None:
            own[name] = layer_quant(quant, quant.layers[pattern])
        unused -= {p for p in unused if fits(p, name)}
    if unused:
        example = next(iter(replaceable), "none can be quantized")
        raise ConfigError(
            [
                f"quant.layers.{pattern}: no layer has such a name; they are called like {example}"
                for pattern in sorted(unused)
            ]
        )
    head = scheme.head(quant)
    if head is not None:
        own |= dict.fromkeys(_head_names(model), head)
    return own


def candidates(model: PreTrainedModel, replaces: Any) -> Iterator[str]:
    """Layers that transformers would have a scheme replace: not the head, not tied weights, not
    what the architecture wants in fp32."""
    left_as_is = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    for name, module in model.named_modules():
        if replaces(module) and should_convert_module(name, left_as_is):
            yield name


def _head_names(model: PreTrainedModel) -> Iterator[str]:
    head = model.get_output_embeddings()
    yield from (name for name, module in model.named_modules() if module is head)


def as_regex(pattern: str) -> str:
    """A pattern of layers' names as a regular expression: ``*`` is anything between two dots,
    ``**`` anything, ``{a,b}`` one of them."""
    parts = {"**": ".*", "*": "[^.]*", "{": "(?:", "}": ")", ",": "|"}
    pieces = re.split(r"(\*\*|[*{},])", pattern)
    return "".join(parts.get(piece, re.escape(piece)) for piece in pieces)


def fits(pattern: str, name: str) -> bool:
    """Whether a layer's name is one of those that the pattern means."""
    return re.fullmatch(as_regex(pattern), name) is not None


def swap(model: nn.Module, layers: Mapping[str, Quant], device: torch.device | None = None) -> None:
    """Quantized layers in place of plain ones, on the device, where they are not yet."""
    for name, quant in layers.items():
        scheme = SCHEMES[quant.scheme]
        module = model.get_submodule(name)
        if scheme.layer is not None and scheme.replaces(module):
            layer = scheme.layer(module, quant)
            model.set_submodule(name, layer if device is None else layer.to(device))
