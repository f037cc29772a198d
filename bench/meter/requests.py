"""Timing requests of one cell: the same fixed batch, over and over, with nothing else going on.

Warm-ups run the measured shapes in full: compilation, lazy loading, allocator growth and CPU
frequency settle there. The very first of them is the first request of the process and is kept as
such. Every request gets a new KV cache; between requests nothing is collected or emptied. Before
each request the caller is asked whether to go on (``more``), and may show progress there, so that
nobody prints while a token is being timed. That nothing waits while decoding is checked, not
believed: ``decode_syncs`` counts, in a request that is not timed, what does.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from bench.config.cell import Cell
from bench.engine.transformers.attention import pinned
from bench.engine.transformers.load import Subject
from bench.engine.transformers.probes import clock
from bench.engine.transformers.strategies import LOOPS
from bench.errors import CellFailure
from bench.record.measurement import Repeat


def time_requests(
    cell: Cell, subject: Subject, prompt_ids: torch.Tensor, more: Callable[[Sequence[Repeat]], bool]
) -> tuple[tuple[Repeat, ...], float | None]:
    """Timed requests as long as ``more`` says so, and the largest disagreement of host and device
    clocks (None on a CPU).

    Shapes: prompt_ids (batch, prompt_tokens) on the CPU.
    Raises:
        CellFailure: when a reading is impossible.
    """
    decode, new_tokens = LOOPS[cell.decode.loop], cell.workload.new_tokens
    repeats: list[Repeat] = []
    mismatches: list[float] = []
    with pinned(cell.attn):
        while more(repeats):
            meter = clock(cell.device, new_tokens)
            tokens = decode(subject.model, prompt_ids, new_tokens, meter)
            repeat, mismatch = meter.read(new_tokens)
            if tokens.shape != (prompt_ids.shape[0], new_tokens):
                raise CellFailure(
                    "failed",
                    f"{tuple(tokens.shape)} tokens came out, want {new_tokens} for each row",
                )
            repeats.append(repeat)
            if mismatch is not None:
                mismatches.append(mismatch)
    return tuple(repeats), max(mismatches, default=None)


class _SyncWatch:
    """Reads no time: has torch warn of whatever waits for the device between the first token and
    the last."""

    def start(self) -> None:
        torch.cuda.synchronize()

    def first_token(self) -> None:
        torch.cuda.set_sync_debug_mode("warn")

    def token(self) -> None:
        pass


def decode_syncs(cell: Cell, model: PreTrainedModel, prompt_ids: torch.Tensor) -> int:
    """How many operations of one request on CUDA wait for the device after its first token.

    int8 with a threshold (is any activation above it?) and transformers' eager attention (its mask
    takes a scalar from the host) do so by design; torch sees its own operations only, not those of
    other libraries' kernels.
    """
    with warnings.catch_warnings(record=True) as caught, pinned(cell.attn):
        warnings.simplefilter("always")
        LOOPS[cell.decode.loop](model, prompt_ids, cell.workload.new_tokens, _SyncWatch())
        torch.cuda.set_sync_debug_mode("default")
    return sum(
        "called a synchronizing CUDA operation" in str(warning.message) for warning in caught
    )
