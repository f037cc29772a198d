"""Token ids in, token ids out: one tokenizer for all engines, and prompts of exactly the length
asked.

Engines never see text, so two of them that run the same model get the same ids. The tokenizer is
transformers' (which needs no torch), or one token a byte for models that have no files.

Prompts are never padded and no two rows are alike: padding would need an attention mask, which
costs a synchronisation and rules out kernels; equal rows would let a cache or a mixture of experts
look better than it is. So a text is read as a ring of tokens and row ``r`` starts ``r`` equal steps
along it: cut where the text is longer than the prompt, extended by going around where it is
shorter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.config.cell import Cell, Model, estimated_tokens
from bench.errors import CellFailure
from bench.paths import TEXTS

# Of one kind or another, transformers.tokenization_utils_base: what none of these is in has none
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model")

Ids = np.ndarray[Any, np.dtype[np.int64]]  # (rows, tokens), or (tokens,) of one row


class Tokenizer(Protocol):
    """Text to token ids and back."""

    begins: tuple[int, ...]  # what it sets before a text by itself

    def encode(self, text: str, special: bool) -> list[int]:
        """``special``: with the marks that it sets by itself."""

    def decode(self, ids: Sequence[int]) -> str:
        """Without special marks."""

    def chat(self, prompt: str) -> list[int]:
        """A prompt as a user's turn where the model has a template for that, else as plain text."""


class ByteTokenizer:
    """One token a byte: works on any text and needs no file."""

    begins: tuple[int, ...] = ()

    def encode(self, text: str, special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(each for each in ids if each < 256).decode(errors="replace")

    def chat(self, prompt: str) -> list[int]:
        return self.encode(prompt, special=False)


class FileTokenizer:
    """The tokenizer in a model's folder, as transformers reads it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.wrapped: Any = AutoTokenizer.from_pretrained(folder)
        self.begins = tuple(self.wrapped("", add_special_tokens=True).input_ids[:1])

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.wrapped(text, add_special_tokens=special, verbose=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.wrapped.decode(ids, skip_special_tokens=True))

    def chat(self, prompt: str) -> list[int]:
        if self.wrapped.chat_template is None:
            return self.encode(prompt, special=True)
        turn = [{"role": "user", "content": prompt}]
        text = self.wrapped.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return self.encode(text, special=False)


def load_tokenizer(model: Model, folder: Path | None) -> Tokenizer | None:
    """The model's tokenizer; None for a folder that has none, and for random weights, whose
    tokenizer would have to be downloaded."""
    if model.tokenizer == "bytes":
        return ByteTokenizer()
    if folder is None or not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return None
    return FileTokenizer(folder)


def prompt_ids(cell: Cell, tokenizer: Tokenizer | None, vocabulary: int) -> Ids:
    """The batch of prompts of a resolved cell. Shapes: (batch, prompt_tokens).

    Raises:
        CellFailure: ``failed`` for a prompt with fewer tokens than the batch has rows.
    """
    workload, rows = cell.workload, cell.rows
    if tokenizer is None:
        length = workload.prompt_tokens or estimated_tokens(workload.prompt or "")
        return np.random.default_rng(cell.seed).integers(0, vocabulary, (rows, length))
    text = workload.prompt or TEXTS[str(workload.text)].read_text(encoding="utf-8")
    ring = np.array(tokenizer.encode(text, special=True), dtype=np.int64)
    if ring.max(initial=0) >= vocabulary:
        raise CellFailure(
            "failed",
            f"the tokenizer makes token {ring.max()}, model={cell.model.name} has {vocabulary}:"
            " another model's tokenizer lies in its folder",
        )
    if len(ring) < rows:
        raise CellFailure(
            "failed", f"the prompt has {len(ring)} tokens: {rows} rows of it would not all differ"
        )
    length = workload.prompt_tokens or len(ring)
    step = max(1, len(ring) // rows)
    places = np.arange(rows)[:, None] * step + np.arange(length)[None, :]
    prompts: Ids = ring[places % len(ring)]
    return prompts
