"""What a decode step has to move: the arithmetic beside which measured times are read.

Decoding makes one new token a sequence and reads every weight for it once, whatever the batch; on
top it reads each sequence's KV cache. At small batches nothing else counts, so bytes / bandwidth is
a floor under the time of a step. The input embedding is a table look-up of a few rows and is left
out, unless it is tied to the head, which reads all of it. These are minimum bytes: copies of a
growing cache, or 4-bit weights that are unpacked to memory first, come on top.
"""

from bench.record.result import Attestation


def kv_bytes(found: Attestation, context_tokens: float, batch: int) -> float:
    """The KV cache of ``batch`` sequences as stored. Layers with a sliding window keep no more than
    the window."""
    per_layer = found.kv_bytes_per_token / found.shape.layers
    kept = sum(
        min(window or context_tokens, context_tokens) for window in found.shape.sliding_windows
    )
    return batch * per_layer * kept


def weight_bytes_per_step(found: Attestation) -> int:
    """Weights that one decode step reads, at any batch."""
    return found.weight_bytes - found.gathered_bytes


def step_bytes(found: Attestation, context_tokens: float, batch: int) -> float:
    """Least bytes that one decode step reads."""
    return weight_bytes_per_step(found) + kv_bytes(found, context_tokens, batch)
