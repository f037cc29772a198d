"""Pinning torch's scaled_dot_product_attention to one backend.

transformers chooses the implementation (eager, sdpa, flex, flash-attn); inside sdpa torch chooses a
backend per call, by device, dtype, shape and mask. A cell that names a backend must get that one or
fail, so the pin holds around every forward, warm-up included. ``enable_gqa`` inputs and masks rule
some backends out: torch then raises "No available kernel".
"""

import contextlib

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
OPERATORS = {
    "math": "_scaled_dot_product_attention_math",
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
}


def pinned(attn: Attn) -> contextlib.AbstractContextManager[object]:
    """A context in which sdpa takes the cell's backend only; no-op where the cell names none."""
    return (
        sdpa_kernel(BACKENDS[attn.backend])
        if attn.backend is not None
        else contextlib.nullcontext()
    )
