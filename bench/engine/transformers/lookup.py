"""``prompt_lookup``: guess the next tokens from what the text has said before, check all guesses in
one forward.

The last three tokens, or else the last two, are looked for earlier in prompt and answer; what
followed there most recently is the guess. One forward reads the newest token and the guess; the
model's own choice at each position decides how much of the guess stands, so that the greedy answer
is the plain loop's, up to ties that rounding decides otherwise. Answers that repeat their prompt
(summaries, edits, code) gain, free text does not. Batch 1: rows of a batch would advance by
different counts. Source: Saxena, Prompt Lookup Decoding, 2023.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from bench.engine.clock import Clock
from bench.engine.transformers.strategies import Ran, new_cache
from bench.errors import CellFailure

GUESS_TOKENS = 10
_NGRAMS = (3, 2)


class PromptLookup:
    """Requests that guess, and what has become of the guesses."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.guessed = self.right = 0

    def prepare(self, ids: Tensor, new_tokens: int) -> None:
        pass

    def run(self, prompt_ids: Tensor, new_tokens: int, clock: Clock) -> Tensor:
        """Shapes: prompt_ids (1, prompt_tokens); returns (1, new_tokens) on the device."""
        assert len(prompt_ids) == 1, "a batch is skipped"
        clock.start()
        prompt_tokens = prompt_ids.shape[1]
        known = np.empty(prompt_tokens + new_tokens, dtype=np.int64)
        known[:prompt_tokens] = prompt_ids[0].numpy()
        cache = self._cache()
        ids, count = prompt_ids.to(self.model.device), prompt_tokens
        logits = self.model(ids, **cache, use_cache=True, logits_to_keep=1).logits
        known[count] = int(logits[0, -1].argmax())
        count += 1
        clock.token()
        while count < len(known):
            most = min(GUESS_TOKENS, len(known) - count - 1)  # one more comes out than was guessed
            guess = continuation(known[:count], most)
            ids = torch.from_numpy(np.append(known[count - 1], guess))[None].to(self.model.device)
            chosen = self.model(ids, **cache, use_cache=True).logits[0].argmax(-1).cpu().numpy()
            right = int((chosen[:-1] == guess).cumprod().sum())
            for kept in cache.values():
                kept.crop(right - len(guess))
            known[count : count + right + 1] = chosen[: right + 1]
            count += right + 1
            self.guessed += len(guess)
            self.right += right
            clock.token(right + 1)
        return torch.from_numpy(known[None, prompt_tokens:]).to(self.model.device)

    def _cache(self) -> dict[str, DynamicCache]:
        cache = new_cache(self.model)
        for kept in cache.values():
            if not kept.is_croppable:
                raise CellFailure(
                    "skipped",
                    "decode=prompt_lookup takes wrong guesses back, which the cache of a"
                    f" {self.model.config.model_type} model does not allow",
                )
            kept.activate_past_recording()
        return cache

    def ran(self) -> Ran:
        share = self.right / self.guessed if self.guessed else 0.0
        return Ran({"guessed_tokens": self.guessed, "accepted_share": round(share, 4)})


def continuation(known: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` tokens that followed where the last ones stood before; empty where they are
    new. Shapes: known (tokens,)."""
    for size in _NGRAMS:
        if len(known) <= size:
            continue
        ends = np.lib.stride_tricks.sliding_window_view(known[:-1], size)
        (places,) = np.nonzero((ends == known[-size:]).all(1))
        if len(places):
            after = places[-1] + size
            return known[after : after + most]
    return known[:0]
