"""Multiple choice: the shipped items, and how a model's choices are read off its logits."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench.engine.prompts import ByteTokenizer, Ids
from bench.engine.protocol import Floats
from bench.engine.scripted import ScriptedSession
from bench.errors import CellFailure
from bench.meter.choices import choose, row_of
from bench.paths import CHOICE_SETS, TEXTS
from tests import choices, fakes
from tests.scripted import scripted

ITEMS: list[dict[str, Any]] = [
    json.loads(line) for line in CHOICE_SETS["shipped"].read_text(encoding="utf-8").splitlines()
]
ASKED = scripted(
    model=fakes.group("model", "tiny", weights="pretrained", path="/nowhere"),
    quality=fakes.group("quality", "none", choices="shipped"),
)


def test_what_is_shipped_is_what_the_texts_give() -> None:
    assert CHOICE_SETS["shipped"].read_text(encoding="utf-8") == choices.written()
    assert choices.written() == choices.written()
    assert len(ITEMS) == 256


@pytest.mark.parametrize("item", ITEMS[::16], ids=lambda item: item["context"][:20])
def test_one_continuation_is_the_texts_own(item: dict[str, Any]) -> None:
    text = TEXTS[item["text"]].read_text(encoding="utf-8")
    own = item["continuations"][item["right"]]
    assert item["context"] + own in re.sub("\n+", "\n", text)  # an empty line is no line of code


def test_the_others_differ_from_it_and_are_as_long_and_alike() -> None:
    for item in ITEMS:
        continuations = item["continuations"]
        assert len(set(continuations)) == 4, item
        assert len({len(each.encode()) for each in continuations}) == 1, item
        assert len({len(each) - len(each.lstrip()) for each in continuations}) == 1, item
        assert all(f"{item['context']}{each}"[: len(item["context"])] for each in continuations)
        assert not item["context"][-1].isspace()
    contexts = [(item["text"], item["context"]) for item in ITEMS]
    assert len(set(contexts)) == len(contexts)
    rights = [item["right"] for item in ITEMS]
    assert all(44 < rights.count(place) < 84 for place in range(4))


class Reading(ScriptedSession):
    """After a byte b it expects each byte c in proportion to a weight that a table has for b and
    c, whatever stands before them."""

    def __init__(self, table: Floats | None) -> None:
        super().__init__(ASKED)
        self.table = table
        self.read: list[Ids] = []

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        self.read.append(ids)
        if self.table is None:
            return None
        return [iter(np.array_split(self.table[row], 3)) for row in ids]


def test_a_likelihood_is_the_sum_over_the_continuations_own_tokens() -> None:
    table = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    session = Reading(table)
    found = choose(ASKED, session)
    likely = table - np.log(np.exp(table.astype(np.float64)).sum(-1, keepdims=True))
    for item, choice in zip(ITEMS, found, strict=True):
        assert choice.right == item["right"]
        for continuation, nats in zip(
            item["continuations"], choice.log_likelihood_nats, strict=True
        ):
            before, own = item["context"].encode()[-1:], continuation.encode()
            pairs = zip(before + own, own, strict=False)
            assert nats == pytest.approx(sum(likely[pair] for pair in pairs))
    # Rows of similar length are read together
    whole = sum(len(item["context"].encode()) + 16 for item in ITEMS for _ in range(4))
    assert len(session.read) < 160
    assert sum(ids.size for ids in session.read) < 1.1 * whole


def test_a_model_that_knows_nothing_is_right_one_time_in_four() -> None:
    found = choose(ASKED, Reading(np.zeros((256, 256), dtype=np.float32)))
    first = [choice.log_likelihood_nats for choice in found]
    assert all(len(set(np.round(nats, 9))) == 1 for nats in first)  # none is longer
    # So that the first of equal ones is no favour
    assert 0.15 < np.mean([choice.right == 0 for choice in found]) < 0.35


def test_a_token_that_begins_in_the_context_is_the_continuations() -> None:
    class Pairs(ByteTokenizer):
        """Two bytes a token, after a mark."""

        begins = (7,)

        def encode(self, text: str, special: bool) -> list[int]:
            content = text.encode()
            return [int.from_bytes(content[i : i + 2]) for i in range(0, len(content), 2)]

    # "ab", "c" + "d": the odd byte goes with the next one
    row = row_of(Pairs(), "abc", "de")
    assert row.ids[0] == 7
    assert len(row.ids) == 4
    assert row.start == 2


def test_where_there_are_no_logits_or_no_set_nothing_is_chosen() -> None:
    assert choose(ASKED, Reading(None)) == ()
    without = scripted(quality="none")
    assert choose(without, Reading(None)) == ()
    session = Reading(np.zeros((256, 256), dtype=np.float32))
    session.tokenizer = None
    assert choose(ASKED, session) == ()


def test_logits_that_are_no_numbers_are_failed() -> None:
    with pytest.raises(CellFailure, match="multiple-choice items are not finite") as caught:
        choose(ASKED, Reading(np.full((256, 256), np.nan, dtype=np.float32)))
    assert caught.value.status == "failed"
