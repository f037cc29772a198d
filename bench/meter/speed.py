"""Timing requests of one cell: the same fixed batch, over and over, with nothing else going on.

Warm-ups run the measured shapes in full: compilation, lazy loading, allocator growth and CPU frequency settle there.
The very first of them is the first request of the process and is kept as such. Every request gets a new KV cache;
between requests nothing is collected or emptied. Before each request the caller may pause (``before``): that is where
progress is shown, so that nobody prints while a token is being timed.
"""

from collections.abc import Callable

import torch

from bench.errors import CellFailure
from bench.meter.clock import clock
from bench.model.attn import pinned
from bench.model.decode import LOOPS
from bench.model.load import Subject
from bench.result import Repeat
from bench.spec import Cell


def time_requests(
    cell: Cell, subject: Subject, prompt_ids: torch.Tensor, count: int, before: Callable[[int], None]
) -> tuple[tuple[Repeat, ...], float | None]:
    """``count`` timed requests, and the largest disagreement of host and device clocks (None on a CPU).

    Shapes: prompt_ids (batch, prompt_tokens) on the CPU.
    Raises:
        CellFailure: when a reading is impossible.
    """
    decode, new_tokens = LOOPS[cell.decode.loop], cell.workload.new_tokens
    repeats: list[Repeat] = []
    mismatches: list[float] = []
    with pinned(cell.attn):
        for index in range(count):
            before(index)
            meter = clock(cell.device, new_tokens)
            tokens = decode(subject.model, prompt_ids, new_tokens, meter)
            repeat, mismatch = meter.read(new_tokens)
            if tokens.shape != (prompt_ids.shape[0], new_tokens):
                raise CellFailure("failed", f"{tuple(tokens.shape)} tokens came out, want {new_tokens} for each row")
            repeats.append(repeat)
            if mismatch is not None:
                mismatches.append(mismatch)
    return tuple(repeats), max(mismatches, default=None)
