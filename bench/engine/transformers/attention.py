"""Which attention kernel runs: pinning sdpa to one backend, and seeing which one was taken.

transformers chooses the implementation (eager, sdpa, flex, flash-attn); inside sdpa torch chooses a
backend per call, by device, dtype, shape and mask. A cell that names a backend must get that one or
fail, so the pin holds around every forward, warm-up included. ``enable_gqa`` inputs and masks rule
some backends out: torch then raises "No available kernel".
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def attention_operators(names: set[str]) -> list[str]:
    """Those of the operators that ran which are about attention."""
    return sorted(name for name in names if any(part in name for part in _ATTENTION))


def attention_mismatches(attn: Attn, in_force: str, operators: Sequence[str]) -> Iterator[str]:
    """Why what ran is not the attention that the cell asks for.

    Args:
        in_force: the implementation that transformers says it uses.
        operators: of attention, that really ran.
    """
    if in_force != attn.implementation:
        yield f"attention is {in_force}, want {attn.implementation}"
    sdpa = [name for name in operators if "scaled_dot_product" in name]
    if attn.implementation == "sdpa" and not sdpa:
        yield f"scaled_dot_product_attention did not run; seen: {list(operators)}"
    if attn.implementation != "sdpa" and sdpa:
        yield f"want {attn.implementation}, but {sdpa} ran"
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
