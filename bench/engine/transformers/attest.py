"""What is really in memory and what really runs, and whether it deserves the cell's name.

Libraries rewrite configurations without saying so: a layer that was skipped, a kernel that fell
back, a dtype that was cast. So after the timed requests (bitsandbytes repacks 4-bit weights at
their first forward) the modules are counted, every stored byte is added up, and one request of a
single row with one decode step runs under torch's profiler to see which operators are dispatched. A
mismatch is ``not_engaged``: never a number under a wrong name.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from transformers import Conv1D, DynamicCache, PreTrainedModel

from bench.config.cell import Cell
from bench.engine.prompts import Ids
from bench.engine.protocol import Untimed
from bench.engine.transformers.attention import attention_mismatches, attention_operators
from bench.engine.transformers.packed import (
    is_packed,
    kind,
    logical_weights,
    own_tensors,
    product_dtypes,
)
from bench.engine.transformers.probes import Request, decode_syncs, flags_in_force
from bench.engine.transformers.schemes import SCHEMES, Scheme, checkpoint, dtype_name, torch_dtype
from bench.errors import CellFailure
from bench.record.result import Attestation, ModelShape

_LONGEST_NAME = 120  # of a kernel: templates make them pages long
_SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def attest(
    cell: Cell, model: PreTrainedModel, request: Request, ids: Ids, new_tokens: int
) -> Attestation:
    """Counted facts about the loaded model, and what mismatches the cell.

    Shapes: ids (batch, prompt_tokens); only the first row is used but for counting waits.
    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    syncs = decode_syncs(request, ids, new_tokens) if cell.device == "cuda" else None
    seen = _observe(cell, model, request, ids[:1])
    by_dtype: Counter[str] = Counter()
    for tensor in _stored_tensors(model):
        by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    head = model.get_output_embeddings()
    of_head = {tensor.data_ptr(): tensor.nbytes for tensor in own_tensors(head)}
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    gathered = {
        tensor.data_ptr(): tensor.nbytes
        for embedding in embeddings
        for tensor in own_tensors(embedding)
        if tensor.data_ptr() not in of_head  # tied: the head reads all of it
    }
    weights, matmul_weights = logical_weights(model)
    is_quantized = any(map(is_packed, model.modules()))
    shape = _shape(model)
    attention = attention_operators(seen.operators)
    in_force = model.config._attn_implementation
    return Attestation(
        shape=shape,
        weight_bytes=sum(by_dtype.values()),
        gathered_bytes=sum(gathered.values()),
        head_bytes=sum(of_head.values()),
        logical_weights=weights,
        matmul_weights=matmul_weights,
        kv_bytes_per_token=_kv_bytes_per_token(cell, model, ids[:1]),
        executed_dtype=_executed_dtype(cell, is_quantized, by_dtype, seen.products),
        is_quantized=is_quantized,
        mismatches=(
            *_shape_mismatches(cell, shape),
            *_layer_mismatches(cell, model),
            *_placement_mismatches(cell, model),
            *attention_mismatches(cell.attn, in_force, attention),
            *_thread_mismatches(cell),
        ),
        outlier_share=seen.outlier_share,
        decode_syncs=syncs,
        details={
            "layers": dict(Counter(map(kind, _matrices(model)))),
            "bytes_by_dtype": dict(by_dtype),
            "attention": in_force,
            "attention_operators": attention,
            "kernels": sorted(seen.kernels),
            "compute_dtypes": _compute_dtypes(model),
            "product_dtypes": dict(seen.products),
            "flags": flags_in_force(),
            **_saved_quantization(cell, model),
        },
    )


def _saved_quantization(cell: Cell, model: PreTrainedModel) -> dict[str, Any]:
    if cell.quant.scheme != "checkpoint":
        return {}
    folder = Path(model.name_or_path)
    return {
        "quantized_by": checkpoint.method(folder),
        "quantization": dict(checkpoint.quantization(folder) or {}),
    }


def _matrices(model: PreTrainedModel) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) or is_packed(m)]


def _scheme_of(module: nn.Module) -> Scheme | None:
    """The quantization scheme that a layer is of; None for one that is not quantized."""
    name = type(module).__name__
    quantizing = [s for key, s in SCHEMES.items() if key != "none" and s.layer_class == name]
    return quantizing[0] if quantizing else None


def _quantized(model: PreTrainedModel) -> list[tuple[Any, Scheme]]:
    layers = [(module, _scheme_of(module)) for module in model.modules()]
    return [(module, scheme) for module, scheme in layers if scheme is not None]


