"""Which of four continuations a model holds to be a text's own: items of a shipped set.

An answer is the continuation with the largest log-likelihood given its context, the sum over its
tokens, as lm-evaluation-harness's ``acc`` has it. All four of an item have equally many bytes, so
its ``acc_norm``, which divides by them, chooses the same. A continuation's tokens are those of
context and continuation together from the first one on that is not the context's own: a tokenizer
may well cut across the place where they meet.

Rows of similar length are read together. A shorter one is filled up on its right, where a causal
model does not look from the positions that count.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from bench.config.cell import Cell
from bench.engine.prompts import Tokenizer
from bench.engine.protocol import Floats, Session
from bench.errors import CellFailure
from bench.meter.divergence import log_softmax
from bench.paths import CHOICE_SETS
from bench.record.measurement import Choice

_TOKENS_AT_ONCE = 1024  # filled up ones included


@dataclass(frozen=True, slots=True)
class Row:
    """A context with one of its continuations."""

    ids: tuple[int, ...]
    start: int  # the continuation's first token


def choose(cell: Cell, session: Session) -> tuple[Choice, ...]:
    """The choices of a loaded model; none without a set, a tokenizer, or logits.

    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    if cell.quality.choices is None or session.tokenizer is None:
        return ()
    lines = CHOICE_SETS[cell.quality.choices].read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    rows = [
        row_of(session.tokenizer, item["context"], continuation)
        for item in items
        for continuation in item["continuations"]
    ]
    likelihoods: dict[int, float] = {}
    for group in _together(rows):
        found = _log_likelihoods(session, [rows[index] for index in group])
        if found is None:
            return ()
        likelihoods |= zip(group, found, strict=True)
    if not np.isfinite(list(likelihoods.values())).all():
        raise CellFailure("failed", "its logits on multiple-choice items are not finite numbers")
    nats = iter(likelihoods[index] for index in range(len(rows)))
    return tuple(
        Choice(item["right"], tuple(next(nats) for _ in item["continuations"])) for item in items
    )


def row_of(tokenizer: Tokenizer, context: str, continuation: str) -> Row:
    """As the model reads it, the tokenizer's mark first."""
    alone = tokenizer.encode(context, special=False)
    whole = tokenizer.encode(context + continuation, special=False)
    pairs = zip(alone, whole, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Row((*tokenizer.begins, *whole), max(1, len(tokenizer.begins) + shared))


def _together(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Which rows are read at once, the shortest first."""
    group: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].ids)):
        if group and (len(group) + 1) * len(rows[index].ids) > _TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(index)
    yield group


def _log_likelihoods(session: Session, rows: Sequence[Row]) -> list[float] | None:
    """Of each row's continuation, in nats."""
    read = [row.ids[:-1] for row in rows]  # nobody asks what comes after the last token
    ids = np.zeros((len(rows), max(map(len, read))), dtype=np.int64)
    for index, of_row in enumerate(read):
        ids[index, : len(of_row)] = of_row
    logits = session.logits(ids)
    if logits is None:
        return None
    return [_of_row(row, pieces) for row, pieces in zip(rows, logits, strict=True)]


def _of_row(row: Row, pieces: Iterator[Floats]) -> float:
    """Shapes: pieces of (positions, vocabulary), from the first position on."""
    total, position = 0.0, 0
    predicting = range(row.start - 1, len(row.ids) - 1)  # a position predicts the token after it
    for piece in pieces:
        first = max(predicting.start, position)
        last = min(predicting.stop, position + len(piece))
        if first < last:
            following = row.ids[first + 1 : last + 1]
            likely = log_softmax(piece[first - position : last - position])
            total += float(likely[np.arange(last - first), following].sum())
        position += len(piece)
        if position >= predicting.stop:
            break
    return total
