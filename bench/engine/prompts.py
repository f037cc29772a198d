"""Token ids in, token ids out: one tokenizer for all engines, and prompts of exactly the length
asked.

Engines never see text, so two of them that run the same model get the same ids. The tokenizer is
transformers' (which needs no torch), or one token a byte for models that have no files.

Prompts are never padded and no two rows are alike: padding would need an attention mask, which
costs a synchronisation and rules out kernels; equal rows would let a cache or a mixture of experts
look better than it is. So a text is read as a ring of tokens and row ``r`` starts ``r`` equal steps
along it: cut where the text is longer than the prompt, extended by going around where it is
shorter. Of a file of prompts each is a ring: the rows take one after the other from its beginning,
and where there are more rows than prompts, each further time some steps along. Where no different
piece is left, as in a batch of thousands, a row is drawn by the cell's seed: from the ring's
tokens, and where these make no other row, from the vocabulary.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.config.cell import Cell, Model
from bench.config.prompt_file import Line, Message, in_bucket
from bench.errors import CellFailure
from bench.paths import TEXTS

# Of one kind or another, transformers.tokenization_utils_base: what none of these is in has none
_TOKENIZER_FILES = ("*token*", "vocab*", "merges.txt", "*.model")

_TRIES = 100  # of pieces, of which each is a row already: hardly another one is left

Ids = np.ndarray[Any, np.dtype[np.int64]]  # (rows, tokens), or (tokens,) of one row


class Tokenizer(Protocol):
    """Text to token ids and back."""

    begins: tuple[int, ...]  # what it sets before a text by itself

    def encode(self, text: str, special: bool) -> list[int]:
        """``special``: with the marks that it sets by itself."""

    def decode(self, ids: Sequence[int]) -> str:
        """Without special marks."""

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation by the model's template where it has one, else its contents as a text."""


class ByteTokenizer:
    """One token a byte: works on any text and needs no file."""

    begins: tuple[int, ...] = ()

    def encode(self, text: str, special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(each for each in ids if each < 256).decode(errors="replace")

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(_contents(messages), special=False)


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

    def chat(self, messages: Sequence[Message]) -> list[int]:
        if self.wrapped.chat_template is None:
            return self.encode(_contents(messages), special=True)
        text = self.wrapped.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return self.encode(text, special=False)


def _contents(messages: Sequence[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)


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
        CellFailure: ``failed`` for prompts of which not that many different rows can be made.
    """
    workload, rows = cell.workload, cell.rows
    if tokenizer is None:
        shape = rows, workload.least_prompt_tokens
        return np.random.default_rng(cell.seed).integers(0, vocabulary, shape)
    rings = [np.array(ids, dtype=np.int64) for ids in _encoded(cell, tokenizer)]
    largest = max(ring.max(initial=0) for ring in rings)
    if largest >= vocabulary:
        raise CellFailure(
            "failed",
            f"the tokenizer makes token {largest}, model={cell.model.name} has {vocabulary}:"
            " another model's tokenizer lies in its folder",
        )
    assert workload.prompt_tokens != "max", "it has been found before a cell runs"
    length = workload.prompt_tokens or min(map(len, rings))
    return _rows(rings, rows, length, vocabulary, np.random.default_rng(cell.seed))


def _rows(
    rings: Sequence[Ids], rows: int, length: int, vocabulary: int, random: np.random.Generator
) -> Ids:
    """Different pieces of the rings, all of this length; drawn after that."""
    chosen: dict[bytes, Ids] = {}
    rounds = -(-rows // len(rings))
    used_up: set[int] = set()  # rings of which hardly a piece is left that is no row
    for row in range(rows):
        which = row % len(rings)
        ring = rings[which]
        start = row // len(rings) * max(1, len(ring) // rounds)
        turns = (
            ring[(start + shift + np.arange(length)) % len(ring)]
            for shift in range(0 if which in used_up else min(_TRIES, len(ring)))
        )
        turn = next((turn for turn in turns if turn.tobytes() not in chosen), None)
        if turn is None:
            used_up.add(which)
            drawn = itertools.chain(
                (ring[random.integers(0, len(ring), length)] for _ in range(_TRIES)),
                (random.integers(0, vocabulary, length) for _ in range(_TRIES)),
            )
            turn = next((turn for turn in drawn if turn.tobytes() not in chosen), None)
        if turn is None:
            raise CellFailure(
                "failed",
                f"prompts of {length} tokens: {rows} rows of a vocabulary of {vocabulary} would"
                " not all differ",
            )
        chosen[turn.tobytes()] = turn
    return np.stack(list(chosen.values()))


def prompt_lengths(cell: Cell, tokenizer: Tokenizer | None) -> tuple[int, ...] | None:
    """Of each prompt of the file that a cell is timed with, its tokens before it is cut; None
    where there is no file or no tokenizer."""
    if cell.workload.path is None or tokenizer is None:
        return None
    return tuple(len(ids) for ids in _encoded(cell, tokenizer))


def _encoded(cell: Cell, tokenizer: Tokenizer) -> list[list[int]]:
    workload = cell.workload
    if workload.path is not None:
        return [line_ids(cell, line, tokenizer) for line in in_bucket(workload)]
    text = workload.prompt or TEXTS[str(workload.text)].read_text(encoding="utf-8")
    return [tokenizer.encode(text, special=True)]


def line_ids(cell: Cell, line: Line, tokenizer: Tokenizer) -> list[int]:
    """One prompt of a file, or of a set.

    Raises:
        CellFailure: ``failed`` where the model's chat template refuses its messages.
    """
    if line.prompt is not None:
        return tokenizer.encode(line.prompt, special=True)
    try:
        return tokenizer.chat(line.messages)
    except Exception as error:  # a template is code of the model's author
        raise CellFailure(
            "failed",
            f"the model's chat template does not take line {line.number} of the prompts:"
            f" {error_in_words(cell, error)}",
        ) from None


def error_in_words(cell: Cell, error: Exception) -> str:
    """What a tokenizer or its template raised, in a line; it may quote the prompt, so its kind
    alone where prompts are not to be stored."""
    kind = type(error).__name__
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{kind}: {first}" if cell.quality.store_prompts else kind
