"""What vLLM has in memory and what it ran, and whether that deserves the cell's name.

On a CPU vLLM moves plain weights into forms of its own (oneDNN's) and leaves tensors of no size
behind. So of plain weights bytes and counts are those of the folder's tensors in the dtype that
vLLM was told; the dtype is read off its configuration and off what stays visible, the embedding and
the norms; which product a layer calls is read off the layer. Packed layers stay visible and are
counted. What a token takes in the cache is read off the cache.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import vllm
from safetensors import safe_open
from vllm.model_executor.layers.linear import LinearBase

from bench.config.cell import Cell
from bench.engine.protocol import shape_mismatches
from bench.engine.vllm import kv_type
from bench.record.result import Attestation, ModelShape

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")  # parts of tensors' names
_HEAD = "lm_head"
# Ends of names beside a packed weight; its numbers before packing are in the last
_STATE = (".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape")


def attest(cell: Cell, folder: Path, config: Any, llm: Any, runner: Any) -> Attestation:
    """Facts about the loaded model after a request, and what mismatches the cell.

    Args:
        config: transformers' of the text model.
        runner: vLLM's, which holds the model and its cache.
    """
    settings = llm.llm_engine.vllm_config
    dtype: torch.dtype = settings.model_config.dtype
    layers = [module for module in runner.model.modules() if isinstance(module, LinearBase)]
    products = Counter(map(_product, layers))
    ((most, _),) = products.most_common(1)
    packed = [module for module in layers if hasattr(module, "scheme")]
    packed_bytes = sum(
        tensor.nbytes for module in packed for tensor in module.parameters(recurse=False)
    )
    weights = _weights(folder)
    plain = sum(math.prod(shape) for name, shape in weights.items() if name.endswith(".weight"))
    matrices = {name: math.prod(shape) for name, shape in weights.items() if len(shape) > 1}
    embedding = sum(n for name, n in matrices.items() if any(e in name for e in _EMBEDDINGS))
    head = sum(n for name, n in matrices.items() if _HEAD in name)
    shape = _shape(config)
    kv_bytes = _kv_bytes(runner.kv_caches, settings.cache_config)
    return Attestation(
        shape=shape,
        weight_bytes=packed_bytes + plain * dtype.itemsize,
        gathered_bytes=embedding * dtype.itemsize if head else 0,
        head_bytes=(head or embedding) * dtype.itemsize,
        logical_weights=sum(map(math.prod, weights.values())),
        matmul_weights=sum(matrices.values()) - embedding - head,
        kv_bytes_per_token=kv_bytes,
        executed_dtype="int8" if "Int8" in most else _NAMES[dtype],
        is_quantized=bool(packed),
        mismatches=(
            *_model_mismatches(cell, shape, runner.model, dtype, packed),
            *_setting_mismatches(cell, settings),
            *_kv_mismatches(cell, shape, kv_bytes, settings),
        ),
        details={
            "layers": dict(Counter(type(module).__name__ for module in layers)),
            "products": dict(products),
            "attention": sorted({type(a.impl).__name__ for a in _attentions(settings)}),
            "kv_cache": settings.cache_config.cache_dtype,
            "kv_cache_stored": str(runner.kv_caches[0].dtype).removeprefix("torch."),
            "kv_cache_tokens": settings.cache_config.num_gpu_blocks
            * settings.cache_config.block_size,
            "prefix_cache": settings.cache_config.enable_prefix_caching,
            "tokens_in_a_step": settings.scheduler_config.max_num_batched_tokens,
            "threads": torch.get_num_threads(),
            "vllm": vllm.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
    )


def _product(module: Any) -> str:
    """The function or kernel that a layer's product is."""
    scheme = getattr(module, "scheme", None)
    if scheme is not None:
        return type(getattr(scheme, "kernel", scheme)).__name__
    return str(module.cpu_linear.__code__.co_names[-1])


def _weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the folder's weights before they were packed, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            names = list(stored.keys())
            for name in names:
                if name.endswith(".weight_shape"):
                    shapes[name.removesuffix("_shape") + "_packed"] = tuple(
                        stored.get_tensor(name).tolist()
                    )
                elif not name.endswith((*_STATE, ".weight_packed")):
                    shapes[name] = tuple(stored.get_slice(name).get_shape())
    return shapes


def _shape(config: Any) -> ModelShape:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return ModelShape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=kv_heads(config),
        head_dim=head_dim(config),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        sliding_windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
    )


def head_dim(config: Any) -> int:
    """Width of a head of attention."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def kv_heads(config: Any) -> int:
    """Heads that have keys and values."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _kv_bytes(caches: list[torch.Tensor], cache: Any) -> int:
    tokens: int = cache.num_gpu_blocks * cache.block_size
    return sum(each.nbytes for each in caches) // tokens


def _attentions(settings: Any) -> list[Any]:
    return list(settings.compilation_config.static_forward_context.values())


def _model_mismatches(
    cell: Cell, shape: ModelShape, model: Any, dtype: torch.dtype, packed: list[Any]
) -> Iterator[str]:
    asked = cell.quant.dtype
    if cell.quant.scheme == "none" and _NAMES[dtype] != asked:
        yield f"vLLM runs {_NAMES[dtype]}, want {asked}"
    seen = Counter(_NAMES.get(p.dtype) for p in model.parameters() if p.is_floating_point())
    if cell.quant.scheme == "none" and set(seen) != {asked}:
        yield f"visible weights are {dict(seen)}, want {asked}"
    if (cell.quant.scheme == "checkpoint") != bool(packed):
        yield f"{len(packed)} layers are packed, quant={cell.quant.name} wants another model"
    if any(getattr(module, "use_w4a8", False) for module in packed):
        yield "4-bit weights are multiplied by activations in 8 bits, want 16"
    yield from shape_mismatches(cell, shape)


def _setting_mismatches(cell: Cell, settings: Any) -> Iterator[str]:
    if torch.get_num_threads() != cell.threads:
        yield f"vLLM runs {torch.get_num_threads()} threads, want {cell.threads}"
    if settings.cache_config.enable_prefix_caching:
        yield "prefixes are cached: a second prefill would be skipped"
    if settings.speculative_config is not None:
        yield "tokens are drafted, want none"
    if int(settings.compilation_config.mode or 0) != 0:
        yield f"vLLM compiles in mode {settings.compilation_config.mode}, want none"


def _kv_mismatches(cell: Cell, shape: ModelShape, found: int, settings: Any) -> Iterator[str]:
    asked, kept = kv_type(cell), settings.cache_config.cache_dtype
    if kept != asked:
        yield f"keys and values are {kept}, want {asked}"
    size = settings.model_config.dtype.itemsize if asked == "auto" else 1
    wanted = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    if found != wanted:
        yield f"a token takes {found} bytes in the KV cache, want {wanted}"
