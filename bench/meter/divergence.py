"""What a configuration does to a model's predictions: teacher-forced on a text, against the model
as published.

Both models read the same windows of a text, token by token as written, and at each position their
distributions over the next token are compared. Letting each write on its own would compare
different contexts after the first different token.

* KL(reference || cell) in nats: what the cell loses by believing its own distribution where the
  reference's is true.
* Top-1 agreement: how often both expect the same token most.
* NLL of the token that is really there, under both; perplexity is its exponential.

The reference (``bench.meter.reference``) is kept as its final hidden states and the head that makes
logits of them: exact and small, where the most likely tokens alone would give a lower bound. Logits
exist for ``_POSITIONS`` positions at a time, in float64 from the head's product on. A sum of exact
terms can come out a little below 0: it is kept so.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from bench.config.cell import Cell
from bench.engine.transformers.attention import pinned
from bench.engine.transformers.load import Subject, release_heap
from bench.errors import CellFailure
from bench.record.measurement import Divergence, Sample, Window

# Of which logits exist at once: 16 positions x 152k tokens x 8 bytes are 19 MB, a few times over
_POSITIONS = 16

Head = Callable[[torch.Tensor], torch.Tensor]  # (positions, hidden) -> (positions, vocabulary)


@dataclass(frozen=True, slots=True)
class Compared:
    """Of each position of a window but the last. Shapes: (positions,) float64."""

    kl_nats: "np.ndarray[Any, np.dtype[np.float64]]"
    nll_nats: "np.ndarray[Any, np.dtype[np.float64]]"
    reference_nll_nats: "np.ndarray[Any, np.dtype[np.float64]]"
    # 1 where both expect the same token most, else 0
    same_first: "np.ndarray[Any, np.dtype[np.float64]]"


def evaluate(cell: Cell, subject: Subject, reference: str) -> Divergence:
    """How far the loaded model is from the reference in that file, window by window.

    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    model, device = subject.model, subject.model.device
    with safe_open(reference, framework="pt") as stored, torch.inference_mode(), pinned(cell.attn):
        about = json.loads(stored.metadata()["about"])
        has_bias = "bias" in set(stored.keys())
        their_head = linear_head(
            stored.get_tensor("head").to(device),
            stored.get_tensor("bias").to(device) if has_bias else None,
        )
        ids, hidden = stored.get_slice("ids"), stored.get_slice("hidden")
        windows = []
        for index, said in enumerate(about["windows"]):
            tokens = ids[index].to(device)
            ours = final_hidden(model, tokens[None])[0]
            found = compare(
                tokens, ours, model.get_output_embeddings(), hidden[index].to(device), their_head
            )
            windows.append(_window(found, said))
            release_heap()  # int8's products leave 10 MB of holes in the heap with each window
    answers = tuple(
        Sample(**{**each, "tokens": tuple(each["tokens"])}) for each in about["answers"]
    )
    return Divergence(about["reference"], about["begins_with_bos"], tuple(windows), answers)


def final_hidden(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What the head makes logits of. Shapes: ids (rows, tokens); returns (rows, tokens, hidden)."""
    hidden: torch.Tensor = model.base_model(ids, use_cache=False).last_hidden_state
    return hidden


def linear_head(weight: torch.Tensor, bias: torch.Tensor | None) -> Head:
    """A head that is kept as its tensors. Shapes: weight (vocabulary, hidden), bias
    (vocabulary,)."""
    return lambda hidden: nn.functional.linear(hidden, weight, bias)


def compare(
    tokens: torch.Tensor, ours: torch.Tensor, our_head: Head, theirs: torch.Tensor, their_head: Head
) -> Compared:
    """Ours against theirs (the reference) at each position but the last.

    Shapes: tokens (n,) int64; ours, theirs (n, hidden); n - 1 positions come out.
    """
    parts = []
    for span in _spans(len(tokens) - 1):
        q = our_head(ours[span]).double().log_softmax(-1)  # (positions, vocabulary)
        p = their_head(theirs[span]).double().log_softmax(-1)
        following = tokens[span.start + 1 : span.stop + 1, None]
        kl = (p.exp() * (p - q)).sum(-1)
        same = (p.argmax(-1) == q.argmax(-1)).double()
        parts.append(
            torch.stack(
                [kl, -q.gather(-1, following)[:, 0], -p.gather(-1, following)[:, 0], same]
            ).cpu()
        )
    return Compared(*torch.cat(parts, dim=1).numpy())


def _spans(positions: int) -> Iterator[slice]:
    for start in range(0, positions, _POSITIONS):
        yield slice(start, min(start + _POSITIONS, positions))


def _window(found: Compared, said: dict[str, Any]) -> Window:
    if not all(
        np.isfinite(values).all()
        for values in (found.kl_nats, found.nll_nats, found.reference_nll_nats)
    ):
        raise CellFailure("failed", f"its logits on the text {said['text']} are not finite numbers")
    return Window(
        **said,
        tokens=len(found.kl_nats),
        kl_nats=float(found.kl_nats.mean()),
        kl_median_nats=float(np.quantile(found.kl_nats, 0.5)),
        kl_p99_nats=float(np.quantile(found.kl_nats, 0.99)),
        top1_agreement=float(found.same_first.mean()),
        nll_nats=float(found.nll_nats.mean()),
        reference_nll_nats=float(found.reference_nll_nats.mean()),
    )
