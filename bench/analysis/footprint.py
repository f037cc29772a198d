"""How many bytes a cell will need, from its architecture alone, before anything is loaded.

A model is a short list of matrices whose sizes follow from a few numbers of its configuration.
Quantization replaces the matrices inside the layers and leaves embedding, norms, biases and head in
the cell's dtype. On top of the weights come the KV cache, known exactly, and what prefill needs
while it runs, of which only an upper estimate is possible: kernels and allocators differ. So
``weight_bytes + kv_bytes`` is what a cell needs at least, ``total_bytes`` what is enough for it.
What is really there afterwards is counted in ``bench.engine.transformers.attest``.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.config.cell import Cell, estimated_tokens

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

# bitsandbytes 0.50.2, functional.py: weights that share a 4-bit scale, scales that share a nested
# one, table entries.
_BLOCK_WEIGHTS, _NESTED_BLOCK_SCALES, _CODE_ENTRIES, _NESTED_CODE_ENTRIES = 64, 256, 16, 256


@dataclass(frozen=True, slots=True)
class Footprint:
    """Predicted needs of one cell. Units: bytes."""

    weight_bytes: int  # parameters, buffers and quantization state
    kv_bytes: int  # the cache of the whole batch at the last token
    activation_bytes: int  # upper estimate of what prefill holds besides
    load_peak_bytes: int  # the weights and one unquantized matrix

    @property
    def least_bytes(self) -> int:
        """No run of this cell needs less, but for a few percent of 4-bit weights on a CPU (see
        ``predict``)."""
        return self.weight_bytes + self.kv_bytes

    @property
    def total_bytes(self) -> int:
        """Enough for loading and for running, which follow each other."""
        return max(self.load_peak_bytes, self.least_bytes + self.activation_bytes)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix product of every layer, which quantization replaces."""

    outputs: int
    inputs: int
    has_bias: bool = False

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


@dataclass(frozen=True, slots=True)
class Layout:
    """A decoder as the arithmetic sees it. Counts, but for ``buffer_bytes``."""

    matrices: tuple[Matrix, ...]  # of one layer
    plain_weights: int  # of the whole model: embeddings, norms, and the head unless it is tied
    buffer_bytes: int
    vocabulary: int
    hidden: int
    intermediate: int
    mlp_copies: int  # tensors of the MLP's inner size that are alive together
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]  # one entry a layer; None attends to all

    @property
    def largest_matrix_weights(self) -> int:
        return max(self.vocabulary * self.hidden, *(matrix.weights for matrix in self.matrices))


def predict(cell: Cell) -> Footprint | None:
    """The needs of a resolved cell; None for an architecture that is not known here.

    4-bit weights on a CPU: bitsandbytes repacks them at their first use where the CPU has
    AVX512-BF16, which halves plain scales and expands nested ones; the larger of before and after
    is taken, as both have to fit.
    """
    layout = layout_of(cell.model.architecture)
    if layout is None:
        return None
    weight_bytes = stored_bytes(layout, cell, repacked=False)
    if cell.device == "cpu":
        weight_bytes = max(weight_bytes, stored_bytes(layout, cell, repacked=True))
    prompt_tokens = cell.workload.prompt_tokens or estimated_tokens(cell.workload.prompt or "")
    return Footprint(
        weight_bytes=weight_bytes,
        kv_bytes=_kv_bytes(layout, cell, prompt_tokens + cell.workload.new_tokens - 1),
        activation_bytes=_activation_bytes(layout, cell, prompt_tokens),
        load_peak_bytes=weight_bytes
        + layout.largest_matrix_weights * DTYPE_BYTES[cell.quant.dtype],
    )


def max_batch(cell: Cell, available_bytes: int) -> int | None:
    """The largest batch of this resolved cell whose ``total_bytes`` fit; 0 if not even one row
    does, None if unknown."""
    if predict(cell) is None:
        return None

    def total_bytes(batch: int) -> int:
        footprint = predict(replace(cell, batch=batch))
        assert footprint is not None
        return footprint.total_bytes

    # A row takes a byte and more
    return bisect_right(range(1, available_bytes + 1), available_bytes, key=total_bytes)


