"""4-bit weights that are rounded after reading a text: AWQ's scales, GPTQ's compensation, or both.

A layer's error on a text is tr(D H D^T) for the change D of its weights and H = X^T X of its inputs
X, so H is all that either method has to know of the text. It is collected in forward passes of the
unquantized model, for as many layers at once as there is memory for: layers before a layer are
unquantized when its inputs are seen, whatever they will be.

* AWQ (Lin et al., arXiv 2306.00978): inputs are divided and weights multiplied by s = a^alpha, a
  the root mean square of each input, so that inputs with much weight on the output are rounded
  finely. alpha is searched for each layer by its own error. 1 / s is kept beside the layer.
* GPTQ (Frantar et al., arXiv 2210.17323): inputs are quantized in their order; the error of each is
  made up for by those that follow, by the Cholesky factor of the inverse of H, damped by 1 % of its
  mean diagonal. A group's grid is of its weights at the moment when its turn comes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.config.cell import Quant
from bench.engine.transformers.own.grids import (
    Int4Matrix,
    dequantize_int4,
    from_int4,
    int4_grid,
    packed_int4,
    quantize_int4,
    to_int4,
)
from bench.engine.transformers.own.layers import Int4Linear
from bench.engine.transformers.schemes.own import group_size, int4_of
from bench.engine.transformers.schemes.scheme import rows_of

_WINDOW_TOKENS = 512
_STATISTICS_BYTES = 2e9  # that exist at once
_ALPHAS = tuple(tenth / 10 for tenth in range(11))
_SEARCHED_OUTPUTS = 256  # of which the error is computed while alpha is searched
_DAMPING = 0.01
_BLOCK = 128  # inputs whose errors are made up for within the block first


def is_calibrated(quant: Quant) -> bool:
    """Whether the scheme reads a text before it rounds."""
    return quant.scheme == "own_int4" and int4_of(quant).quantizer != "nearest"


def calibrate(
    model: PreTrainedModel,
    ids: Sequence[int],
    layers: Mapping[str, Quant],
    show: Callable[[str], None],
) -> None:
    """Quantize these layers of an unquantized model in their places.

    Args:
        ids: of the calibration text; what does not fill a window of 512 tokens is not read.
        show: is told how far it is.
    """
    count = max(1, len(ids) // _WINDOW_TOKENS)
    windows = torch.tensor(ids[: count * _WINDOW_TOKENS]).unflatten(0, (count, -1))
    done = 0
    for names in _portions(model, layers):
        statistics = _statistics(model, names, windows)
        for name in names:
            show(f"calibrating layer {done} of {len(layers)}")
            layer = model.get_submodule(name)
            model.set_submodule(name, calibrated(layer, layers[name], statistics[name]))
            done += 1


def _portions(model: PreTrainedModel, layers: Mapping[str, Quant]) -> Iterator[list[str]]:
    """Names of layers whose statistics fit into memory together."""
    portion: list[str] = []
    used = 0
    for name in layers:
        needed = 4 * rows_of(model.get_submodule(name)).shape[1] ** 2
        if portion and used + needed > _STATISTICS_BYTES:
            yield portion
            portion, used = [], 0
        portion.append(name)
        used += needed
    if portion:
        yield portion


def _statistics(model: PreTrainedModel, names: Sequence[str], windows: Tensor) -> dict[str, Tensor]:
    """X^T X of each layer's inputs, over tokens; layers that are given the same inputs share it."""
    found: dict[str, Tensor] = {}
    last: list[tuple[Tensor, str]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if last and last[0][0] is arguments[0]:  # as the layer before: q, k and v
                found[name] = found[last[0][1]]
                return
            x = arguments[0].flatten(0, -2).float()
            found[name] = found[name] + x.T @ x if name in found else x.T @ x
            last[:] = [(arguments[0], name)]

        return add

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    with torch.inference_mode():
        for window in windows:
            model(window[None].to(model.device), use_cache=False, logits_to_keep=1)
    for each in hooks:
        each.remove()
    return found


def calibrated(layer: nn.Module, quant: Quant, statistics: Tensor) -> Int4Linear:
    """The layer of the scheme that errs least on a text.

    Shapes: statistics (inputs, inputs), X^T X of the inputs.
    """
    own = int4_of(quant)
    weight = rows_of(layer).float()
    inputs = weight.shape[1]
    size = group_size(quant, inputs)
    input_scale = None
    if "awq" in own.quantizer:
        scale = _searched_scale(weight, statistics, size)
        input_scale = (1 / scale).half()
        weight = weight / input_scale.float()
        statistics = statistics * torch.outer(input_scale.float(), input_scale.float())
    rounded = compensated if "gptq" in own.quantizer else _nearest
    matrix = rounded(weight, statistics, size)
    bias: Any = layer.bias
    return Int4Linear(matrix, inputs, bias, own.activations != "none", input_scale)


def _nearest(weight: Tensor, statistics: Tensor, size: int) -> Int4Matrix:
    return quantize_int4(weight, size)


def _searched_scale(weight: Tensor, statistics: Tensor, size: int) -> Tensor:
    """What weights are multiplied by, of each input."""
    step = -(weight.shape[0] // -_SEARCHED_OUTPUTS)
    some = weight[::step]
    size_of_inputs = statistics.diagonal().clamp(min=0).sqrt()
    typical = size_of_inputs[size_of_inputs > 0].log().mean().exp()
    relative = torch.where(size_of_inputs > 0, size_of_inputs / typical, 1.0)
    # Beyond this an input that hardly ever moves would take fp16 out of its range
    scales = [relative.clamp(1e-3, 1e3) ** alpha for alpha in _ALPHAS]
    errors = [_error(some, scale, statistics, size) for scale in scales]
    return scales[errors.index(min(errors))]


def _error(weight: Tensor, scale: Tensor, statistics: Tensor, size: int) -> float:
    matrix = quantize_int4(weight * scale, size)
    change = dequantize_int4(matrix, weight.shape[1]) / scale - weight
    return float(((change @ statistics) * change).sum())


def compensated(weight: Tensor, statistics: Tensor, size: int) -> Int4Matrix:
    """By GPTQ. Shapes: weight (outputs, inputs) fp32, statistics (inputs, inputs)."""
    weight = weight.clone()
    inputs = weight.shape[1]
    factor = _factor(statistics)
    q = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    grids: list[tuple[Tensor, Tensor]] = []
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.empty_like(weight[:, start:end])
        for i in range(start, end):
            if i % size == 0:
                # Of a group that goes beyond the block: what errors have done to it so far
                grids.append(int4_grid(_as_of_now(weight, errors, factor, i, size, start, end)))
            column = weight[:, i]
            q[:, i] = to_int4(column[:, None], *grids[-1])[:, 0]
            made = from_int4(q[:, i][:, None], *grids[-1])[:, 0]
            error = (column - made) / factor[i, i]
            weight[:, i:end] -= torch.outer(error, factor[i, i:end])
            errors[:, i - start] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    scale, zero = (torch.stack(parts, 1) for parts in zip(*grids, strict=True))
    return packed_int4(q, scale, zero, size)


def _as_of_now(
    weight: Tensor, errors: Tensor, factor: Tensor, i: int, size: int, start: int, end: int
) -> Tensor:
    """The weights of the group that begins at ``i``, as the errors before it have changed them."""
    group = weight[:, i : i + size]
    if i + size <= end or i == start:
        return group
    changed = group.clone()
    changed[:, end - i :] -= errors[:, : i - start] @ factor[start:i, end : i + size]
    return changed


def _factor(statistics: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped statistics."""
    wide = statistics.double()
    diagonal = wide.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped = wide + torch.eye(len(wide), dtype=wide.dtype, device=wide.device) * mean * _DAMPING
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
