"""Prompts: exact length, no padding, no two rows alike."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.config.cell import Cell
from bench.config.prompt_file import Line, cells_of
from bench.engine.prompts import (
    ByteTokenizer,
    FileTokenizer,
    Ids,
    line_ids,
    load_tokenizer,
    prompt_ids,
    prompt_lengths,
)
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


def ids_of(prompt: str, batch: int, **changes: Any) -> Ids:
    workload = dataclasses.replace(TINY.workload, text=None, prompt=prompt, prompt_tokens=None)
    cell = dataclasses.replace(TINY, workload=workload, batch=batch, **changes)
    return prompt_ids(cell, load_tokenizer(cell.model, None), 320)


def prompts_of(prompt: str, batch: int, **changes: Any) -> list[str]:
    return [bytes(row.tolist()).decode() for row in ids_of(prompt, batch, **changes)]


def test_rows_that_the_text_cannot_give_are_drawn_from_its_tokens_by_the_seed() -> None:
    rows = prompts_of("abc", 20)
    assert rows[:3] == ["abc", "bca", "cab"]
    assert len(set(rows)) == 20
    assert set("".join(rows[3:])) == set("abc")
    assert prompts_of("abc", 20) == rows != prompts_of("abc", 20, seed=1)


def test_a_batch_of_many_thousands_has_different_rows() -> None:
    workload = dataclasses.replace(TINY.workload, prompt_tokens=16)
    cell = dataclasses.replace(TINY, batch=100_000, workload=workload)
    ids = prompt_ids(cell, load_tokenizer(TINY.model, None), 320)
    assert len(np.unique(ids, axis=0)) == 100_000


def test_rows_that_the_texts_tokens_cannot_make_are_drawn_from_the_vocabulary() -> None:
    rows = [tuple(row) for row in ids_of("aab", 40).tolist()]
    assert len(set(rows)) == 40
    assert len([row for row in rows if set(row) <= {*b"ab"}]) == 8  # all that there are


def test_more_rows_than_a_vocabulary_can_make_are_refused() -> None:
    sentence = "prompts of 1 tokens: 400 rows of a vocabulary of 320 would not all differ"
    with pytest.raises(CellFailure, match=sentence):
        ids_of("a", 400)


def test_a_tokenizer_of_another_model_is_named() -> None:
    tokenizer = load_tokenizer(TINY.model, None)
    with pytest.raises(CellFailure, match="another model's tokenizer lies in its folder"):
        prompt_ids(TINY, tokenizer, vocabulary=100)


# A file of prompts


def own(folder: Path, *prompts: str, batch: int = 1, **changes: Any) -> Cell:
    """A cell of the tiny model with these prompts, in one bucket of at most 64 estimated tokens."""
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    workload = {"name": "own", "new_tokens": 4, "path": str(file)} | changes
    return fakes.cell(model="tiny", quant="fp32", batch=batch, workload=workload)


def read(cell: Cell) -> list[str]:
    tokenizer = load_tokenizer(cell.model, None)
    assert tokenizer is not None
    return [tokenizer.decode(row) for row in prompt_ids(cell, tokenizer, 320)]


def test_each_row_is_a_prompt_cut_to_the_shortest(tmp_path: Path) -> None:
    cell = own(tmp_path, "abcdefgh", "ABCDE", "123456", batch=3)
    assert read(cell) == ["abcde", "ABCDE", "12345"]
    assert prompt_lengths(cell, load_tokenizer(cell.model, None)) == (8, 5, 6)
    assert read(dataclasses.replace(cell, batch=2)) == ["abcde", "ABCDE"]


def test_more_rows_than_prompts_take_them_again_from_elsewhere(tmp_path: Path) -> None:
    assert read(own(tmp_path, "abcdef", "ABCD", batch=5)) == [
        "abcd",
        "ABCD",
        "cdef",  # of three rounds each begins a third further on
        "BCDA",
        "efab",
    ]


def test_prompts_that_begin_alike_are_rows_that_differ(tmp_path: Path) -> None:
    assert read(own(tmp_path, "same1", "same2", "same", batch=3)) == ["same", "ame2", "ames"]
    first, second = read(own(tmp_path, "aa", batch=2))
    assert first == "aa" != second


def test_prompts_have_the_length_that_was_asked_for(tmp_path: Path) -> None:
    assert read(own(tmp_path, "abcdef", "AB", batch=2, prompt_tokens=3)) == ["abc", "ABA"]


def test_only_the_prompts_of_the_bucket_are_read(tmp_path: Path) -> None:
    cells = cells_of(own(tmp_path, "a" * 10, "b" * 100, "c" * 11))
    assert [read(cell) for cell in cells] == [["a" * 10], ["b" * 100]]
    tokenizer = load_tokenizer(TINY.model, None)
    assert [prompt_lengths(cell, tokenizer) for cell in cells] == [(10, 11), (100,)]
    assert prompt_lengths(TINY, tokenizer) is None


def test_without_a_tokenizer_there_are_ids_of_about_the_prompts_lengths(tmp_path: Path) -> None:
    (cell,) = cells_of(own(tmp_path, "a" * 160))  # 32 tokens of English
    assert prompt_ids(cell, None, 7).shape == (1, 17)
    assert prompt_lengths(cell, None) is None


def test_messages_are_put_through_the_models_chat_template(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Hm."}, {"role": "user", "content": "Why?"}]
    plain, templated = fakes.byte_tokenizer(), fakes.byte_tokenizer()
    templated.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    said = []
    for name, tokenizer in (("plain", plain), ("templated", templated)):
        tokenizer.save_pretrained(tmp_path / name)
        loaded = FileTokenizer(tmp_path / name)
        said.append(loaded.decode(line_ids(TINY, Line(1, None, tuple(turns)), loaded)))
        assert loaded.decode(line_ids(TINY, Line(1, "<user>Why?"), loaded)) == "<user>Why?"
    assert said == ["Hm.\n\nWhy?", "<system>Hm.<user>Why?<assistant>"]


@pytest.mark.parametrize(("store", "said"), [(True, "ValueError: no Why?"), (False, "ValueError")])
def test_a_template_that_refuses_is_quoted_where_prompts_may_be_stored(
    store: bool, said: str
) -> None:
    class Refusing(ByteTokenizer):
        def chat(self, messages: Any) -> list[int]:
            raise ValueError(f"no {messages[0]['content']}")

    quality = fakes.group("quality", "samples", store_prompts=store)
    line = Line(7, None, ({"role": "user", "content": "Why?"},))
    with pytest.raises(CellFailure) as caught:
        line_ids(fakes.cell(quality=quality), line, Refusing())
    assert caught.value.reason == (
        f"the model's chat template does not take line 7 of the prompts: {said}"
    )