def layout_of(architecture: Mapping[str, Any]) -> Layout | None:
    """The matrices of an architecture; None for an unknown ``model_type`` or where a size is left
    to its default."""
    known = LAYOUTS.get(architecture["model_type"])
    if known is None:
        return None
    sizes, layout = known
    return (
        layout(architecture)
        if all(isinstance(architecture.get(size), int) for size in sizes)
        else None
    )


def stored_bytes(layout: Layout, cell: Cell, repacked: bool) -> int:
    """Weights, buffers and quantization state. ``repacked``: 4-bit weights in bitsandbytes' format
    for AVX512-BF16."""
    size = DTYPE_BYTES[cell.quant.dtype]
    of_a_layer = sum(
        _matrix_bytes(matrix.weights, matrix.outputs, cell, repacked)
        + matrix.outputs * size * matrix.has_bias
        for matrix in layout.matrices
    )
    return len(layout.windows) * of_a_layer + layout.plain_weights * size + layout.buffer_bytes


def _matrix_bytes(weights: int, outputs: int, cell: Cell, repacked: bool) -> int:
    if cell.quant.scheme == "none":
        return weights * DTYPE_BYTES[cell.quant.dtype]
    if cell.quant.scheme == "bnb_int8":
        return weights + 4 * outputs  # a scale in fp32 for each output
    blocks = -(weights // -_BLOCK_WEIGHTS)
    code = 4 * _CODE_ENTRIES
    if repacked:
        # Bf16, not nested any more; the mean is left behind
        scales = 2 * blocks + 4 * cell.quant.double_quant
    elif cell.quant.double_quant:
        # Scales in a byte, scales of those in fp32, their table, and the mean that was taken off.
        scales = blocks + 4 * -(blocks // -_NESTED_BLOCK_SCALES) + 4 * _NESTED_CODE_ENTRIES + 4
    else:
        scales = 4 * blocks
    return -(weights // -2) + code + scales


def _kv_bytes(layout: Layout, cell: Cell, tokens: int) -> int:
    """As ``cost.kv_bytes``: keys and values of every layer, no further back than its window."""
    kept = sum(min(window or tokens, tokens) for window in layout.windows)
    return cell.batch * kept * _kv_bytes_per_token(layout, cell)


def _kv_bytes_per_token(layout: Layout, cell: Cell) -> int:
    """Of one layer and one sequence."""
    return 2 * layout.kv_heads * layout.head_dim * DTYPE_BYTES[cell.quant.dtype]


def _activation_bytes(layout: Layout, cell: Cell, prompt_tokens: int) -> int:
    """What prefill holds besides weights and cache: the stream, the largest of its stages, what the
    scheme needs.

    Upper estimate for ``logits_to_keep=1``. Fused attention kernels keep no scores; eager and
    sdpa's math do, for all pairs of tokens.
    Source: which tensors are alive together was read in transformers 5.23.0 and adjusted to the
    peaks of torch's CPU allocator (2 x 512 tokens of smollm2-135m and GPT-2): there it is 1.0 to
    1.9 times the peak.
    """
    size = DTYPE_BYTES[cell.quant.dtype]
    rows = cell.batch * prompt_tokens
    # Residual, its norm, a product's output, and what callers still refer to
    stream = 6 * rows * layout.hidden * size
    # int8 products are made in int32 and scaled in fp32: three such tensors are alive on a CPU.
    mlp = (
        rows
        * layout.intermediate
        * (layout.mlp_copies * size + 12 * (cell.quant.scheme == "bnb_int8"))
    )
    # Rotary embedding makes copies
    attention = 3 * rows * (layout.heads + 2 * layout.kv_heads) * layout.head_dim * size
    if cell.attn.implementation == "eager" or cell.attn.backend == "math":
        # A score in fp32 and its softmax, beside what it was cast from; the mask; keys and values
        # repeated for each head.
        attention += cell.batch * prompt_tokens**2 * (layout.heads * (8 + size * (size < 4)) + size)
        attention += 2 * rows * layout.heads * layout.head_dim * size
    # Which copies them to fp32
    logits = cell.batch * layout.vocabulary * (size + 4 * (cell.decode.loop == "generate"))
    # transformers cuts a sliding window's cache to a view: the whole prompt stays until the first
    # decode step (5.23.0, DynamicSlidingWindowLayer.update; seen in the size of the storage,
    # 2026-11-23).
    beyond_windows = sum(
        max(0, prompt_tokens - (window or prompt_tokens)) for window in layout.windows
    )
    return (
        stream
        + max(mlp, attention, logits)
        + cell.batch * beyond_windows * _kv_bytes_per_token(layout, cell)
        + _workspace_bytes(layout, cell)
    )


def _workspace_bytes(layout: Layout, cell: Cell) -> int:
    """What a quantized product needs once, of the largest matrix."""
    largest = max(matrix.weights for matrix in layout.matrices)
    if cell.quant.scheme == "none":
        return 0
    if cell.quant.scheme == "bnb_int8":
        # Without AVX-512 the product is made of fp32 copies
        return 4 * largest * (cell.device == "cpu")
    # Repacked; or unpacked
    return largest * (8 if cell.device == "cpu" else DTYPE_BYTES[str(cell.quant.compute_dtype)])


def _gated(a: Mapping[str, Any]) -> Layout:
    """Llama and its relatives: rotary positions, a gated MLP, RMS norms, grouped keys and
    values."""
    hidden, inner, vocabulary = a["hidden_size"], a["intermediate_size"], a["vocab_size"]
    heads, kv_heads, layers = (
        a["num_attention_heads"],
        a["num_key_value_heads"],
        a["num_hidden_layers"],
    )
    head_dim = a.get("head_dim") or hidden // heads
    output_bias = bool(a.get("attention_bias", False))
    input_bias = output_bias or a["model_type"] == "qwen2"
    mlp_bias = bool(a.get("mlp_bias", False))
    matrices = (
        Matrix(heads * head_dim, hidden, input_bias),
        Matrix(kv_heads * head_dim, hidden, input_bias),
        Matrix(kv_heads * head_dim, hidden, input_bias),
        Matrix(hidden, heads * head_dim, output_bias),
        Matrix(inner, hidden, mlp_bias),
        Matrix(inner, hidden, mlp_bias),
        Matrix(hidden, inner, mlp_bias),
    )
    tables = 1 if a.get("tie_word_embeddings", False) else 2
    return Layout(
        matrices=matrices,
        plain_weights=tables * vocabulary * hidden + (2 * layers + 1) * hidden,
        buffer_bytes=2 * (head_dim // 2) * 4,  # rotary frequencies, twice, always fp32
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=inner,
        mlp_copies=3,  # gate, up, and their product
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        windows=_windows(a, layers),
    )


def _windows(a: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """As transformers' configuration classes fill them in: Mistral slides unless told not to, Qwen2
    only if told to."""
    window: int | None = a.get("sliding_window", 4096)
    if a["model_type"] == "mistral":
        return (window,) * layers
    if a["model_type"] == "qwen2" and a.get("use_sliding_window", False):
        full: int = min(layers, a.get("max_window_layers", 28))
        return (None,) * full + (window,) * (layers - full)
    return (None,) * layers


def _gpt2(a: Mapping[str, Any]) -> Layout:
    """GPT-2: learned positions, biases everywhere, layer norms with two vectors each, keys and
    values for every head."""
    hidden, vocabulary, heads, layers = a["n_embd"], a["vocab_size"], a["n_head"], a["n_layer"]
    inner = a.get("n_inner") or 4 * hidden
    tables = 1 if a.get("tie_word_embeddings", True) else 2
    return Layout(
        matrices=(
            Matrix(3 * hidden, hidden, True),
            Matrix(hidden, hidden, True),
            Matrix(inner, hidden, True),
            Matrix(hidden, inner, True),
        ),
        plain_weights=(tables * vocabulary + a["n_positions"]) * hidden
        + (2 * layers + 1) * 2 * hidden,
        buffer_bytes=0,
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=inner,
        mlp_copies=4,  # its GELU is written out in Python, with a tensor for each term
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        windows=(None,) * layers,
    )


_GATED_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# model_type -> the sizes that its architecture has to give, and how they become a layout.
LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Layout]]] = {
    "llama": (_GATED_SIZES, _gated),
    "mistral": (_GATED_SIZES, _gated),
    "qwen2": (_GATED_SIZES, _gated),
    "gpt2": (("vocab_size", "n_positions", "n_embd", "n_head", "n_layer"), _gpt2),
}
