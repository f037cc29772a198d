"""Layers of a torch model exchanged for quantized ones: where they lie, what each changes.

The estimate of what an exchange costs is a Fisher-weighted error of the layer's output. Near the
unquantized model the divergence KL(published || quantized) is half a quadratic form of the change
with the Fisher matrix, the mean of g g^T over labels drawn from the model, where g is the gradient
of their negative log likelihood (Kunstner et al., arXiv 1905.12558, say why drawn ones and not the
text's own). Of that matrix the diagonal is kept, and a label is drawn once for each position. So
for a layer's outputs y_t and their change d_t, both (outputs,):

    KL of a row, summed over its tokens  ~  1/2 sum_t sum_j g_tj^2 d_tj^2

Against the measured divergence of 150 layers of SmolLM2-135M at 4 bits this ranks with 0.90, and
(g_t . d_t)^2 with 0.88; four draws change that to 0.91 and 0.93. Its sum is 0.77 of what was
measured. (sum_t g_t . d_t)^2, which keeps products of different tokens, needs four draws to rank
at all: 0.68 and 0.92. The output's relative error: 0.57 (dithered weights, int4 of groups of 128,
1,024 tokens, 2 cores of an AMD EPYC, torch 2.13.0, 2026-11-26).

All layers' gradients come from one backward pass, in the dtype of the loaded model: fp32.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.config.cell import Quant
from bench.engine.clock import Clock
from bench.engine.exchange import Change, See, Show
from bench.engine.prompts import Ids
from bench.engine.transformers.assignment import candidates
from bench.engine.transformers.attest import stored_tensors
from bench.engine.transformers.schemes import SCHEMES
from bench.errors import CellFailure


class LayerExchange:
    """The layers of one model, and the schemes that they may be exchanged for."""

    def __init__(self, model: PreTrainedModel, quants: Mapping[str, Quant], device: str) -> None:
        for name, quant in quants.items():
            if quant.scheme != "none" and SCHEMES[quant.scheme].layer is None:
                raise CellFailure("skipped", f"quant={name} has no layers that can be exchanged")
        self.model, self.quants, self.device = model, quants, device
        self.layers = dict(_layers(model))
        if not self.layers:
            raise CellFailure("skipped", "none of the model's layers is an ordinary Linear")
        self.sizes: Mapping[str, tuple[int, int]] = {
            name: (layer.out_features, layer.in_features) for name, layer in self.layers.items()
        }

    def obstacle(self, layer: str, scheme: str) -> str | None:
        quant = self.quants[scheme]
        return SCHEMES[quant.scheme].obstacle(*self.sizes[layer], quant, self.device)

    def made(self, layer: str, scheme: str) -> nn.Module:
        """The layer under a scheme, made of the published one."""
        quant, plain = self.quants[scheme], self.layers[layer]
        of = SCHEMES[quant.scheme].layer
        made: nn.Module = plain if of is None else of(plain, quant)
        return made.train(plain.training)  # bitsandbytes repacks no layer that is being trained

    @contextlib.contextmanager
    def exchanged(self, schemes: Mapping[str, str]) -> Iterator[None]:
        try:
            for name, scheme in schemes.items():
                self.model.set_submodule(name, self.made(name, scheme))
            yield
        finally:
            for name in schemes:
                self.model.set_submodule(name, self.layers[name])

    def stored_bytes(self) -> tuple[Mapping[str, int], int]:
        total = sum(tensor.nbytes for tensor in stored_tensors(self.model))
        of_layers = {name: self._layer_bytes(name) for name in self.layers}
        return of_layers, total - sum(of_layers.values())

    def _layer_bytes(self, name: str) -> int:
        layer = self.model.get_submodule(name)
        return sum(tensor.nbytes for tensor in stored_tensors(layer))

    @contextlib.contextmanager
    def stamped(self, clock: Clock) -> Iterator[list[str]]:
        called: list[str] = []
        hooks = []

        def before(name: str, *_: Any) -> None:
            called.append(name)
            clock.token()

        for name in self.layers:
            layer = self.model.get_submodule(name)
            hooks.append(layer.register_forward_pre_hook(partial(before, name)))
            hooks.append(layer.register_forward_hook(lambda *_: clock.token()))
        try:
            yield called
        finally:
            for hook in hooks:
                hook.remove()

    def changes(
        self, ids: Ids, schemes: tuple[str, ...], seed: int, show: Show
    ) -> Mapping[str, Mapping[str, Change]]:
        found: dict[str, dict[str, Change]] = {}
        with _watched(self, len(ids), found, schemes, show):
            tokens = torch.from_numpy(ids).to(self.model.device)
            logits = self.model(tokens, use_cache=False).logits.flatten(0, 1)
            likely = torch.log_softmax(logits.float(), -1)
            labels = _drawn(likely.detach(), seed)
            (-likely.gather(1, labels)).sum().backward()
        return {name: found[name] for name in self.layers if name in found}

    def outputs(self, ids: Ids, see: See) -> None:
        def show(name: str, module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                see(name, type(module).__name__, output.detach().float().cpu().numpy())

        hooks = [
            module.register_forward_hook(partial(show, name))
            for name, module in self.model.named_modules()
            if not any(module.children())
        ]
        try:
            with torch.inference_mode():
                self.model(torch.from_numpy(ids).to(self.model.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The ordinary linear layers that transformers would have quantized, so not the head."""
    for name in candidates(model, lambda module: type(module) is nn.Linear):
        yield name, model.get_submodule(name)


