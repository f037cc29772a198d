"""Prompts: exact length, no padding, no two rows alike."""

import dataclasses

import numpy as np
import pytest

from bench.engine.prompts import load_tokenizer, prompt_ids
from bench.errors import CellFailure
from bench.paths import DATA
from tests import fakes

TINY = fakes.cell(model="tiny", quant="fp32", batch=4)


@pytest.mark.parametrize("prompt_tokens", [1, 32, 20_000])
def test_rows_have_exactly_the_length_that_was_asked(prompt_tokens: int) -> None:
    workload = dataclasses.replace(TINY.workload, prompt_tokens=prompt_tokens)
    ids = prompt_ids(
        dataclasses.replace(TINY, workload=workload), load_tokenizer(TINY.model, None), 320
    )
    assert ids.shape == (4, prompt_tokens)
    assert ids.dtype == np.int64


def test_rows_differ_and_are_text() -> None:
    cell = dataclasses.replace(
        TINY, batch=32, workload=dataclasses.replace(TINY.workload, prompt_tokens=40)
    )
    tokenizer = load_tokenizer(cell.model, None)
    assert tokenizer is not None
    texts = [tokenizer.decode(row) for row in prompt_ids(cell, tokenizer, 320)]
    assert len(set(texts)) == 32
    prose = (DATA / "text" / "prose.txt").read_text(encoding="utf-8")
    assert texts[0] == prose[:40]
    assert all(text in prose + prose for text in texts)


def test_a_fixed_prompt_is_taken_as_it_is_and_turned_for_further_rows() -> None:
    workload = dataclasses.replace(TINY.workload, text=None, prompt="abcd", prompt_tokens=None)
    cell = dataclasses.replace(TINY, batch=2, workload=workload)
    tokenizer = load_tokenizer(cell.model, None)
    assert tokenizer is not None
    assert [tokenizer.decode(row) for row in prompt_ids(cell, tokenizer, 320)] == ["abcd", "cdab"]


def test_a_model_without_a_tokenizer_gets_ids_of_its_vocabulary_by_the_seed() -> None:
    one, again = (prompt_ids(TINY, None, 7) for _ in range(2))
    other = prompt_ids(dataclasses.replace(TINY, seed=1), None, 7)
    assert one.tolist() == again.tolist() != other.tolist()
    assert one.shape == (4, 8)
    assert 0 <= int(one.min()) <= int(one.max()) < 7


def test_the_byte_tokenizer_gives_back_any_text() -> None:
    tokenizer = load_tokenizer(TINY.model, None)
    assert tokenizer is not None
    text = "naïve café, 東京 \n\t{}"
    ids = tokenizer.encode(text, special=True)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_a_prompt_with_fewer_tokens_than_rows_is_refused() -> None:
    workload = dataclasses.replace(TINY.workload, text=None, prompt="abc", prompt_tokens=None)
    cell = dataclasses.replace(TINY, workload=workload)
    with pytest.raises(
        CellFailure, match="the prompt has 3 tokens: 4 rows of it would not all differ"
    ):
        prompt_ids(cell, load_tokenizer(TINY.model, None), 320)


def test_a_tokenizer_of_another_model_is_named() -> None:
    tokenizer = load_tokenizer(TINY.model, None)
    with pytest.raises(CellFailure, match="another model's tokenizer lies in its folder"):
        prompt_ids(TINY, tokenizer, vocabulary=100)
