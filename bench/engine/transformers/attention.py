"""Which attention kernel runs: pinning sdpa to one backend, and seeing which one was taken.

transformers chooses the implementation (eager, sdpa, flex, flash-attn); inside sdpa torch chooses a
backend per call, by device, dtype, shape and mask. A cell that names a backend must get that one or
fail, so the pin holds around every forward, warm-up included. ``enable_gqa`` inputs and masks rule
some backends out: torch then raises "No available kernel".
"""

import contextlib
from collections.abc import Iterator, Sequence

from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.config.cell import Attn

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}

# A part of the name of the operator that a backend dispatches to (ATen, native_functions.yaml of
# torch 2.13).
_OPERATORS = {
    "math": "_scaled_dot_product_attention_math",
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
}
_ATTENTION = ("scaled_dot_product", "flash_attn", "flex_attention")  # parts of operators' names


def pinned(attn: Attn) -> contextlib.AbstractContextManager[object]:
    """A context in which sdpa takes the cell's backend only; no-op where the cell names none."""
    if attn.backend is None:
        return contextlib.nullcontext()
    return sdpa_kernel(BACKENDS[attn.backend])


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
