"""Which layer of a model gets which quantization: the cell's, or what ``quant.layers`` says."""

import difflib
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
    problems = unknown_layers(model, quant)
    if problems:
        raise ConfigError(problems)
    scheme = SCHEMES[quant.scheme]
    own = dict.fromkeys(_own_layers(model, quant), quant)
    for name in _replaceable(model, quant):
        pattern = next((p for p in quant.layers if fits(p, name)), None)
        if pattern is not None:
            own[name] = layer_quant(quant, quant.layers[pattern])
    head = scheme.head(quant)
    if head is not None:
        own |= dict.fromkeys(_head_names(model), head)
    return own


def unknown_layers(model: PreTrainedModel, quant: Quant) -> list[str]:
    """A sentence for each pattern of ``quant.layers`` that fits no layer, with the nearest name."""
    names = _replaceable(model, quant)
    unused = [p for p in quant.layers if not any(fits(p, name) for name in names)]
    kinds = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
    problems = []
    for pattern in unused:
        nearest = difflib.get_close_matches(pattern, kinds, 1, cutoff=0.0)
        better = f"the nearest is {nearest[0]}" if nearest else "none can be quantized"
        problems.append(f"quant.layers.{pattern}: no layer has such a name; {better}")
    return problems


def _own_layers(model: PreTrainedModel, quant: Quant) -> list[str]:
    """Layers that the scheme replaces."""
    if quant.scheme in ("none", "checkpoint"):
        return []
    return list(candidates(model, SCHEMES[quant.scheme].replaces))


def _replaceable(model: PreTrainedModel, quant: Quant) -> list[str]:
    """These, or where there are none what other schemes would replace."""
    return _own_layers(model, quant) or list(candidates(model, SCHEMES["none"].replaces))


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
