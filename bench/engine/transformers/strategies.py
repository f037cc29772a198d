"""The token loops that are timed: the code between two clock readings; nothing else runs there.

A strategy is a function, or a class where something is prepared once (``static``, ``compiled``) or
told afterwards (``lookup``).

``loop``: one prefill forward over the prompt, then one forward per new token, argmax on the device.
After the first token has reached the host nothing synchronises until the last. Exactly
``new_tokens`` tokens come out of it: the end of sequence is ignored. No attention mask is passed:
rows are never padded, a mask would cost a synchronisation, and a real one rules out the flash
kernels. ``logits_to_keep=1``: the head runs on the last position only.

``generate``: the same through Hugging Face's ``generate()``, timed from its streamer, which
receives each token on the host; that synchronises at each step, as its own check for the end does.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from bench.engine.clock import Clock


@dataclass(frozen=True, slots=True)
class Ran:
    """What a strategy knows of how its requests ran, for the attestation."""

    details: Mapping[str, Any] = field(default_factory=dict)
    mismatches: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class Strategy(Protocol):
    """One way of running requests with one model.

    Shapes: ids (rows, prompt_tokens) int64 on the CPU.
    """

    def prepare(self, ids: torch.Tensor, new_tokens: int) -> None:
        """Whatever is done once for requests of this shape. Not timed."""

    def run(self, prompt_ids: torch.Tensor, new_tokens: int, clock: Clock) -> torch.Tensor:
        """The greedy continuation of each row: (rows, new_tokens) on the device."""

    def ran(self) -> Ran:
        """How requests have run so far."""


class Plain:
    """A strategy that is a function of the model and a request."""

    def __init__(self, function: Callable[..., torch.Tensor], model: PreTrainedModel) -> None:
        self.function, self.model = function, model

    def prepare(self, ids: torch.Tensor, new_tokens: int) -> None:
        pass

    def run(self, prompt_ids: torch.Tensor, new_tokens: int, clock: Clock) -> torch.Tensor:
        return self.function(self.model, prompt_ids, new_tokens, clock)

    def ran(self) -> Ran:
        return Ran()


def new_cache(model: PreTrainedModel) -> dict[str, DynamicCache]:
    """An empty cache, by the name of the argument that the model's forward takes it under."""
    return {cache_argument(type(model).forward): DynamicCache(config=model.config)}


@functools.cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """The name under which a model's forward takes its cache: state space models have one of their
    own, and ignore the usual one without a word."""
    known = inspect.signature(forward).parameters
    names = ("past_key_values", "cache_params")
    return next((name for name in names if name in known), names[0])


def loop(
    model: PreTrainedModel, prompt_ids: torch.Tensor, new_tokens: int, clock: Clock
) -> torch.Tensor:
    """The greedy continuation of each row.

    Shapes: prompt_ids (batch, prompt_tokens) int64 on the CPU; returns (batch, new_tokens) on the
    device.
    """
    clock.start()
    ids = prompt_ids.to(model.device)
    cache = new_cache(model)
    logits = model(ids, **cache, use_cache=True, logits_to_keep=1).logits  # (batch, 1, vocabulary)
    token = logits[:, -1].argmax(-1, keepdim=True)  # (batch, 1)
    token.tolist()  # the only synchronisation before the last token
    clock.token()
    tokens = [token]
    for _ in range(new_tokens - 1):
        logits = model(token, **cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        clock.token()
        tokens.append(token)
    return torch.cat(tokens, dim=1)


def generate(
    model: PreTrainedModel, prompt_ids: torch.Tensor, new_tokens: int, clock: Clock
) -> torch.Tensor:
    """As ``loop``, through ``generate()``. Shapes: as ``loop``."""
    # Each is set because the model's own generation_config fills in what is left None (Qwen2.5
    # brings a penalty of 1.1).
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    clock.start()
    ids = prompt_ids.to(model.device)
    out: torch.Tensor = model.generate(
        ids,
        # Without one generate takes each id that equals the pad token for padding.
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        streamer=_Stamps(clock),
    )
    return out[:, prompt_ids.shape[1] :]


class _Stamps:
    """A streamer for ``generate()``: it is given the prompt, then each token, on the host."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.has_prompt = False

    def put(self, value: Any) -> None:
        if self.has_prompt:
            self.clock.token()
        self.has_prompt = True

    def end(self) -> None:
        pass
