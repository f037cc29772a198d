"""What is really in memory and what really runs, and whether it deserves the cell's name.

Libraries rewrite configurations without saying so: a layer that was skipped, a kernel that fell
back, a dtype that was cast. So after the timed requests (bitsandbytes repacks 4-bit weights at
their first forward) the modules are counted, every stored byte is added up, and one request of a
single row with one decode step runs under torch's profiler to see which operators are dispatched. A
mismatch is ``not_engaged``: never a number under a wrong name.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from transformers import DynamicCache, PreTrainedModel

from bench.config.cell import Cell
from bench.engine.clock import Untimed
from bench.engine.prompts import Ids
from bench.engine.protocol import shape_mismatches
from bench.engine.transformers.assignment import assigned
from bench.engine.transformers.attention import (
    attention_mismatches,
    attention_operators,
    attention_remarks,
    pinned,
    queries_alone,
)
from bench.engine.transformers.describe import cache_windows
from bench.engine.transformers.device import flags_in_force
from bench.engine.transformers.own.siblings import joined
from bench.engine.transformers.packed import (
    is_packed,
    kind,
    logical_weights,
    matrices,
    ordinary_dtypes,
    own_tensors,
    plain_layout,
    product_dtypes,
    saved_quantization,
    unpacked,
)
from bench.engine.transformers.profiling import Request, syncs
from bench.engine.transformers.schemes import SCHEMES, Scheme, torch_dtype
from bench.engine.transformers.strategies import Plain, Strategy, loop, new_cache
from bench.errors import CellFailure
from bench.record.result import Attestation, ModelShape

_LONGEST_NAME = 120  # of a kernel: templates make them pages long
_SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def attest(
    cell: Cell,
    model: PreTrainedModel,
    strategy: Strategy,
    request: Request,
    ids: Ids,
    new_tokens: int,
) -> Attestation:
    """Counted facts about the loaded model, and what mismatches the cell.

    Shapes: ids (batch, prompt_tokens); only the first row is used but for counting waits, and
    where a strategy has prepared itself for all of them.
    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    waits = syncs(request, ids, new_tokens) if cell.device == "cuda" else (None, None)
    is_plain = isinstance(strategy, Plain)
    # Before other shapes run: they would count as preparations
    ran = strategy.ran()
    is_loop = cell.decode.strategy == "loop"
    differs = {} if is_loop else _first_difference(cell, model, request, ids, new_tokens)
    seen = _observe(cell, model, request, ids[:1] if is_plain else ids)
    replayed = {"graph_replays": seen.replays} if seen.replays else {}
    by_dtype: Counter[str] = Counter()
    for tensor in stored_tensors(model):
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
    plain = plain_layout(model)
    weights, matmul_weights = logical_weights(plain)
    is_quantized = any(map(is_packed, model.modules()))
    cache, logits = _filled_cache(cell, model, ids[:1])
    shape = _shape(model, cache)
    attention = attention_operators(seen.operators)
    in_force = model.config._attn_implementation
    return Attestation(
        shape=shape,
        weight_bytes=sum(by_dtype.values()),
        gathered_bytes=sum(gathered.values()),
        head_bytes=sum(of_head.values()),
        logical_weights=weights,
        matmul_weights=matmul_weights,
        kv_bytes_per_token=_kv_bytes_per_token(cache),
        executed_dtype=_executed_dtype(cell, is_quantized, by_dtype, seen.products),
        is_quantized=is_quantized,
        mismatches=(
            *shape_mismatches(cell, shape),
            *_layer_mismatches(cell, model, plain),
            *_placement_mismatches(cell, model),
            *attention_mismatches(cell.attn, in_force, attention, seen.queries_alone),
            *_cache_mismatches(cache),
            *_thread_mismatches(cell),
            *ran.mismatches,
            *_graph_mismatches(cell, seen.replays),
        ),
        logits_digest=hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()[:12],
        outlier_share=seen.outlier_share,
        prefill_syncs=waits[0],
        decode_syncs=waits[1],
        remarks=(*attention_remarks(cell.attn, attention), *ran.remarks),
        details={
            "layers": dict(Counter(map(kind, matrices(model)))),
            **({"one_product": joint} if (joint := joined(model)) else {}),
            "bytes_by_dtype": dict(by_dtype),
            "attention": in_force,
            "attention_operators": attention,
            "kernels": sorted(seen.kernels),
            "compute_dtypes": _compute_dtypes(model),
            "product_dtypes": dict(seen.products),
            "flags": flags_in_force(),
            **({} if is_loop else {"decode": {**ran.details, **differs, **replayed}}),
            **saved_quantization(cell, model),
        },
    )


def _first_difference(
    cell: Cell, model: PreTrainedModel, request: Request, ids: Ids, new_tokens: int
) -> dict[str, int | None]:
    """From which token on, counted from 0, some row's answer is not the plain loop's; None: all are
    the same. In 16 bits another order of sums is enough."""
    ours = request(ids, new_tokens, Untimed())
    with torch.inference_mode(), pinned(cell.attn):
        theirs = loop(model, torch.from_numpy(ids), new_tokens, Untimed()).cpu().numpy()
    (places,) = (ours != theirs).any(0).nonzero()
    return {"first_token_unlike_loop": int(places[0]) if len(places) else None}


