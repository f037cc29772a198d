"""What is really in memory and what really runs, and whether it deserves the cell's name.

Libraries rewrite configurations without saying so: a layer that was skipped, a kernel that fell
back, a dtype that was cast. So after the first request (bitsandbytes repacks 4-bit weights at their
first forward) the modules are counted, every stored byte is added up, and one prefill and one
decode step of a single row run under torch's profiler to see which attention operators are
dispatched. A mismatch is ``not_engaged``: never a number under a wrong name.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from transformers import Conv1D, DynamicCache, PreTrainedModel

from bench.config.cell import Cell
from bench.engine.transformers.attention import OPERATORS, pinned
from bench.engine.transformers.schemes import DTYPES, SCHEMES
from bench.errors import CellFailure
from bench.record.result import Attestation, ModelShape

_ATTENTION = ("scaled_dot_product", "flash_attn", "flex_attention")  # parts of operators' names
_LONGEST_NAME = 120  # of a kernel: templates make them pages long

QUANTIZED_CLASSES = {scheme.layer_class for scheme in SCHEMES.values()} - {"Linear"}


def attest(cell: Cell, model: PreTrainedModel, prompt_ids: torch.Tensor) -> Attestation:
    """Counted facts about the loaded model.

    Shapes: prompt_ids (batch, prompt_tokens); only the first row is used.
    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    operators, kernels, kv_bytes, outlier_share = _observe(cell, model, prompt_ids[:1])
    by_dtype: Counter[str] = Counter()
    for tensor in _stored_tensors(model):
        by_dtype[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    head = model.get_output_embeddings()
    gathered = {
        m.weight.data_ptr(): m.weight.nbytes for m in model.modules() if isinstance(m, nn.Embedding)
    }
    gathered.pop(head.weight.data_ptr(), None)  # tied: the head reads all of it
    matmul = sum(_logical_count(m.weight) for m in _matrices(model) if m is not head)
    return Attestation(
        shape=_shape(model),
        layers=dict(Counter(type(module).__name__ for module in _matrices(model))),
        bytes_by_dtype=dict(by_dtype),
        weight_bytes=sum(by_dtype.values()),
        gathered_bytes=sum(gathered.values()),
        head_bytes=head.weight.nbytes,
        logical_weights=sum(_logical_count(p) for p in model.parameters()),
        matmul_weights=matmul,
        kv_bytes_per_token=kv_bytes,
        attention=model.config._attn_implementation,
        attention_operators=operators,
        kernels=kernels,
        compute_dtypes=tuple(
            sorted({str(m.compute_dtype) for m in _quantized(model) if hasattr(m, "compute_dtype")})
        ),
        outlier_share=outlier_share,
    )


def mismatches(cell: Cell, model: PreTrainedModel, found: Attestation) -> list[str]:
    """Why the model does not deserve the cell's name; empty when it does."""
    return [
        *_shape_mismatches(cell, found),
        *_layer_mismatches(cell, model),
        *_attention_mismatches(cell, found),
    ]


def _matrices(model: PreTrainedModel) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]


def _quantized(model: PreTrainedModel) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__ in QUANTIZED_CLASSES]


