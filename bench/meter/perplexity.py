"""Perplexity with overlapping windows: each token once, with as much context as its window leaves.

Disjoint windows (``bench.meter.divergence``) read the first tokens of each with hardly any context.
Here windows of 1,024 tokens, or of the model's positions where these are fewer, begin every 512,
and each scores what the one before has not: after the first window a token has at least 512 before
it (Hugging Face, Perplexity of fixed-length models). The last window ends with the text. It takes
about twice the work for the same text, and gives a lower number: the two are never compared.

The first token of a text is read and not scored, but for one that the tokenizer's mark precedes.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bench.config.cell import Cell
from bench.config.prompt_file import label_of, lines_of, own_texts
from bench.engine.protocol import Session
from bench.errors import CellFailure
from bench.meter.divergence import log_softmax
from bench.paths import TEXTS
from bench.record.measurement import Strided

WINDOW_TOKENS, STRIDE_TOKENS = 1024, 512


def read_with_stride(cell: Cell, session: Session) -> tuple[Strided, ...]:
    """Each text of the cell; none where that is not asked for, or without a tokenizer or logits.

    Raises:
        CellFailure: ``failed`` for logits that are not finite.
    """
    if not cell.quality.strided_perplexity or session.tokenizer is None:
        return ()
    begins = session.tokenizer.begins
    longest = min(WINDOW_TOKENS, session.context_tokens or WINDOW_TOKENS)
    stride = min(STRIDE_TOKENS, longest // 2)
    found = []
    for name, text, _ in texts_of(cell):
        ids = session.tokenizer.encode(text, special=False)[: cell.quality.text_tokens]
        read = [*begins, *ids]
        if len(read) < 2:
            continue
        nll_nats = 0.0
        for start, first, end in windows(len(read), longest, stride):
            nats = _nll_nats(session, read[start:end], first - start)
            if nats is None:
                return ()
            nll_nats += nats
        if not np.isfinite(nll_nats):
            raise CellFailure("failed", f"its logits on the text {name} are not finite numbers")
        scored = len(read) - 1
        found.append(Strided(name, longest, stride, scored, nll_nats / scored))
    return tuple(found)


def texts_of(cell: Cell) -> Iterator[tuple[str, str, bool]]:
    """What models read: name, text, and whether it was named as one, so that it has to fill a
    window. The prompts of a file, one after the other, are there without being named."""
    for name in cell.quality.texts:
        if name in TEXTS:
            yield name, TEXTS[name].read_text(encoding="utf-8"), True
    for path, content in own_texts(cell.quality):
        yield label_of(path), content.decode(), True
    if cell.workload.path is not None:
        prompts = "\n\n".join(line.text for line in lines_of(cell.workload))
        yield label_of(cell.workload.path), prompts, False


def windows(tokens: int, longest: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Of each window its first token, the first one that it scores, and the end."""
    scored = 1  # nothing stands before the first token
    for start in range(0, tokens, stride):
        end = min(start + longest, tokens)
        yield start, scored, end
        if end == tokens:
            return
        scored = end


def _nll_nats(session: Session, ids: Sequence[int], first: int) -> float | None:
    """Of the tokens from the ``first`` on, in sum."""
    rows = session.logits(np.array([ids[:-1]], dtype=np.int64))
    if rows is None:
        return None
    total, position = 0.0, 0
    for piece in rows[0]:
        skipped = max(0, first - 1 - position)
        following = np.array(ids[position + 1 + skipped : position + 1 + len(piece)])
        if len(following):
            likely = log_softmax(piece[skipped:])
            total -= float(likely[np.arange(len(following)), following].sum())
        position += len(piece)
    return total
