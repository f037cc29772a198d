"""What a configuration does to a model's predictions, teacher-forced against the model as
published.

Both models read the same windows of a text, token by token as written, and at each position their
distributions over the next token are compared. Letting each write on its own would compare
different contexts after the first different token.

* KL(reference || cell) in nats: what the cell loses by believing its own distribution where the
  reference's is true.
* Top-1 agreement: share of positions where both models rank the same token first.
* NLL of the token that is really there, under both; perplexity is its exponential.

The reference (``bench.meter.reference``) is kept as its final hidden states and the head that makes
logits of them: exact and small, where the most likely tokens alone would give a lower bound. Logits
exist for a few positions at a time, in float64 from the head's product on. A sum of exact terms can
come out a little below 0: it is kept so.

"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from bench.engine.prompts import Ids
from bench.engine.protocol import Floats, Head, Session
from bench.errors import CellFailure
from bench.record.measurement import Choice, Divergence, Sample, Window

_POSITIONS = 16  # of which logits exist at once: 16 x 152k tokens x 8 bytes are 19 MB, a few times

Doubles = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Compared:
    """At each position of a window but the last. Shapes: (positions,)."""

    kl_nats: Doubles
    nll_nats: Doubles
    reference_nll_nats: Doubles
    same_first: Doubles  # 1 where both rank the same token first, else 0


def evaluate(session: Session, reference: Path) -> Divergence | None:
    """How far the loaded model is from the reference in that file; None if it shows no logits.

    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    with safe_open(reference, framework="numpy") as stored:
        about = json.loads(stored.metadata()["about"])
        names = set(stored.keys())
        bias = stored.get_tensor("bias") if "bias" in names else None
        head = Head(stored.get_tensor("head"), bias, about["scale"], about["cap"])
        all_ids, hidden = stored.get_slice("ids"), stored.get_slice("hidden")
        windows = []
        for index, window in enumerate(about["windows"]):
            ids: Ids = all_ids[index]
            rows = session.logits(ids[None])
            if rows is None:
                return None
            compared = compare(ids, rows[0], logits_of(head, hidden[index]))
            windows.append(_window(compared, window))
    answers = tuple(
        Sample(**{**each, "tokens": tuple(each["tokens"])}) for each in about["answers"]
    )
    choices = tuple(
        Choice(each["right"], tuple(each["log_likelihood_nats"])) for each in about["choices"]
    )
    return Divergence(
        about["reference"], about["begins_with_bos"], tuple(windows), answers, choices
    )


def logits_of(head: Head, hidden: Floats) -> Iterator[Floats]:
    """A few positions at a time. Shapes: hidden (n, hidden); gives (positions, vocabulary)."""
    for start in range(0, len(hidden), _POSITIONS):
        yield head.logits(hidden[start : start + _POSITIONS])


def compare(ids: Ids, ours: Iterator[Floats], theirs: Iterator[Floats]) -> Compared:
    """Ours against theirs (the reference) at each position but the last.

    Shapes: ids (n,); n - 1 positions come out, whatever the pieces of the two are.
    """
    parts: list[Doubles] = []
    position = 0
    for q_logits, p_logits in _in_step(ours, theirs):
        following = ids[position + 1 : position + 1 + len(q_logits)]
        count = len(following)  # the last position predicts a token that is not there
        if count:
            parts.append(_positions(following, q_logits[:count], p_logits[:count]))
        position += len(q_logits)
    return Compared(*np.concatenate(parts, axis=1))


def _positions(following: Ids, q_logits: Floats, p_logits: Floats) -> Doubles:
    """The four numbers of each position. Shapes: (4, positions)."""
    q, p = log_softmax(q_logits), log_softmax(p_logits)
    rows = np.arange(len(following))
    kl = np.einsum("ij,ij->i", np.exp(p), p - q)
    same = (p_logits.argmax(-1) == q_logits.argmax(-1)).astype(np.float64)
    return np.stack([kl, -q[rows, following], -p[rows, following], same])


def log_softmax(logits: Floats) -> Doubles:
    """Log-probabilities in float64. Shapes: (positions, vocabulary), both."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def _in_step(ours: Iterator[Floats], theirs: Iterator[Floats]) -> Iterator[tuple[Floats, Floats]]:
    """Pieces of equal length of both."""
    q = p = np.empty((0, 0), dtype=np.float32)
    while True:
        q = next(ours, q[:0]) if not len(q) else q
        p = next(theirs, p[:0]) if not len(p) else p
        count = min(len(q), len(p))
        if not count:
            return
        yield q[:count], p[:count]
        q, p = q[count:], p[count:]


def _window(compared: Compared, window: dict[str, Any]) -> Window:
    numbers = (compared.kl_nats, compared.nll_nats, compared.reference_nll_nats)
    if not all(np.isfinite(values).all() for values in numbers):
        raise CellFailure(
            "failed", f"its logits on the text {window['text']} are not finite numbers"
        )
    return Window(
        **window,
        tokens=len(compared.kl_nats),
        kl_nats=float(compared.kl_nats.mean()),
        kl_median_nats=float(np.quantile(compared.kl_nats, 0.5)),
        kl_p99_nats=float(np.quantile(compared.kl_nats, 0.99)),
        top1_agreement=float(compared.same_first.mean()),
        nll_nats=float(compared.nll_nats.mean()),
        reference_nll_nats=float(compared.reference_nll_nats.mean()),
    )
