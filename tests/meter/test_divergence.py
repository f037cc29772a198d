"""Divergence: two models of three tokens, whose numbers are worked out by hand."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.engine.prompts import Ids
from bench.engine.protocol import Floats, Head
from bench.engine.scripted import ScriptedSession
from bench.errors import CellFailure
from bench.meter.divergence import Compared, compare, evaluate, logits_of
from bench.record.measurement import Choice
from tests import fakes
from tests.scripted import scripted

LN2 = math.log(2)
# The logarithms of probabilities are logits; adding the same to all of them changes nothing.
HALVES = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float64)).astype(np.float32)
OTHERS = np.log(np.array([0.25, 0.5, 0.25], dtype=np.float64)).astype(np.float32)
EQUAL = np.zeros(3, dtype=np.float32)


def compared(ids: list[int], ours: list[Floats], theirs: list[Floats], *pieces: int) -> Compared:
    """``pieces``: into how many each of the two sides is cut."""
    q, p = (
        iter(np.array_split(np.array(side), parts))
        for side, parts in zip((ours, theirs), pieces or (1, 1), strict=True)
    )
    return compare(np.array(ids), q, p)


def test_equal_distributions_do_not_diverge() -> None:
    found = compared([0, 1, 2], [HALVES] * 3, [HALVES + 7] * 3)
    assert found.kl_nats == pytest.approx([0, 0], abs=1e-6)
    assert found.same_first.tolist() == [1, 1]


def test_kl_is_what_believing_ours_costs_where_the_reference_is_true() -> None:
    found = compared([0, 1, 0], [OTHERS] * 3, [HALVES] * 3)
    # 1/2 ln(1/2 : 1/4) + 1/4 ln(1/4 : 1/2) + 1/4 ln(1) = ln 2 / 4
    assert found.kl_nats == pytest.approx([LN2 / 4] * 2)
    assert found.same_first.tolist() == [0, 0]


def test_it_is_not_the_kl_of_the_other_direction() -> None:
    (there,) = compared([0, 1], [EQUAL] * 2, [HALVES] * 2).kl_nats
    (back,) = compared([0, 1], [HALVES] * 2, [EQUAL] * 2).kl_nats
    # Of halves against thirds: ln 3 - 3/2 ln 2; of thirds against halves: 5/3 ln 2 - ln 3
    assert there == pytest.approx(math.log(3) - 1.5 * LN2)
    assert back == pytest.approx(5 / 3 * LN2 - math.log(3))


def test_nll_is_of_the_token_that_follows_under_both() -> None:
    found = compared([9, 0, 1, 2], [OTHERS] * 4, [HALVES] * 4)
    assert found.nll_nats == pytest.approx([2 * LN2, LN2, 2 * LN2])
    assert found.reference_nll_nats == pytest.approx([LN2, 2 * LN2, 2 * LN2])


def test_the_last_position_predicts_a_token_that_is_not_there() -> None:
    assert len(compared([0, 1, 2, 0, 1], [HALVES] * 5, [OTHERS] * 5).kl_nats) == 4


@pytest.mark.parametrize("pieces", [(1, 1), (1, 3), (3, 1), (2, 3), (7, 7), (7, 2)])
def test_the_pieces_do_not_matter(pieces: tuple[int, int]) -> None:
    ids = [0, 1, 2, 0, 1, 2, 0]
    ours, theirs = [HALVES, OTHERS, EQUAL] * 2 + [HALVES], [EQUAL, HALVES] * 3 + [OTHERS]
    whole, cut = compared(ids, ours, theirs), compared(ids, ours, theirs, *pieces)
    for field in dataclasses.fields(Compared):
        assert getattr(cut, field.name).tolist() == getattr(whole, field.name).tolist()


def test_large_logits_are_compared_in_float64() -> None:
    far = np.array([1e4, 0, -1e4], dtype=np.float32)
    found = compared([0, 0], [far] * 2, [far] * 2)
    assert found.kl_nats.dtype == np.float64
    assert (found.kl_nats[0], found.nll_nats[0]) == (0.0, 0.0)


def test_logits_are_hidden_states_times_the_head_with_its_bias() -> None:
    hidden = np.arange(40, dtype=np.float32).reshape(20, 2)
    weight = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    pieces = list(logits_of(Head(weight, None), hidden))
    assert [len(piece) for piece in pieces] == [16, 4]
    assert pieces[0][1].tolist() == [2, 3, 5]
    biased = next(logits_of(Head(weight, np.array([0, 0, 10], dtype=np.float32)), hidden))
    assert biased[1].tolist() == [2, 3, 15]


class Saying(ScriptedSession):
    """A session that gives the same logits at each position."""

    def __init__(self, logits: Floats | None) -> None:
        super().__init__(scripted())
        self.constant = logits

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        if self.constant is None:
            return None
        return [iter([np.tile(self.constant, (ids.shape[1], 1))]) for _ in ids]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A reference that gives the first token 1/2 and the others 1/4, in two windows of 5 tokens."""
    about: dict[str, Any] = {
        "reference": "fp32",
        "scale": 1.0,
        "cap": None,
        "begins_with_bos": False,
        "windows": [{"text": "alice", "bytes": 9, "floor_kl_nats": 0.125}] * 2,
        "answers": [dataclasses.asdict(fakes.sample(1, 2))],
        "choices": [{"right": 1, "log_likelihood_nats": [-2.0, -1.0]}],
    }
    tensors = {
        "ids": np.array([[0, 1, 2, 0, 1]] * 2),
        "hidden": np.tile(HALVES, (2, 5, 1)),
        "head": np.eye(3, dtype=np.float32),
    }
    save_file(tensors, tmp_path / "reference", metadata={"about": json.dumps(about)})
    return tmp_path / "reference"


def test_each_window_of_the_reference_is_compared(kept: Path) -> None:
    found = evaluate(Saying(OTHERS), kept)
    assert found is not None
    assert (found.reference, found.answers) == ("fp32", (fakes.sample(1, 2),))
    assert found.choices == (Choice(1, (-2.0, -1.0)),)
    assert len(found.windows) == 2
    for window in found.windows:
        assert (window.text, window.bytes, window.tokens) == ("alice", 9, 4)
        assert window.kl_nats == pytest.approx(LN2 / 4)
        assert window.kl_median_nats == window.kl_p99_nats == pytest.approx(LN2 / 4)
        assert (window.top1_agreement, window.floor_kl_nats) == (0.0, 0.125)
        # After the first token follow 1, 2, 0, 1
        assert window.nll_nats == pytest.approx((1 + 2 + 2 + 1) * LN2 / 4)
        assert window.reference_nll_nats == pytest.approx((2 + 2 + 1 + 2) * LN2 / 4)


def test_an_engine_that_shows_no_logits_has_no_divergence(kept: Path) -> None:
    assert evaluate(Saying(None), kept) is None


def test_logits_that_are_no_numbers_are_failed(kept: Path) -> None:
    broken = np.array([np.nan, 0, 0], dtype=np.float32)
    with pytest.raises(CellFailure, match="alice are not finite numbers") as caught:
        evaluate(Saying(broken), kept)
    assert caught.value.status == "failed"
