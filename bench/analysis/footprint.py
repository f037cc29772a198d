"""How many bytes a cell will need, from its model's description, before anything is loaded.

Weights and cache are counts of what the engine has described. On top comes what prefill needs while
it runs, of which only an upper estimate is possible: kernels and allocators differ. So
``weight_bytes + kv_bytes`` is what a cell needs at least, ``total_bytes`` what is enough for it.
What is really there afterwards is counted by the attestation.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace

from bench.config.cell import Cell
from bench.record.description import Description


@dataclass(frozen=True, slots=True)
class Footprint:
    """Predicted needs of one cell. Units: bytes."""

    weight_bytes: int  # parameters, buffers and quantization state
    kv_bytes: int  # the cache of the whole batch at the last token
    activation_bytes: int  # upper estimate of what prefill holds besides
    load_peak_bytes: int  # the weights and one unquantized matrix

    @property
    def least_bytes(self) -> int:
        """No run of this cell needs less."""
        return self.weight_bytes + self.kv_bytes

    @property
    def total_bytes(self) -> int:
        """Enough for loading and for running, which follow each other."""
        return max(self.load_peak_bytes, self.least_bytes + self.activation_bytes)


def predict(cell: Cell, description: Description) -> Footprint:
    """The needs of a resolved cell, whose model under its quantization this describes."""
    prompt_tokens = cell.workload.least_prompt_tokens
    weight_bytes = description.weight_bytes
    return Footprint(
        weight_bytes=weight_bytes,
        kv_bytes=_kv_bytes(description, cell.rows, prompt_tokens + cell.workload.new_tokens - 1),
        activation_bytes=_activation_bytes(cell, description, prompt_tokens),
        load_peak_bytes=weight_bytes + description.largest_matrix_bytes,
    )


def max_batch(cell: Cell, description: Description, available_bytes: int) -> int:
    """The largest batch whose ``total_bytes`` fit; 0 if not even one row does. The cell's own batch
    does not matter, and may be ``max``."""
    return max_size(replace(cell, batch="max"), description, available_bytes)


def max_size(cell: Cell, description: Description, available_bytes: int) -> int:
    """The largest number for the ``max`` of a cell whose ``total_bytes`` fit; 0 if not even 1
    does."""

    def total_bytes(size: int) -> int:
        return predict(cell.sized(size), description).total_bytes

    # A row or a token takes a byte and more
    most = min(longest_prompt(cell, description) or available_bytes, available_bytes)
    return bisect_right(range(1, most + 1), available_bytes, key=total_bytes)


def longest_prompt(cell: Cell, description: Description | None) -> int | None:
    """The most tokens that ``workload.prompt_tokens=max`` can be, with the answer in the model's
    context; None for any other cell, and where the context is not known."""
    if description is None or cell.workload.prompt_tokens != "max":
        return None
    positions = description.context_tokens
    return None if positions is None else max(1, positions - cell.workload.new_tokens)


def _kv_bytes(description: Description, rows: int, tokens: int) -> int:
    """As ``cost.kv_bytes``: keys and values of every layer, no further back than its window."""
    kept = sum(tokens if w is None else min(w, tokens) for w in description.windows)
    return rows * kept * description.kv_bytes_per_token_layer


def _activation_bytes(cell: Cell, description: Description, prompt_tokens: int) -> int:
    """What prefill holds besides weights and cache: the stream, the largest of its stages, what the
    scheme needs.

    Upper estimate for logits of the last position alone. Fused attention kernels keep no scores;
    the others do, for all pairs of tokens.
    Source: which tensors are alive together was read in transformers 5.23.0 and adjusted to the
    peaks of torch's CPU allocator (2 x 512 tokens of smollm2-135m and GPT-2): there it is 1.0 to
    1.9 times the peak.
    """
    size = description.dtype_bytes
    rows = cell.rows * prompt_tokens
    # Residual, its norm, a product's output, and what callers still refer to
    stream = 6 * rows * description.hidden * size
    number_bytes = description.mlp_copies * size + description.product_bytes
    mlp = rows * description.intermediate * number_bytes
    # Which copies them to fp32
    logits_bytes = size + 4 * (cell.decode.strategy == "generate")
    logits = cell.rows * description.vocabulary * logits_bytes
    attention = _attention_bytes(cell, description, prompt_tokens)
    return (
        stream
        + max(mlp, attention, logits)
        + _beyond_windows_bytes(description, cell.rows, prompt_tokens)
        + description.workspace_bytes
    )


def _attention_bytes(cell: Cell, description: Description, prompt_tokens: int) -> int:
    size, heads = description.dtype_bytes, description.heads
    rows = cell.rows * prompt_tokens
    # Rotary embedding makes copies
    heads_bytes = 3 * rows * (heads + 2 * description.kv_heads) * description.head_dim * size
    if not _keeps_scores(cell, description, prompt_tokens):
        return heads_bytes
    # A score in fp32 and its softmax, beside what it was cast from; the mask; keys and values
    # repeated for each head.
    scores = cell.rows * prompt_tokens**2 * (heads * (8 + size * (size < 4)) + size)
    return heads_bytes + scores + 2 * rows * heads * description.head_dim * size


def _keeps_scores(cell: Cell, description: Description, prompt_tokens: int) -> bool:
    """Eager attention does, and sdpa's math kernel, which sdpa takes where no other one can."""
    if cell.attn.implementation != "sdpa":
        return cell.attn.implementation == "eager"
    if cell.attn.backend is not None:
        return cell.attn.backend == "math"
    return description.sdpa_kernels_for(prompt_tokens) == {"math"}


def _beyond_windows_bytes(description: Description, rows: int, prompt_tokens: int) -> int:
    """transformers cuts a sliding window's cache to a view: the whole prompt stays until the first
    decode step (5.23.0, DynamicSlidingWindowLayer.update; seen in the size of the storage,
    2026-11-23)."""
    beyond = sum(max(0, prompt_tokens - w) for w in description.windows if w)
    return rows * beyond * description.kv_bytes_per_token_layer
