"""Layers that read the same tensor, as one product.

An attention multiplies the same activations by q, k and v, a gated MLP by gate and up. One product
of all their rows quantizes the activations once, wakes the threads once and is one call instead of
two or three: 0.5 of the 8.9 ms of a decode step of SmolLM2-135M in int4_g64 with an int8 head, 1.4
of 15.9 at batch 8 (least of 20 answers of 16 tokens after 32, alternating; 2 cores of an AMD EPYC
with AVX-512, torch 2.13.0, 2026-11-27). An output is a row of weights times the input, whoever
computes it, so no number changes.

vLLM has such layers written into each architecture (``QKVParallelLinear``). Here a forward pass
shows which layers of one module are called one after another with the very same tensor. Each stays
a layer of its own, whose weights are its rows of all of them; the first one that is called
computes all, the others find their part. A layer that is called with something else computes its
own, so a model that calls its layers in another way next time is slower, and right.
"""

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.engine.transformers.own.layers import OwnLinear

_PROBE_TOKENS = 2
Call = tuple[str, OwnLinear, Tensor]  # of a layer: its parent's name, itself, its input


class Siblings:
    """Layers of one kind with the same input; they hold their weights, as parts of one tensor."""

    def __init__(self, layers: Sequence[OwnLinear]) -> None:
        self.layers = tuple(layers)
        self.whole = type(layers[0]).stacked(layers)
        self.sizes = [layer.out_features for layer in layers]
        self.input: Tensor | None = None  # of the outputs that are still to be fetched
        self.outputs: Sequence[Tensor] = ()
        ends = itertools.accumulate(self.sizes)
        for place, (layer, size, end) in enumerate(zip(layers, self.sizes, ends, strict=True)):
            for name in layer.rows:
                setattr(layer, name, self.whole.get_buffer(name)[end - size : end])
            if self.whole.bias is not None:
                rows = self.whole.bias.detach()[end - size : end]
                layer.bias = nn.Parameter(rows, requires_grad=False)
            layer.siblings, layer.place = self, place

    def output(self, place: int, x: Tensor) -> Tensor:
        """What the layer at this place makes of x. Shapes: as ``OwnLinear.forward``; the outputs of
        several rows are parts of longer ones."""
        if place == 0:
            # Not split, which comes to the same after 1.4 us of Python
            self.input, self.outputs = x, self.whole.product(x).split_with_sizes(self.sizes, -1)
        elif x is not self.input:
            return self.layers[place].product(x)
        output = self.outputs[place]
        if place == len(self.sizes) - 1:
            self.input, self.outputs = None, ()
        return output


def join(model: PreTrainedModel) -> None:
    """Make one product of our layers that read the same tensor, as a forward pass shows them.

    Layers whose inputs are scaled (AWQ) read a tensor of their own each, and stay alone.
    """
    calls: list[Call] = []

    def see(parent: str, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, OwnLinear)
        calls.append((parent, layer, arguments[0]))

    hooks = [
        layer.register_forward_pre_hook(partial(see, name.rpartition(".")[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, OwnLinear)
    ]
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    with torch.inference_mode():
        model(ids, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    times = Counter(id(layer) for _, layer, _ in calls)
    for _, group in itertools.groupby(calls, _shared):
        layers = [layer for _, layer, _ in group]
        if len(layers) > 1 and all(times[id(layer)] == 1 for layer in layers):
            Siblings(layers)


def _shared(call: Call) -> tuple[Any, ...]:
    """What calls of siblings have in common; the tensors are all alive, so each has an id."""
    parent, layer, x = call
    return parent, id(x), layer.kind(), None if layer.input_scale is None else id(layer)


@contextlib.contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Within the block each layer computes its own, so that it can be timed."""
    layers = [module for module in model.modules() if isinstance(module, OwnLinear)]
    siblings = [layer.siblings for layer in layers]
    for layer in layers:
        layer.siblings = None
    try:
        yield
    finally:
        for layer, had in zip(layers, siblings, strict=True):
            layer.siblings = had


def joined(model: nn.Module) -> dict[str, int]:
    """How many products there are of which layers, by the last part of their names."""
    found: defaultdict[Siblings, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, OwnLinear) and module.siblings is not None:
            found[module.siblings].append(name.rpartition(".")[2])
    return dict(Counter("+".join(names) for names in found.values()))
