"""What a model is under one cell's quantization, before anything is loaded.

An engine describes a model once, in a process that ends afterwards; whatever is predicted of it
(memory, largest batch, whether a prompt fits its context, the share of the head) is then a pure
function of this plain data, for every architecture alike. What is really in memory is counted
later, by the attestation.
"""

from dataclasses import dataclass
from typing import Literal

MatrixKind = Literal["layer", "head", "embedding"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Matrices of the same name and shape in all layers, each with ``outputs * inputs`` weights.

    ``name`` has ``*`` in place of each index: ``model.layers.*.self_attn.q_proj``. Matrices of one
    name that differ in shape or in quantization are entries of their own.
    """

    name: str
    count: int
    outputs: int
    inputs: int
    kind: MatrixKind  # a table that is both embedding and head is an embedding
    stored_bytes: int  # of one, with its quantization state
    workspace_bytes: int  # that a product with one of them needs while it is made

    @property
    def weights(self) -> int:
        """Numbers in one of them, before quantization."""
        return self.outputs * self.inputs


@dataclass(frozen=True, slots=True)
class Description:
    """A model as the arithmetic sees it. Counts, where a name has no unit.

    ``windows`` has an entry for each layer, the tokens that its cache keeps: None for all of them,
    0 for a layer that keeps no keys and values (a recurrent one, or one that shares another's).
    """

    matrices: tuple[Matrix, ...]
    plain_bytes: int  # norms, biases, position tables: parameters that are no matrices
    buffer_bytes: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int  # width of the MLP's widest product
    mlp_copies: int  # tensors of that width that are alive together in prefill
    vocabulary: int
    windows: tuple[int | None, ...]
    context_tokens: int | None  # positions that it has; None: unlimited, or unknown
    is_tied: bool  # the head is the embedding
    dtype_bytes: int  # of a number in the dtype of everything that is not quantized
    kv_bytes_per_token_layer: int  # of one sequence, in a layer that keeps keys and values
    product_bytes: int  # that a quantized product takes beside each number of its result
    attention: tuple[str, ...]  # implementations that the architecture supports
    shares_keys: bool  # between heads
    # Backends of torch's sdpa that take its attention on this device, without a mask and with one
    sdpa_kernels: tuple[str, ...] = ()
    masked_sdpa_kernels: tuple[str, ...] = ()
    obstacle: str | None = None  # why its matrices cannot be quantized so on this machine

    def sdpa_kernels_for(self, tokens: int) -> set[str]:
        """Those that take every layer's attention to so many tokens: a layer with a window needs a
        mask from there on."""
        is_masked = {w is not None and w <= tokens for w in self.windows if w != 0}
        kernels = {False: self.sdpa_kernels, True: self.masked_sdpa_kernels}
        return set.intersection(*(set(kernels[each]) for each in is_masked or {False}))

    @property
    def weight_bytes(self) -> int:
        """Parameters, buffers and quantization state, as stored."""
        stored = sum(matrix.count * matrix.stored_bytes for matrix in self.matrices)
        return stored + self.plain_bytes + self.buffer_bytes

    @property
    def head_bytes(self) -> int:
        """The matrix that makes logits; tied, it is the embedding."""
        kind = "embedding" if self.is_tied else "head"
        return sum(m.count * m.stored_bytes for m in self.matrices if m.kind == kind)

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers, before quantization."""
        return sum(m.count * m.weights for m in self.matrices if m.kind == "layer")

    @property
    def largest_matrix_bytes(self) -> int:
        """The largest matrix before it is quantized."""
        return self.dtype_bytes * max((m.weights for m in self.matrices), default=0)

    @property
    def workspace_bytes(self) -> int:
        """What quantized products need, which follow each other."""
        return max((matrix.workspace_bytes for matrix in self.matrices), default=0)
