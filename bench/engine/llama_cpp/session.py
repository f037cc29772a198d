"""A model in llama.cpp behind the ``Session`` protocol.

A llama.cpp context has a fixed room for one sequence, made before the first token. So ``ready``
makes the one that the timed requests use, of exactly their length; answers and logits get contexts
of their own. A request is one ``llama_decode`` of the prompt, with the logits of its last position
only, and then one for each further token; the greedy choice is numpy's argmax over the logits, 0.02
ms for 49,152 of them. The end of sequence is ignored, as in every timed request of this project.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.config.cell import Cell, Quality, Quant
from bench.engine.llama_cpp.attest import attest
from bench.engine.llama_cpp.files import WEIGHTS
from bench.engine.llama_cpp.native import Context, Model
from bench.engine.prompts import Ids, load_tokenizer
from bench.engine.protocol import Clock, Floats, Head, HostClock
from bench.record.measurement import PhaseProfile, Profile, TaskScore
from bench.record.result import Attestation

_POSITIONS = 16  # of which logits exist at once


class LlamaSession:
    """Requests, answers and logits of one model."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        self.cell = cell
        self.tokenizer = load_tokenizer(cell.model, folder)
        self.model = Model(folder / WEIGHTS)
        self.vocabulary = self.model.vocabulary
        self.context_tokens: int | None = self.model.context_tokens
        self.ends = self.model.ends
        self.fused = True
        self.context: Context | None = None

    def _context(self, tokens: int, piece: int, outputs: int = 1) -> Context:
        threads = int(self.cell.threads)
        return Context(self.model, threads, tokens, piece, outputs, self.fused)

    def ready(self, ids: Ids, new_tokens: int) -> None:
        self._room(ids, new_tokens)

    def _room(self, ids: Ids, new_tokens: int) -> Context:
        """The context of timed requests, large enough for one of these shapes."""
        prompt, context = ids.shape[1], self.context
        if context is None or context.tokens < prompt + new_tokens or context.piece < prompt:
            self.context = context = None  # the old one's memory first
            self.context = context = self._context(prompt + new_tokens, prompt)
        return context

    def clock(self, new_tokens: int) -> Clock:
        return HostClock()

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        assert len(ids) == 1, "a batch is skipped"
        context = self._room(ids, new_tokens)
        tokens = np.empty(new_tokens, dtype=np.int64)
        clock.start()
        context.clear()
        tokens[0] = context.read(ids[0]).argmax()
        clock.token()
        for step in range(1, new_tokens):
            tokens[step] = context.read(tokens[step - 1 : step]).argmax()
            clock.token()
        return tokens[None]

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        context = self._context(longest + most, longest)
        return [self._answer(context, prompt, most) for prompt in prompts]

    def _answer(self, context: Context, prompt: list[int], most: int) -> list[int]:
        context.clear()
        answer: list[int] = []
        unread = prompt
        while len(answer) < most and not (answer and answer[-1] in self.ends):
            answer.append(int(context.read(np.array(unread)).argmax()))
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
        context = self._context(len(row), _POSITIONS, _POSITIONS)
        for start in range(0, len(row), _POSITIONS):
            yield context.read(row[start : start + _POSITIONS]).copy()

    def alternative(self) -> None:
        self.fused, self.context = False, None

    def tasks(self, quality: Quality, seed: int) -> tuple[TaskScore, ...]:
        return ()

    def attest(self, ids: Ids, new_tokens: int) -> Attestation:
        context = self._room(ids, new_tokens)
        return attest(self.cell, context, self.fused, self.request, ids, new_tokens)

    def exchange(self, quants: Mapping[str, Quant]) -> None:
        return None

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        return None, None

    def profile_step(self, ids: Ids) -> PhaseProfile | None:
        return None

    def profile(self, ids: Ids, new_tokens: int, trace: Path) -> Profile | None:
        return None
