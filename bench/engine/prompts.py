"""Token ids for a batch: exactly as many as asked, never padded, no two rows alike.

Padding would need an attention mask, which costs a synchronisation and rules out kernels; equal
rows would let a cache or a mixture of experts look better than it is. So a text is read as a ring
of tokens and row ``r`` starts ``r`` equal steps along it: cut where the text is longer than the
prompt, extended by going around where it is shorter.
"""

import torch
from transformers import PreTrainedTokenizerBase

from bench.config.cell import Cell, estimated_tokens
from bench.errors import CellFailure
from bench.paths import TEXTS


def prompt_ids(
    cell: Cell, tokenizer: PreTrainedTokenizerBase | None, vocabulary: int
) -> torch.Tensor:
    """The batch of prompts. Shapes: (batch, prompt_tokens) int64 on the CPU.

    Raises:
        CellFailure: ``failed`` for a prompt with fewer tokens than the batch has rows.
    """
    workload = cell.workload
    if tokenizer is None:
        length = workload.prompt_tokens or estimated_tokens(workload.prompt or "")
        generator = torch.Generator().manual_seed(cell.seed)
        return torch.randint(0, vocabulary, (cell.batch, length), generator=generator)
    text = workload.prompt or TEXTS[str(workload.text)].read_text(encoding="utf-8")
    ring = torch.tensor(tokenizer(text, verbose=False).input_ids)
    if len(ring) < cell.batch:
        raise CellFailure(
            "failed",
            f"the prompt has {len(ring)} tokens: {cell.batch} rows of it would not all differ",
        )
    length = workload.prompt_tokens or len(ring)
    step = max(1, len(ring) // cell.batch)
    rows = torch.arange(cell.batch)[:, None] * step + torch.arange(length)[None, :]
    return ring[rows % len(ring)]
