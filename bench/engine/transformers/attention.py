"""Which attention kernel runs: pinning sdpa to one backend, packing the queries of decode steps,
and seeing what was taken.

transformers chooses the implementation (eager, sdpa, flex, flash-attn); inside sdpa torch chooses a
backend per call, by device, dtype, shape and mask. A cell that names a backend must get that one or
fail, so the pin holds around every forward, warm-up included. ``enable_gqa`` inputs and masks rule
some backends out: torch then raises "No available kernel".

With grouped queries several heads read the same keys and values. In a decode step each head has one
query, so those of a group can be the rows of one small matrix, which reads its keys and values once
(FlashAttention-3 calls it PackGQA). transformers does so where a mask is there, as with a static
cache (``pack_gqa``), but not in compiled steps. Else it leaves it to torch, whose kernel for CPUs
reads them anew for each head: 448 us a layer of SmolLM2-135M at 1,024 tokens in bf16, packed 69
(least of 30; 2 cores of an AMD EPYC with AVX-512, torch 2.13.0, 2026-11-27; sweeps/LOG.md).
``packs_queries`` packs wherever one query a head is asked for, in compiled steps too; only the
order of sums is another one. To the model it is sdpa: architectures compare that name to decide on
their masks.
Source: transformers 5.23.0, integrations/sdpa_attention.py.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.config.cell import Attn

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

_Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool, bool]
_TOKENS = 16  # of a prompt by which kernels are asked: none depends on the length

# A part of the name of the operator that a backend dispatches to (ATen, native_functions.yaml of
# torch 2.13).
_OPERATORS = {
    "math": "_scaled_dot_product_attention_math",
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
}
# Of flex_attention only that something compiled ran: nothing else of a plain model is compiled
_FLEX = ("flex_attention", "CompiledFxGraph")
_ATTENTION = ("scaled_dot_product", "flash_attn", *_FLEX)  # parts of operators' names
_NOT_PACKED = ("position_bias", "softcap", "cache")  # what a model may ask of sdpa besides


def packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, with the queries of a decode step packed.

    Shapes: query (rows, heads, tokens, width); key and value (rows, heads of keys, past, width);
    the mask (rows, 1 or heads, tokens, past); returns (rows, tokens, heads, width).
    """
    rows, heads, tokens, _ = query.shape
    has_more = any(options.get(name) is not None for name in _NOT_PACKED)
    is_for_each_head = attention_mask is not None and attention_mask.shape[1] > 1
    if tokens > 1 or has_more or is_for_each_head:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return output
    groups = query.reshape(rows, key.shape[1], heads // key.shape[1], -1)
    product = scaled_dot_product_attention(groups, key, value, attention_mask, scale=scaling)
    return product.reshape(rows, 1, heads, -1), None


@contextlib.contextmanager
def pinned(attn: Attn) -> Iterator[None]:
    """A context in which sdpa takes the cell's backend only, where it names one, and packs queries,
    where it asks for that."""
    backend = (
        contextlib.nullcontext() if attn.backend is None else sdpa_kernel(BACKENDS[attn.backend])
    )
    before = AttentionInterface().get_interface("sdpa", sdpa_attention_forward)
    AttentionInterface.register("sdpa", packed if attn.packs_queries else sdpa_attention_forward)
    try:
        with backend:
            yield
    finally:
        AttentionInterface.register("sdpa", before)


def sdpa_kernels(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: str, masked: bool
) -> tuple[str, ...]:
    """The backends of sdpa that take a model's attention on this device, in prefill and in decode.

    torch's own dispatcher is asked, with the arguments that transformers gives it: grouped queries
    as they are without a mask, else keys and values repeated for each head, in a decode step the
    queries folded onto the heads of the keys. On CUDA this makes a context.
    Source: transformers 5.23.0, integrations/sdpa_attention.py.
    """

    def zeros(rows: int, tokens: int) -> torch.Tensor:
        return torch.zeros(1, rows, tokens, head_dim, dtype=dtype, device=device)

    groups = heads // kv_heads
    past = _TOKENS + 1
    prefill: _Call
    step: _Call
    if masked:
        prefill_mask = torch.ones(1, 1, _TOKENS, _TOKENS, dtype=torch.bool, device=device)
        step_mask = torch.ones(1, 1, 1, past, dtype=torch.bool, device=device)
        prefill = zeros(heads, _TOKENS), zeros(heads, _TOKENS), prefill_mask, False, False
        step = zeros(kv_heads, groups), zeros(kv_heads, past), step_mask, False, False
    else:
        prefill = zeros(heads, _TOKENS), zeros(kv_heads, _TOKENS), None, True, groups > 1
        step = zeros(heads, 1), zeros(kv_heads, past), None, False, groups > 1
    return tuple(name for name in BACKENDS if all(_takes(name, *call) for call in (prefill, step)))


def _takes(
    backend: str,
    queries: torch.Tensor,
    keys: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    enable_gqa: bool,
) -> bool:
    try:
        with sdpa_kernel(BACKENDS[backend]):
            taken = torch._fused_sdp_choice(
                queries, keys, keys, mask, 0.0, is_causal, enable_gqa=enable_gqa
            )
    except RuntimeError:  # "No viable backend", or "No available kernel"
        return False
    return int(taken) == BACKENDS[backend].value


def queries_alone(events: Iterable[Any]) -> int:
    """How many calls of sdpa's kernels had one query a head, by a profile with shapes, which sees
    nothing within a CUDA graph."""
    calls = [event.shapes() for event in events if "::_scaled_dot_product" in event.name()]
    return sum(bool(shapes) and len(shapes[0]) == 4 and shapes[0][2] == 1 for shapes in calls)


def attention_operators(names: set[str]) -> list[str]:
    """Those of the operators that ran which are about attention."""
    return sorted(name for name in names if any(part in name for part in _ATTENTION))


def attention_mismatches(
    attn: Attn, in_force: str, operators: Sequence[str], alone: int
) -> Iterator[str]:
    """Why what ran is not the attention that the cell asks for.

    Args:
        in_force: the implementation that transformers says it uses.
        operators: of attention, that really ran.
        alone: the calls of sdpa with one query a head, of a prompt and an answer of several tokens.
    """
    if in_force != attn.implementation:
        yield f"attention is {in_force}, want {attn.implementation}"
    sdpa = [name for name in operators if "scaled_dot_product" in name]
    if attn.implementation == "sdpa" and not sdpa:
        yield f"scaled_dot_product_attention did not run; seen: {list(operators)}"
    if attn.implementation != "sdpa" and sdpa:
        yield f"want {attn.implementation}, but {sdpa} ran"
    if attn.packs_queries and alone:
        yield f"{alone} calls of sdpa in a decode step had one query a head, want them packed"
    is_flex = attn.implementation == "flex_attention"
    if is_flex and not any(part in name for name in operators for part in _FLEX):
        yield "want flex_attention, but nothing compiled ran"
    is_flash = attn.implementation in ("flash_attention_2", "flash_attention_3")
    if is_flash and not any("flash_attn" in name for name in operators):
        yield f"want {attn.implementation}, but no operator of flash_attn ran"
    if attn.backend is not None:
        taken = {
            backend
            for backend, operator in _OPERATORS.items()
            if any(operator in name for name in sdpa)
        }
        if taken != {attn.backend}:
            names = ", ".join(sorted(taken)) or "no known backend"
            yield f"sdpa took {names}, want {attn.backend}"


def attention_remarks(attn: Attn, operators: Sequence[str]) -> Iterator[str]:
    """What a person should know of the attention that ran."""
    if attn.backend is None and any(_OPERATORS["math"] in name for name in operators):
        yield (
            "sdpa took its math kernel, which keeps all scores: no fused kernel takes this model's"
            " shapes in this dtype here"
        )
