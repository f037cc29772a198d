"""Which attention kernel runs: pinning sdpa to one backend, packing the queries of decode steps,
and seeing what was taken.

transformers chooses the implementation (eager, sdpa, flex, flash-attn); inside sdpa torch chooses a
backend per call, by device, dtype, shape and mask. A cell that names a backend must get that one or
fail, so the pin holds around every forward, warm-up included. ``enable_gqa`` inputs and masks rule
some backends out: torch then raises "No available kernel".

With grouped queries several heads read the same keys and values. In a decode step each head has one
query, so those of a group can be the rows of one small matrix, which reads its keys and values once
(FlashAttention-3 calls it PackGQA). transformers does so where a mask is there, as with a static
cache (``pack_gqa``), and else leaves it to torch, whose kernel for CPUs reads them anew for each
head: 448 us a layer of SmolLM2-135M at 1,024 tokens in bf16, packed 69 (least of 30; 2 cores of an
AMD EPYC with AVX-512, torch 2.13.0, 2026-11-27). ``sdpa_packed`` packs in every decode step, of
compiled ones too. No number is computed otherwise but for the order of sums.
Source: transformers 5.23.0, integrations/sdpa_attention.py.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
    the mask (rows, 1, tokens, past); returns (rows, tokens, heads, width).
    """
    rows, heads, tokens, _ = query.shape
    if tokens > 1:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return output
    groups = query.reshape(rows, key.shape[1], heads // key.shape[1], -1)
    product = scaled_dot_product_attention(groups, key, value, attention_mask, scale=scaling)
    return product.reshape(rows, 1, heads, -1), None


AttentionInterface.register("sdpa_packed", packed)
AttentionMaskInterface.register("sdpa_packed", sdpa_mask)


def pinned(attn: Attn) -> contextlib.AbstractContextManager[object]:
    """A context in which sdpa takes the cell's backend only; no-op where the cell names none."""
    if attn.backend is None:
        return contextlib.nullcontext()
    return sdpa_kernel(BACKENDS[attn.backend])


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


def heads_of_queries(events: Iterable[Any]) -> set[int]:
    """How many heads the queries of sdpa's calls had, by a profile with shapes."""
    calls = [event for event in events if "scaled_dot_product" in event.name()]
    return {call.shapes()[0][1] for call in calls if call.shapes() and len(call.shapes()[0]) == 4}


def attention_operators(names: set[str]) -> list[str]:
    """Those of the operators that ran which are about attention."""
    return sorted(name for name in names if any(part in name for part in _ATTENTION))


def attention_mismatches(
    attn: Attn, in_force: str, operators: Sequence[str], query_heads: Set[int], kv_heads: int
) -> Iterator[str]:
    """Why what ran is not the attention that the cell asks for.

    Args:
        in_force: the implementation that transformers says it uses.
        operators: of attention, that really ran.
        query_heads: of the calls of sdpa that a profile showed; it shows none within a CUDA graph.
        kv_heads: how many the cache has.
    """
    if in_force != attn.implementation:
        yield f"attention is {in_force}, want {attn.implementation}"
    sdpa = [name for name in operators if "scaled_dot_product" in name]
    if attn.is_sdpa and not sdpa:
        yield f"scaled_dot_product_attention did not run; seen: {list(operators)}"
    if not attn.is_sdpa and sdpa:
        yield f"want {attn.implementation}, but {sdpa} ran"
    is_packed = attn.implementation == "sdpa_packed"
    if is_packed and kv_heads not in query_heads and "cudaGraphLaunch" not in operators:
        yield f"no decode step packed its queries: sdpa got {sorted(query_heads)} heads of them"
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
