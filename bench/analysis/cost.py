"""What a forward pass has to move and to compute, and how near a measured time is to that floor.

Decoding makes one new token a sequence and reads every weight for it once, whatever the batch; on
top it reads each sequence's KV cache. The input embedding is a table look-up of a few rows and is
left out, unless it is tied to the head, which reads all of it.

Two things bound a forward pass from below: the bytes that it has to read over the memory's
bandwidth, and the operations that it has to do over the rate of matrix products. The longer of the
two is the *floor*. Prefill reads the weights once for all tokens of the prompt and sits on the
second bound; a decode step reads them for one token of each sequence and sits on the first, until
the batch is large. Floor over time is the share of the machine that was used.

Peaks come from a data sheet (``mbu``: nothing can be above it) or were measured on this machine
(``bw_attained``: the best that simple kernels did here, and another kernel may do better). Bytes
and operations are the least that the arithmetic needs: copies of a growing cache, masks computed in
full and weights unpacked to memory come on top, so a low share is a question, not an answer.
"""

from bench.record.result import Attestation, Peaks


def kv_bytes(model: Attestation, context_tokens: float, batch: int) -> float:
    """The KV cache of ``batch`` sequences as stored. Layers with a sliding window keep no more than
    the window."""
    windows = [window for window in model.shape.sliding_windows if window != 0]
    kept = sum(_within(window, context_tokens) for window in windows)
    return batch * model.kv_bytes_per_token * kept / len(windows) if windows else 0.0


def weight_bytes_per_step(model: Attestation) -> int:
    """Weights that one decode step reads, at any batch."""
    return model.weight_bytes - model.gathered_bytes


def step_bytes(model: Attestation, context_tokens: float, batch: int) -> float:
    """Least bytes that one decode step reads."""
    return weight_bytes_per_step(model) + kv_bytes(model, context_tokens, batch)


def forward_flops(model: Attestation, prompt_tokens: int, batch: int) -> float:
    """Operations of a prefill whose logits are wanted at the last position only; a multiply-add
    counts as two.

    Causal attention: token i looks at i tokens, or at the window of its layer. Norms, softmax and
    the rest are left out. All experts of a mixture count, so there it is too much.
    Source: PaLM (arXiv 2204.02311), appendix B, without the backward pass and with half of the
    attention's square.
    """
    pairs = sum(
        _causal_pairs(prompt_tokens, prompt_tokens if window is None else window)
        for window in model.shape.sliding_windows
    )
    return batch * (
        2 * model.matmul_weights * prompt_tokens
        + _head_flops(model)
        + _attention_flops(model, pairs)
    )


def step_flops(model: Attestation, context_tokens: float, batch: int) -> float:
    """Operations of one decode step of the whole batch, each sequence with ``context_tokens`` in
    its cache."""
    pairs = sum(_within(window, context_tokens) for window in model.shape.sliding_windows)
    return batch * (2 * model.matmul_weights + _head_flops(model) + _attention_flops(model, pairs))


def _within(window: int | None, context_tokens: float) -> float:
    """Tokens that a layer's cache keeps."""
    return context_tokens if window is None else min(window, context_tokens)


def _causal_pairs(tokens: int, window: int) -> int:
    """Pairs of query and key in one layer."""
    within = min(tokens, window)
    return within * (within + 1) // 2 + (tokens - within) * window


def _head_flops(model: Attestation) -> int:
    return 2 * model.shape.hidden * model.shape.vocabulary


def _attention_flops(model: Attestation, pairs: float) -> float:
    """Of each pair and head a product with K and one with V."""
    return 4 * model.shape.heads * model.shape.head_dim * pairs


def bandwidth_share(peaks: Peaks, step_bytes: float, tpot_s: float) -> float:
    """Share of the read bandwidth that a decode step used.

    Above 1 is a bug where the peak is a data sheet's: it is of another device, or the bytes are
    counted wrongly.
    """
    return step_bytes / tpot_s / peaks.read_bytes_s


def mfu(peaks: Peaks, flops: float, seconds: float, dtype: str) -> float | None:
    """Share of the peak rate of ``dtype`` that was used, of a prefill with its TTFT; None where
    that peak is unknown."""
    peak = peaks.flops.get(dtype)
    return None if peak is None else flops / seconds / peak


def floor_s(
    step_bytes: float, flops: float, read_bytes_s: float, peak_flops: float | None
) -> float:
    """The least time: reading and computing overlap, so the longer of the two. An unknown peak
    bounds nothing."""
    return max(step_bytes / read_bytes_s, flops / peak_flops if peak_flops else 0.0)


def ceiling_tok_s(peaks: Peaks, step_bytes: float, flops: float, batch: int, dtype: str) -> float:
    """Tokens/s of the whole batch that decoding cannot exceed on this device."""
    return batch / floor_s(step_bytes, flops, peaks.read_bytes_s, peaks.flops.get(dtype))
