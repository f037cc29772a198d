"""A model in llama.cpp behind the ``Session`` protocol.

A llama.cpp context has a fixed room for its sequences, made before the first token. So ``ready``
makes the one that the timed requests use, of exactly their length; answers and logits get contexts
of their own. A request is one ``llama_decode`` of all rows' prompts, with the logits of their last
positions only, and then one for each further token of all rows; the greedy choice is numpy's argmax
over the logits, 0.02 ms for 49,152 of them. The clock is read when a token of every row has been
chosen. The end of sequence is ignored, as in every timed request of this project.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.config.cell import Cell, Quality, Quant
from bench.engine.clock import Clock, HostClock
from bench.engine.llama_cpp.attest import attest
from bench.engine.llama_cpp.files import tensors_of
from bench.engine.llama_cpp.native import Context, Model
from bench.engine.llama_cpp.types import kv_type
from bench.engine.prompts import Ids, load_tokenizer
from bench.engine.protocol import Files, Floats, Head
from bench.record.measurement import PhaseProfile, Profile, TaskScore
from bench.record.result import Attestation

_POSITIONS = 16  # of which logits exist at once


class LlamaSession:
    """Requests, answers and logits of one model."""

    def __init__(self, cell: Cell, files: Files) -> None:
        assert files.folder is not None, "random weights are skipped"
        assert files.packed is not None, "provide has the file"
        self.cell = cell
        self.tokenizer = load_tokenizer(cell.model, files.folder)
        self.tensors = tensors_of(cell)
        self.model = Model(files.packed)
        self.vocabulary = self.model.vocabulary
        self.context_tokens: int | None = self.model.context_tokens
        self.ends = self.model.ends
        self.fused = True
        self.context: Context | None = None

    def _context(self, rows: int, tokens: int, piece: int, everywhere: bool = False) -> Context:
        threads, kv = int(self.cell.threads), kv_type(self.cell)
        return Context(self.model, threads, rows, tokens, piece, everywhere, self.fused, kv)

    def ready(self, ids: Ids, new_tokens: int) -> None:
        self._room(ids, new_tokens)

    def _room(self, ids: Ids, new_tokens: int) -> Context:
        """The context of timed requests, large enough for one of these shapes."""
        rows, prompt = ids.shape
        tokens, context = prompt + new_tokens, self.context
        if (
            context is None
            or context.rows != rows
            or context.tokens < tokens
            or context.piece < prompt
        ):
            self.context = context = None  # the old one's memory first
            self.context = context = self._context(rows, tokens, prompt)
        return context

    def clock(self, new_tokens: int) -> Clock:
        return HostClock()

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        context = self._room(ids, new_tokens)
        tokens = np.empty((len(ids), new_tokens), dtype=np.int64)
        clock.start()
        context.clear()
        tokens[:, 0] = context.read(ids).argmax(-1)
        clock.token()
        for step in range(1, new_tokens):
            tokens[:, step] = context.read(tokens[:, step - 1 : step]).argmax(-1)
            clock.token()
        return tokens

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        context = self._context(1, longest + most, longest)
        return [self._answer(context, prompt, most) for prompt in prompts]

    def _answer(self, context: Context, prompt: list[int], most: int) -> list[int]:
        context.clear()
        answer: list[int] = []
        unread = prompt
        while len(answer) < most and not (answer and answer[-1] in self.ends):
            answer.append(int(context.read(np.array([unread])).argmax()))
            unread = answer[-1:]
        return answer

    def hidden(self, ids: Ids) -> Floats:
        raise NotImplementedError("llama.cpp shows logits; its hidden states are not asked for")

    def head(self) -> Head | None:
        return None

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        return [self._pieces(row) for row in ids]

    def _pieces(self, row: Ids) -> Iterator[Floats]:
        """Each row in a context of its own, so that rows may be read in any order."""
        context = self._context(1, len(row), _POSITIONS, everywhere=True)
        for start in range(0, len(row), _POSITIONS):
            yield context.read(row[None, start : start + _POSITIONS]).copy()

    def alternative(self) -> None:
        self.fused, self.context = False, None

    def tasks(self, quality: Quality, seed: int) -> tuple[TaskScore, ...]:
        return ()

    def attest(self, ids: Ids, new_tokens: int) -> Attestation:
        context = self._room(ids, new_tokens)
        return attest(self.cell, context, self.tensors, self.request, ids, new_tokens)

    def exchange(self, quants: Mapping[str, Quant]) -> None:
        return None

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        return None, None

    def profile_step(self, ids: Ids) -> PhaseProfile | None:
        return None

    def profile(self, ids: Ids, new_tokens: int, trace: Path) -> Profile | None:
        return None