def _stored_tensors(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Parameters, buffers and what bitsandbytes keeps beside them, each storage once."""
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers(), *_quantization_state(model)):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor


def _quantization_state(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    for module in _quantized(model):
        if type(module).__name__ == "Linear8bitLt":
            kept = [module.state.CB, module.state.SCB, module.weight.CB, module.weight.SCB]
        else:
            kept = []
            state = module.weight.quant_state
            while state is not None:  # double quantization: the scales have scales
                kept += [state.absmax, state.code, getattr(state, "offset", None)]
                state = getattr(state, "state2", None)
        yield from (tensor for tensor in kept if tensor is not None)


def _logical_count(parameter: torch.Tensor) -> int:
    """How many weights a parameter stands for; packed 4-bit storage holds two a byte."""
    state = getattr(parameter, "quant_state", None)
    shape = parameter.shape if state is None else state.shape
    return int(torch.Size(shape).numel())


def _shape(model: PreTrainedModel) -> ModelShape:
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [
        "sliding_attention" if window else "full_attention"
    ]
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    layers = config.num_hidden_layers
    return ModelShape(
        layers=layers,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        sliding_windows=tuple(windows if len(windows) == layers else windows * layers),
    )


def _observe(
    cell: Cell, model: PreTrainedModel, ids: torch.Tensor
) -> tuple[tuple[str, ...], tuple[str, ...], int, float | None]:
    """Of one prefill and one decode step: attention operators, CUDA kernels, KV bytes a token,
    share of outlier columns."""
    columns = [0, 0]  # above the threshold, all
    threshold = cell.quant.threshold or 0.0

    def count_outliers(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        activations = arguments[0].flatten(0, -2)  # (tokens, features)
        columns[0] += int((activations.abs().amax(0) > threshold).sum())
        columns[1] += activations.shape[-1]

    watched = _quantized(model) if threshold else []
    hooks = [module.register_forward_pre_hook(count_outliers) for module in watched]
    cache = DynamicCache(config=model.config)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cell.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile, pinned(cell.attn):
        ids = ids.to(model.device)
        for _ in range(2):
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
    for hook in hooks:
        hook.remove()
    if not torch.isfinite(logits).all():
        raise CellFailure("failed", f"{cell.label}: the model's logits are not finite numbers")
    # Profile.events() builds a tree of them, for seconds
    events = profile.profiler.kineto_results.events()
    kernels = {
        event.name()[:_LONGEST_NAME] for event in events if event.device_type() == DeviceType.CUDA
    }
    names = {event.name() for event in events}
    attention = tuple(sorted(n for n in names if any(part in n for part in _ATTENTION)))
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    kept = sum(layer.keys.shape[-2] for layer in cache.layers) / len(cache.layers)
    return (
        attention,
        tuple(sorted(kernels)),
        round(stored / kept),
        columns[0] / columns[1] if watched else None,
    )


def _shape_mismatches(cell: Cell, found: Attestation) -> Iterator[str]:
    """A folder given by ``model.path`` may hold another model than the one it is called."""
    said, shape = cell.model.architecture, found.shape
    for names, count in (
        (("num_hidden_layers", "n_layer"), shape.layers),
        (("hidden_size", "n_embd"), shape.hidden),
        (("vocab_size",), shape.vocabulary),
    ):
        for name in names:
            if name in said and said[name] != count:
                yield f"{name} is {count}, model={cell.model.name} has {said[name]}"


def _layer_mismatches(cell: Cell, model: PreTrainedModel) -> Iterator[str]:
    want = cell.quant
    quantized, head = _quantized(model), model.get_output_embeddings()
    layer_class = SCHEMES[want.scheme].layer_class
    others = [
        m
        for m in _matrices(model)
        if m is not head and type(m).__name__ not in (layer_class, "Conv1D")
    ]
    if want.scheme != "none":
        others += [m for m in _matrices(model) if isinstance(m, Conv1D)]
    if others:
        yield f"{len(others)} layers are {type(others[0]).__name__}, want {layer_class}"
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if dtypes != {DTYPES[want.dtype]}:
        yield f"unquantized weights are {', '.join(sorted(map(str, dtypes)))}, want {want.dtype}"
    for module in quantized:
        found = _settings_in_force(module)
        wanted = {name: value for name, value in _wanted_settings(cell).items() if name in found}
        if found != wanted:
            yield f"a {type(module).__name__} layer has {found}, want {wanted}"
            break
    places = {tensor.device.type for tensor in _stored_tensors(model)}
    if places != {cell.device}:
        yield f"weights are on {', '.join(sorted(places))}, want {cell.device}"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        yield "accelerate put hooks into the forward pass"


def _settings_in_force(module: Any) -> dict[str, Any]:
    if type(module).__name__ == "Linear8bitLt":
        return {"threshold": module.state.threshold}
    state = module.weight.quant_state
    # bitsandbytes unnests the scales when it repacks for a CPU with AVX512-BF16, and remembers that
    # they were nested.
    nested = getattr(state, "original_nested", state.nested)
    return {
        "quant_type": state.quant_type,
        "double_quant": nested,
        "compute_dtype": module.compute_dtype,
    }


def _wanted_settings(cell: Cell) -> dict[str, Any]:
    return {
        "threshold": cell.quant.threshold,
        "quant_type": cell.quant.quant_type,
        "double_quant": cell.quant.double_quant,
        "compute_dtype": DTYPES.get(str(cell.quant.compute_dtype)),
    }


def _attention_mismatches(cell: Cell, found: Attestation) -> Iterator[str]:
    want, ran = cell.attn, found.attention_operators
    if found.attention != want.implementation:
        yield f"attention is {found.attention}, want {want.implementation}"
    sdpa = [name for name in ran if "scaled_dot_product" in name]
    if want.implementation == "sdpa" and not sdpa:
        yield f"scaled_dot_product_attention did not run; seen: {ran}"
    if want.implementation != "sdpa" and sdpa:
        yield f"want {want.implementation}, but {sdpa} ran"
    if want.implementation in ("flash_attention_2", "flash_attention_3") and not any(
        "flash_attn" in n for n in ran
    ):
        yield f"want {want.implementation}, but no operator of flash_attn ran"
    if want.backend is not None:
        taken = {
            name for name, operator in OPERATORS.items() if any(operator in each for each in sdpa)
        }
        if taken != {want.backend}:
            yield f"sdpa took {', '.join(sorted(taken)) or 'no known backend'}, want {want.backend}"
