"""Overlapping windows: each token is scored once, with at least a stride of context."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench.config.cell import Cell
from bench.engine.prompts import ByteTokenizer, Ids
from bench.engine.protocol import Floats
from bench.engine.scripted import ScriptedSession
from bench.errors import CellFailure
from bench.meter.perplexity import read_with_stride, windows
from bench.paths import TEXTS
from tests import fakes
from tests.scripted import scripted


def asked(**quality: Any) -> Cell:
    changes = {"texts": ["alice"], "text_tokens": 2000, "strided_perplexity": True} | quality
    model = fakes.group("model", "tiny", weights="pretrained", path="/nowhere")
    return scripted(model=model, quality=fakes.group("quality", "samples", **changes))


class Marking(ByteTokenizer):
    """Sets a mark before each text."""

    begins = (7,)


class Remembering(ScriptedSession):
    """What follows depends on the byte before it alone; it remembers what it has read."""

    def __init__(self, cell: Cell, table: Floats | None) -> None:
        super().__init__(cell)
        self.table = table
        self.read: list[Ids] = []

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        self.read.append(ids[0])
        if self.table is None:
            return None
        return [iter(np.array_split(self.table[ids[0]], 5))]


@pytest.mark.parametrize("tokens", [2, 1023, 1024, 1025, 1536, 1537, 2000, 5000])
def test_each_token_but_the_first_is_scored_once_with_at_least_a_stride_before_it(
    tokens: int,
) -> None:
    scored: list[int] = []
    for start, first, end in windows(tokens, 1024, 512):
        assert end - start <= 1024
        assert start == 0 or first - start >= 512
        scored += range(first, end)
    assert scored == list(range(1, tokens))


def test_the_sum_is_over_every_token_whatever_the_windows() -> None:
    table = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    likely = table - np.log(np.exp(table.astype(np.float64)).sum(-1, keepdims=True))
    content = TEXTS["alice"].read_bytes()[:2000]
    wanted = -np.mean([likely[pair] for pair in itertools.pairwise(content)])
    cell = asked()
    session = Remembering(cell, table)
    (found,) = read_with_stride(cell, session)
    assert (found.text, found.tokens) == ("alice", 1999)
    assert (found.window_tokens, found.stride_tokens) == (1024, 512)
    assert found.nll_nats == pytest.approx(wanted)
    # Nobody asks what comes after the last one of a window
    assert [ids.tobytes() for ids in session.read] == [
        np.frombuffer(content[start:end], dtype=np.uint8).astype(np.int64).tobytes()
        for start, end in ((0, 1023), (512, 1535), (1024, 1999))
    ]


def test_a_model_of_fewer_positions_reads_shorter_windows() -> None:
    cell = asked(text_tokens=100)
    session = Remembering(cell, np.zeros((256, 256), dtype=np.float32))
    session.context_tokens = 64
    (found,) = read_with_stride(cell, session)
    assert (found.window_tokens, found.stride_tokens) == (64, 32)
    assert found.nll_nats == pytest.approx(np.log(256))
    assert max(map(len, session.read)) < 64


def test_after_the_tokenizers_mark_the_first_token_counts_too() -> None:
    cell = asked(text_tokens=100)
    session = Remembering(cell, np.zeros((256, 256), dtype=np.float32))
    session.tokenizer = Marking()
    (found,) = read_with_stride(cell, session)
    assert found.tokens == 100
    assert session.read[0][0] == 7


def test_where_it_is_not_asked_for_or_there_are_no_logits_nothing_is_read() -> None:
    cell = asked(strided_perplexity=False)
    session = Remembering(cell, None)
    assert read_with_stride(cell, session) == ()
    assert session.read == []
    assert read_with_stride(asked(), session) == ()
    session.tokenizer = None
    assert read_with_stride(asked(), session) == ()


def test_logits_that_are_no_numbers_are_failed() -> None:
    session = Remembering(asked(), np.full((256, 256), np.nan, dtype=np.float32))
    with pytest.raises(CellFailure, match="the text alice are not finite") as caught:
        read_with_stride(asked(), session)
    assert caught.value.status == "failed"
