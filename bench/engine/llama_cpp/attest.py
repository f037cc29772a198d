"""What llama.cpp has in memory and what it ran, and whether that deserves the cell's name.

Sizes, counts and the file's type come from the library; which tensor is which, from the list that
was written with the file (both must add up to the same bytes and numbers). llama.cpp counts the
tokens that it reads: around one more request they must be the prompt at once and then one by one,
so nothing was skipped by a cache or drafted. What a token takes in the KV cache is read off the
growth of the sequence's saved state.
"""

import ctypes
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp as c
import numpy as np

from bench.config.cell import Cell
from bench.engine.llama_cpp.files import TENSORS
from bench.engine.llama_cpp.native import KV_DTYPE_BYTES, Context
from bench.engine.prompts import Ids
from bench.engine.protocol import Clock, Untimed
from bench.errors import CellFailure
from bench.record.result import Attestation, ModelShape

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_POSITION_BYTES = 16  # at most, that a saved token takes besides keys and values


def attest(
    cell: Cell,
    context: Context,
    fused: bool,
    request: Callable[[Ids, int, Clock], Ids],
    ids: Ids,
    new_tokens: int,
) -> Attestation:
    """Facts about the loaded model and one request, and what mismatches the cell.

    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    context.read_counts()
    request(ids, new_tokens, Untimed())
    counts, observed = context.read_counts(), _kv_bytes(context, ids)
    pointer = context.model.pointer
    written = json.loads(context.model.file.with_name(TENSORS).read_text(encoding="utf-8"))
    tensors = {tensor["name"]: tensor for tensor in written}
    shape = _shape(context)
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * KV_DTYPE_BYTES
    matrices = {name: tensor for name, tensor in tensors.items() if len(tensor["shape"]) > 1}
    others = [matrices[name] for name in matrices if name not in (_EMBEDDING, _HEAD)]
    return Attestation(
        shape=shape,
        weight_bytes=c.llama_model_size(pointer),
        gathered_bytes=tensors[_EMBEDDING]["bytes"] if _HEAD in tensors else 0,
        head_bytes=tensors.get(_HEAD, tensors[_EMBEDDING])["bytes"],
        logical_weights=c.llama_model_n_params(pointer),
        matmul_weights=sum(math.prod(tensor["shape"]) for tensor in others),
        kv_bytes_per_token=kv_bytes,
        executed_dtype="fp16",
        is_quantized=False,
        mismatches=(
            *_model_mismatches(cell, context, shape, written),
            *_request_mismatches(cell, context, counts, (ids.shape[1], new_tokens - 1)),
            *_kv_mismatches(kv_bytes, observed),
        ),
        details=_details(context, fused, Counter(t["dtype"] for t in matrices.values())),
    )


def _details(context: Context, fused: bool, types: Counter[str]) -> dict[str, Any]:
    return {
        "layers": dict(types),
        "file_type": c.llama_model_ftype(context.model.pointer),
        "kv_cache": "f16",
        "kv_cache_tokens": c.llama_n_ctx(context.pointer),
        "flash_attention": fused,
        "mmap": False,
        "repacked_weights": False,
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
    logits = context.read(ids[0])
    if not np.isfinite(logits).all():
        raise CellFailure("failed", "the model's logits are not finite numbers")
    before = context.state_bytes()
    context.read(ids[0, :1])
    return context.state_bytes() - before


def _model_mismatches(
    cell: Cell, context: Context, shape: ModelShape, written: list[dict[str, Any]]
) -> Iterator[str]:
    pointer = context.model.pointer
    if c.llama_model_ftype(pointer) != c.LLAMA_FTYPE_MOSTLY_F16:
        yield f"the file type is {c.llama_model_ftype(pointer)}, want F16"
    loaded = c.llama_model_size(pointer), c.llama_model_n_params(pointer)
    wanted = (
        sum(tensor["bytes"] for tensor in written),
        sum(math.prod(tensor["shape"]) for tensor in written),
    )
    if loaded != wanted:
        yield f"{loaded} bytes and numbers of weights are loaded, want {wanted}"
    for name, count in (
        ("num_hidden_layers", shape.layers),
        ("hidden_size", shape.hidden),
        ("vocab_size", shape.vocabulary),
    ):
        asked = (cell.model.architecture or {}).get(name, count)
        if asked != count:
            yield f"{name} is {count}, model={cell.model.name} has {asked}"


def _request_mismatches(
    cell: Cell, context: Context, counts: tuple[int, int], wanted: tuple[int, int]
) -> Iterator[str]:
    if counts != wanted and sum(counts) != sum(wanted):
        yield f"{counts} tokens were read at once and one by one, want {wanted}"
    for phase, threads in (
        ("decode", c.llama_n_threads(context.pointer)),
        ("prefill", c.llama_n_threads_batch(context.pointer)),
    ):
        if threads != cell.threads:
            yield f"{phase} runs {threads} threads, want {cell.threads}"


def _kv_mismatches(kv_bytes: int, observed: int) -> Iterator[str]:
    if not kv_bytes <= observed <= kv_bytes + _POSITION_BYTES:
        yield f"a token takes {observed} bytes in the KV cache, want {kv_bytes}"
