"""What llama.cpp has in memory and what it ran, and whether that deserves the cell's name.

Sizes, counts and the file's type come from the library; which tensor has which type, from the
file's own table (both must add up to the same bytes and numbers). More than half of the layers'
weights must have the type that was asked for: K-quants take groups of 256, and where rows have no
multiple of that, llama.cpp stores another type under the same name. llama.cpp counts the tokens
that it reads: around one more request they must be those of the prompts and of each step, so
nothing was skipped by a cache or drafted. What a token takes in the KV cache is read off the growth
of a sequence's saved state.
"""

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp as c
import numpy as np

from bench.config.cell import Cell
from bench.engine.clock import Clock, Untimed
from bench.engine.llama_cpp.native import Context
from bench.engine.llama_cpp.types import FILE_TYPES, KV_TYPES, NATIVE, file_type, product_dtype
from bench.engine.prompts import Ids
from bench.engine.protocol import shape_mismatches
from bench.errors import CellFailure
from bench.record.result import Attestation, ModelShape

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_BULK = 0.5  # of the layers' weights, which have more than that in the type asked for
_POSITION_BYTES = 16  # at most, that a saved token takes besides keys and values


def attest(
    cell: Cell,
    context: Context,
    table: list[dict[str, Any]],
    request: Callable[[Ids, int, Clock], Ids],
    ids: Ids,
    new_tokens: int,
) -> Attestation:
    """Facts about the loaded model and one request, and what mismatches the cell.

    Args:
        table: of the file's tensors.
    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    context.read_counts()
    request(ids, new_tokens, Untimed())
    counts, observed = context.read_counts(), _kv_bytes(context, ids)
    pointer, shape, kv = context.model.pointer, _shape(context), KV_TYPES[context.kv]
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * kv.block_bytes // kv.block
    tensors = {tensor["name"]: tensor for tensor in table}
    matrices = [tensor for tensor in table if len(tensor["shape"]) > 1]
    layers: Counter[str] = Counter()  # their weights, by type
    for tensor in matrices:
        if tensor["name"] not in (_EMBEDDING, _HEAD):
            layers[tensor["type"]] += math.prod(tensor["shape"])
    ((most, _),) = layers.most_common(1)
    return Attestation(
        shape=shape,
        weight_bytes=c.llama_model_size(pointer),
        gathered_bytes=tensors[_EMBEDDING]["bytes"] if _HEAD in tensors else 0,
        head_bytes=tensors.get(_HEAD, tensors[_EMBEDDING])["bytes"],
        logical_weights=c.llama_model_n_params(pointer),
        matmul_weights=layers.total(),
        kv_bytes_per_token=kv_bytes,
        executed_dtype=product_dtype(most),
        is_quantized=product_dtype(most) == "int8",
        mismatches=(
            *_type_mismatches(cell, context, layers),
            *_model_mismatches(cell, context, shape, table),
            *_request_mismatches(cell, context, counts, _reads(ids, new_tokens)),
            *_kv_mismatches(kv_bytes, observed),
        ),
        details=_details(context, Counter(tensor["type"] for tensor in matrices)),
    )


def _reads(ids: Ids, new_tokens: int) -> tuple[int, int]:
    """Tokens that a request reads with others, and one by one, as llama.cpp counts them: from 1."""
    rows, prompt = ids.shape
    calls = [rows * prompt] + [rows] * (new_tokens - 1)  # nobody reads the last tokens
    together = sum(count for count in calls if count > 1)
    return max(1, together), max(1, calls.count(1))


def _details(context: Context, types: Counter[str]) -> dict[str, Any]:
    return {
        "layers": dict(types),
        "file_type": c.llama_model_ftype(context.model.pointer),
        "buffers": context.model.buffers,  # CPU_REPACK: packed anew for this processor
        "kv_cache": context.kv,
        "kv_cache_sequences": c.llama_n_seq_max(context.pointer),
        "kv_cache_tokens": c.llama_n_ctx(context.pointer),
        "flash_attention": context.fused,
        "mmap": False,
        "threads": c.llama_n_threads(context.pointer),
        "llama_cpp_python": c.__version__,
        "system": c.llama_print_system_info().decode().strip(),
    }


def _shape(context: Context) -> ModelShape:
    pointer = context.model.pointer
    layers, heads = c.llama_model_n_layer(pointer), c.llama_model_n_head(pointer)
    hidden = c.llama_model_n_embd(pointer)
    architecture = _metadata(pointer, "general.architecture")
    length = _metadata(pointer, f"{architecture}.attention.key_length")
    # llama.cpp tells one window and not which layers have it: it counts for all of them.
    window = c.llama_model_n_swa(pointer) or None
    return ModelShape(
        layers=layers,
        heads=heads,
        kv_heads=c.llama_model_n_head_kv(pointer),
        head_dim=hidden // heads if length is None else int(length),
        hidden=hidden,
        vocabulary=context.model.vocabulary,
        sliding_windows=(window,) * layers,
    )


def _metadata(pointer: Any, key: str) -> str | None:
    """A short value of the file's metadata."""
    text = ctypes.create_string_buffer(64)
    found = c.llama_model_meta_val_str(pointer, key.encode(), text, len(text))
    return None if found < 0 else text.value.decode()


