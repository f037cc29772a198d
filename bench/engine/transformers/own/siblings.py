"""Layers that read the same tensor, as one product.

An attention multiplies the same activations by q, k and v, a gated MLP by gate and up. One product
of all their rows quantizes the activations once, wakes the threads once and is one call instead of
two or three: 0.5 of the 8.9 ms of a decode step of SmolLM2-135M in int4_g64 with an int8 head, 1.4
of 15.9 at batch 8 (least of 20 answers of 16 tokens after 32, alternating; 2 cores of an AMD EPYC
with AVX-512, torch 2.13.0, 2026-11-27). An output is a row of weights times the input, whoever
computes it: on a CPU no number changes, where layers have multiples of 4 outputs, and on a GPU only
the order of sums.

vLLM has such layers written into each architecture (``QKVParallelLinear``). Here a forward pass
shows which layers of one module read the very same tensor. Each stays a layer of its own, whose
weights are its rows of all of them; the first one that is called computes all and puts the outputs
on a shelf, where the others find theirs. A layer that is called with something else computes its
own, so a model that calls its layers in another way next time is slower, and right.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.engine.transformers.own.layers import OwnLinear

_PROBE_TOKENS = 2


class Shelf:
    """Outputs that are still to be fetched: of the whole model at most those of one product.

    One for all, since a compiled step writes back every attribute that its trace has changed.
    """

    def __init__(self) -> None:
        self.owner: Siblings | None = None
        self.input: Tensor | None = None
        self.outputs: Sequence[Tensor] = ()


class Siblings:
    """Layers of one kind with the same input; they hold their weights, as parts of one tensor.

    It does not hold them: a layer goes with the last who uses it.
    """

    def __init__(self, layers: Sequence[OwnLinear], shelf: Shelf) -> None:
        self.whole = type(layers[0]).stacked(layers)
        self.sizes = [layer.out_features for layer in layers]
        self.shelf = shelf
        start = 0
        for place, layer in enumerate(layers):
            layer.join(self, place, start)
            start += layer.out_features

    def output(self, place: int, x: Tensor) -> Tensor | None:
        """What the layer at this place makes of x; None where it has to do so itself.

        Shapes: as ``OwnLinear.forward``; the outputs of several rows are parts of longer ones.
        """
        shelf = self.shelf
        if place == 0:
            # What Tensor.split does, without its 1.4 us of Python
            outputs = self.whole.product(x).split_with_sizes(self.sizes, -1)
            shelf.owner, shelf.input, shelf.outputs = self, x, outputs
            return outputs[0]
        if shelf.owner is not self or shelf.input is not x:
            return None
        output = shelf.outputs[place]
        if place == len(self.sizes) - 1:
            shelf.owner, shelf.input, shelf.outputs = None, None, ()
        return output


def join(model: PreTrainedModel) -> None:
    """Make one product of our layers that read the same tensor, as a forward pass shows them.

    Layers whose inputs are scaled (AWQ) read a tensor of their own each, and stay alone.
    """
    groups: defaultdict[tuple[Any, ...], list[OwnLinear]] = defaultdict(list)
    times: Counter[int] = Counter()
    kept: list[Tensor] = []  # while they are alive no two have one id

    def see(parent: str, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, OwnLinear)
        kept.append(arguments[0])
        times[id(layer)] += 1
        if layer.input_scale is None:
            groups[parent, id(arguments[0]), layer.kind()].append(layer)

    hooks = [
        layer.register_forward_pre_hook(partial(see, name.rpartition(".")[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, OwnLinear)
    ]
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(ids, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    shelf = Shelf()
    for layers in groups.values():
        if len(layers) > 1 and all(times[id(layer)] == 1 for layer in layers):
            Siblings(layers, shelf)


def joined(model: nn.Module) -> dict[str, int]:
    """How many products there are of which layers, by the last part of their names."""
    found: defaultdict[Siblings, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, OwnLinear) and module.siblings is not None:
            found[module.siblings].append(name.rpartition(".")[2])
    return dict(Counter("+".join(names) for names in found.values()))