def _drawn(likely: Tensor, seed: int) -> Tensor:
    """A label for each position from the model's own distribution: the same on every device.

    Shapes: likely (positions, vocabulary) log probabilities; returns (positions, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    # Not multinomial, whose draws differ between devices: where the sum of probabilities passes u
    uniform = torch.rand(len(likely), 1, generator=generator).to(likely.device)
    sums = likely.exp().cumsum(-1)
    labels = torch.searchsorted(sums, uniform * sums[:, -1:])
    return labels.clamp(max=likely.shape[1] - 1)


def _as_leaf(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    """Where the backward pass ends."""
    return output.detach().requires_grad_(True)


@contextlib.contextmanager
def _watched(
    exchange: LayerExchange,
    rows: int,
    found: dict[str, dict[str, Change]],
    schemes: tuple[str, ...],
    show: Show,
) -> Iterator[None]:
    """Within the block, a backward pass leaves in ``found`` what each scheme changes in a layer."""
    model = exchange.model
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    hooks = []

    def watch(name: str, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs = given[0].detach()

        def compare(gradient: Tensor) -> None:
            show(f"layer {len(found) + 1} of {len(exchange.layers)}")
            with torch.no_grad():
                found[name] = {
                    scheme: _change(rows, exchange.made(name, scheme)(inputs), output, gradient)
                    for scheme in schemes
                    if exchange.obstacle(name, scheme) is None
                }

        output.register_hook(compare)

    try:
        for parameter in wanted:  # gradients of weights are not wanted, and take their size
            parameter.requires_grad_(False)
        embedding = model.get_input_embeddings()
        hooks.append(embedding.register_forward_hook(_as_leaf))
        for name, layer in exchange.layers.items():
            hooks.append(layer.register_forward_hook(partial(watch, name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, was_wanted in wanted.items():
            parameter.requires_grad_(was_wanted)


def _change(rows: int, quantized: Tensor, output: Tensor, gradient: Tensor) -> Change:
    """Shapes: all (rows, tokens, outputs), or (rows * tokens, outputs)."""
    difference = (quantized - output).float()
    size, error = output.double().square().sum(), difference.double().square().sum()
    both = (output.double() * quantized.double()).sum()
    norms = torch.sqrt(size * quantized.double().square().sum())
    cost = (gradient * difference).square().sum(-1).double().reshape(rows, -1)
    return Change(
        output_error=float(torch.sqrt(error / size)),
        cosine=float(both / norms),
        estimated_kl_nats=(cost.sum(-1) / 2).cpu().numpy().astype(np.float64),
    )