def _kv_bytes(context: Context, ids: Ids) -> int:
    """By how much the saved sequence grows with a token."""
    context.clear()
    logits = context.read(ids[:1])
    if not np.isfinite(logits).all():
        raise CellFailure("failed", "the model's logits are not finite numbers")
    before = context.state_bytes()
    context.read(ids[:1, :1])
    return context.state_bytes() - before


def _type_mismatches(cell: Cell, context: Context, layers: Counter[str]) -> Iterator[str]:
    kind = file_type(cell.quant)
    if kind == NATIVE:
        return
    wanted, number = FILE_TYPES[kind], c.llama_model_ftype(context.model.pointer)
    if number != wanted.number:
        yield f"the file type is {number}, want {wanted.number} ({kind})"
    share = layers[wanted.tensor] / layers.total()
    if share <= _BULK:
        has = ", ".join(
            f"{count / layers.total():.0%} {name}" for name, count in layers.most_common()
        )
        yield (
            f"llama.cpp stored {share:.0%} of the layers' weights as {wanted.tensor}: {has}; where"
            " rows are no multiple of 256 long it takes no K-quants: want gguf_q8_0, gguf_q4_1 or"
            " gguf_q4_0"
        )


def _model_mismatches(
    cell: Cell, context: Context, shape: ModelShape, table: list[dict[str, Any]]
) -> Iterator[str]:
    pointer = context.model.pointer
    loaded = c.llama_model_size(pointer), c.llama_model_n_params(pointer)
    wanted = (
        sum(tensor["bytes"] for tensor in table),
        sum(math.prod(tensor["shape"]) for tensor in table),
    )
    if loaded != wanted:
        yield f"{loaded} bytes and numbers of weights are loaded, want {wanted}"
    yield from shape_mismatches(cell, shape)


def _request_mismatches(
    cell: Cell, context: Context, counts: tuple[int, int], wanted: tuple[int, int]
) -> Iterator[str]:
    if counts != wanted:
        yield f"{counts} tokens were read together and one by one, want {wanted}"
    for phase, threads in (
        ("decode", c.llama_n_threads(context.pointer)),
        ("prefill", c.llama_n_threads_batch(context.pointer)),
    ):
        if threads != cell.threads:
            yield f"{phase} runs {threads} threads, want {cell.threads}"


def _kv_mismatches(kv_bytes: int, observed: int) -> Iterator[str]:
    if not kv_bytes <= observed <= kv_bytes + _POSITION_BYTES:
        yield f"a token takes {observed} bytes in the KV cache, want {kv_bytes}"