def _stored_tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Parameters, buffers and what a scheme keeps beside them, each storage once."""
    state = [tensor for module, scheme in _quantized(model) for tensor in scheme.state(module)]
    seen: set[int] = set()
    own = [tensor for module in model.modules() for tensor in own_tensors(module)]
    for tensor in (*own, *state):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor


def _compute_dtypes(model: PreTrainedModel) -> list[str]:
    quantized = [module for module, _ in _quantized(model)]
    return sorted({str(m.compute_dtype) for m in quantized if hasattr(m, "compute_dtype")})


def _executed_dtype(
    cell: Cell, is_quantized: bool, by_dtype: Counter[str], products: Counter[str]
) -> str:
    """In which dtype most matrix products run; the head and int8's outlier columns stay in 16 bits
    all the same. Of quantized layers the scheme knows it: that they are its own is checked. Of
    those that others have quantized it is what ran."""
    if is_quantized and cell.quant.scheme == "checkpoint" and products:
        return products.most_common(1)[0][0]
    if is_quantized and cell.quant.scheme != "checkpoint":
        return SCHEMES[cell.quant.scheme].executed_dtype(cell.quant)
    floating = {name: size for name, size in by_dtype.items() if name in _SHORT_DTYPES}
    return _SHORT_DTYPES[max(floating, key=lambda name: floating[name])]


def _shape(model: PreTrainedModel) -> ModelShape:
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    usual = ["sliding_attention" if window else "full_attention"]
    kinds = getattr(config, "layer_types", None) or usual
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    return ModelShape(
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        sliding_windows=tuple(windows if len(windows) == layers else windows * layers),
    )


@dataclass(frozen=True, slots=True)
class Observed:
    """What ran in one prefill and one decode step."""

    operators: set[str]
    kernels: set[str]  # of CUDA
    products: Counter[str]  # matrix products by dtype
    outlier_share: float | None  # of the columns of activations


def _observe(cell: Cell, model: PreTrainedModel, request: Request, ids: Ids) -> Observed:
    columns = [0, 0]  # above the threshold, all
    threshold = cell.quant.parameters.get("threshold") or 0.0

    def count_outliers(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        activations = arguments[0].flatten(0, -2)  # (tokens, features)
        columns[0] += int((activations.abs().amax(0) > threshold).sum())
        columns[1] += activations.shape[-1]

    watched = [module for module, _ in _quantized(model)] if threshold else []
    hooks = [module.register_forward_pre_hook(count_outliers) for module in watched]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cell.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        request(ids, 2, Untimed())
    for hook in hooks:
        hook.remove()
    # profile.events() builds a tree of them, for seconds
    events = profile.profiler.kineto_results.events()
    on_device = [event for event in events if event.device_type() == DeviceType.CUDA]
    return Observed(
        operators={event.name() for event in events},
        kernels={event.name()[:_LONGEST_NAME] for event in on_device},
        products=product_dtypes(events),
        outlier_share=columns[0] / columns[1] if watched else None,
    )


def _kv_bytes_per_token(cell: Cell, model: PreTrainedModel, ids: Ids) -> int:
    """Of one sequence, all layers, read off a cache after a prefill and one decode step."""
    cache = DynamicCache(config=model.config)
    tokens = torch.from_numpy(ids).to(model.device)
    with torch.inference_mode():
        for _ in range(2):
            logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
    if not torch.isfinite(logits).all():
        raise CellFailure("failed", f"{cell.label}: the model's logits are not finite numbers")
    stored: int = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    kept: float = sum(layer.keys.shape[-2] for layer in cache.layers) / len(cache.layers)
    return round(stored / kept)


def _shape_mismatches(cell: Cell, shape: ModelShape) -> Iterator[str]:
    """A folder given by ``model.path`` may hold another model than the one it is called."""
    architecture = cell.model.architecture
    for names, count in (
        (("num_hidden_layers", "n_layer"), shape.layers),
        (("hidden_size", "n_embd"), shape.hidden),
        (("vocab_size",), shape.vocabulary),
    ):
        for name in names:
            if name in architecture and architecture[name] != count:
                yield f"{name} is {count}, model={cell.model.name} has {architecture[name]}"


def _layer_mismatches(cell: Cell, model: PreTrainedModel) -> Iterator[str]:
    if cell.quant.scheme == "checkpoint":
        yield from _checkpoint_mismatches(cell, model)
        return
    quant, head = cell.quant, model.get_output_embeddings()
    scheme = SCHEMES[quant.scheme]
    # A scheme replaces GPT-2's Conv1D too; without one it is as good as a Linear.
    allowed = {scheme.layer_class, *(["Conv1D"] if quant.scheme == "none" else [])}
    others = [m for m in _matrices(model) if m is not head and type(m).__name__ not in allowed]
    if others:
        yield f"{len(others)} layers are {type(others[0]).__name__}, want {scheme.layer_class}"
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes != {torch_dtype(quant.dtype)}:
        names = ", ".join(sorted(map(str, dtypes)))
        yield f"unquantized weights are {names}, want {quant.dtype}"
    wanted = scheme.wanted(quant)
    for module, usual in _quantized(model):
        # Two schemes may share a class of layers
        own = scheme if type(module).__name__ == scheme.layer_class else usual
        settings = own.settings(module)
        expected = {name: value for name, value in wanted.items() if name in settings}
        if settings != expected:
            yield f"a {type(module).__name__} layer has {settings}, want {expected}"
            break


def _checkpoint_mismatches(cell: Cell, model: PreTrainedModel) -> Iterator[str]:
    matrices = _matrices(model)
    plain = [m for m in model.modules() if not is_packed(m)]
    dtypes = {p.dtype for m in plain for p in m.parameters(recurse=False) if p.is_floating_point()}
    names = ", ".join(sorted(dtype_name(dtype) for dtype in dtypes))
    if not any(map(is_packed, matrices)):
        by = checkpoint.method(Path(model.name_or_path))
        yield (
            f"transformers has dequantized the {by} weights: no kernel for them runs here, all"
            f" {len(matrices)} layers are plain {names}"
        )
    elif cell.quant.dtype not in ("saved", names):
        yield f"unquantized weights are {names}, want {cell.quant.dtype}"


def _placement_mismatches(cell: Cell, model: PreTrainedModel) -> Iterator[str]:
    places = {tensor.device.type for tensor in _stored_tensors(model)}
    if places != {cell.device}:
        yield f"weights are on {', '.join(sorted(places))}, want {cell.device}"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        yield "accelerate put hooks into the forward pass"


def _thread_mismatches(cell: Cell) -> Iterator[str]:
    if torch.get_num_threads() != cell.threads:
        yield f"torch runs {torch.get_num_threads()} threads, want {cell.threads}"