def _scheme_of(module: nn.Module) -> Scheme | None:
    """The quantization scheme that a layer is of; None for one that is not quantized."""
    name = kind(module)
    quantizing = [s for key, s in SCHEMES.items() if key != "none" and name in s.layer_classes]
    return quantizing[0] if quantizing else None


def _quantized(model: nn.Module) -> list[tuple[Any, Scheme]]:
    layers = [(module, _scheme_of(module)) for module in model.modules()]
    return [(module, scheme) for module, scheme in layers if scheme is not None]


def stored_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
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


def _shape(model: PreTrainedModel, cache: DynamicCache) -> ModelShape:
    config = model.config.get_text_config(decoder=True)
    kept = _kept(cache)
    heads = (getattr(config, "num_attention_heads", None) or 0) if kept else 0
    return ModelShape(
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=kept[0].keys.shape[1] if kept else 0,
        head_dim=kept[0].keys.shape[-1] if kept else 0,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        sliding_windows=cache_windows(cache, config.num_hidden_layers),
    )


@dataclass(frozen=True, slots=True)
class Observed:
    """What ran in one prefill and one decode step."""

    operators: set[str]
    kernels: set[str]  # of CUDA
    products: Counter[str]  # matrix products by dtype
    queries_alone: int  # of the calls of sdpa
    replays: int  # of CUDA graphs
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
        queries_alone=queries_alone(events),
        replays=sum(event.name() == "cudaGraphLaunch" for event in events),
        outlier_share=columns[0] / columns[1] if watched else None,
    )


def _filled_cache(
    cell: Cell, model: PreTrainedModel, ids: Ids
) -> tuple[DynamicCache, torch.Tensor]:
    """The cache of one sequence after a prefill and one decode step, and that step's logits."""
    cache = new_cache(model)
    tokens = torch.from_numpy(ids).to(model.device)
    with torch.inference_mode(), pinned(cell.attn):
        for _ in range(2):
            logits = model(tokens, **cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
    if not torch.isfinite(logits).all():
        raise CellFailure("failed", f"{cell.label}: the model's logits are not finite numbers")
    return next(iter(cache.values())), logits


def _kept(cache: DynamicCache) -> list[Any]:
    """The layers that keep keys and values."""
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]


def _kv_bytes_per_token(cache: DynamicCache) -> int:
    """Of all layers together."""
    layers = [layer.keys.nbytes + layer.values.nbytes for layer in _kept(cache)]
    tokens = [layer.keys.shape[-2] for layer in _kept(cache)]
    return round(sum(layers) / fmean(tokens)) if layers else 0


def _layer_mismatches(cell: Cell, model: PreTrainedModel, plain: PreTrainedModel) -> Iterator[str]:
    if cell.quant.scheme == "checkpoint":
        yield from unpacked(cell, model)
        return
    quant = cell.quant
    own = {model.get_submodule(n): q for n, q in assigned(plain, quant).items()}
    head = model.get_output_embeddings()
    wanted_of = {m: own.get(m, quant) for m in matrices(model) if m is not head or m in own}
    others: Counter[tuple[str, str]] = Counter()
    for module, each in wanted_of.items():
        classes = SCHEMES[each.scheme].layer_classes
        # Without a scheme GPT-2's Conv1D and Falcon's own class are as good as a Linear
        is_wanted = _scheme_of(module) is None if each.scheme == "none" else kind(module) in classes
        if not is_wanted:
            others[kind(module), " or ".join(classes)] += 1
    for (name, wanted_classes), count in others.items():
        yield f"{count} layers are {name}, want {wanted_classes}"
    dtypes = ordinary_dtypes(model)
    if dtypes != {torch_dtype(quant.dtype)}:
        names = ", ".join(sorted(map(str, dtypes)))
        yield f"unquantized weights are {names}, want {quant.dtype}"
    for module, each in wanted_of.items():
        scheme = SCHEMES[each.scheme]
        if kind(module) not in scheme.layer_classes:
            continue
        settings, wanted = scheme.settings(module), scheme.wanted(each)
        if {name: settings[name] for name in wanted} != wanted:
            yield f"a {kind(module)} layer has {settings}, want {wanted}"
            break


def _placement_mismatches(cell: Cell, model: PreTrainedModel) -> Iterator[str]:
    places = {tensor.device.type for tensor in stored_tensors(model)}
    if places != {cell.device}:
        yield f"weights are on {', '.join(sorted(places))}, want {cell.device}"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        yield "accelerate put hooks into the forward pass"


def _cache_mismatches(cache: DynamicCache) -> Iterator[str]:
    """A model that keeps nothing of the prompt computes each decode step without it."""
    if not any(_tensors(vars(layer)) for layer in cache.layers):
        yield "the model keeps no cache, so its decode steps do not see the prompt"


def _graph_mismatches(cell: Cell, replays: int) -> Iterator[str]:
    """torch leaves CUDA graphs out where it cannot use them, with a warning in a log."""
    is_graph = cell.device == "cuda" and cell.decode.strategy == "compiled"
    if is_graph and not replays:
        yield "no CUDA graph repeated the compiled decode step"


def _tensors(value: Any) -> int:
    """How many there are in it, however deep."""
    if isinstance(value, Mapping):
        return sum(map(_tensors, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_tensors, value))
    return int(isinstance(value, torch.Tensor) and value.numel() > 0)


def _thread_mismatches(cell: Cell) -> Iterator[str]:
    if torch.get_num_threads() != cell.threads:
        yield f"torch runs {torch.get_num_threads()} threads, want {cell.threads}"
