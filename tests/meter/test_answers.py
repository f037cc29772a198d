"""Answers to prompts: where they end, and what is kept of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bench.config.cell import Cell
from bench.engine.scripted import ScriptedSession
from bench.meter.answers import answer_cell, answer_prompts, try_answers
from bench.paths import PROMPT_SETS
from bench.record.result import Answers, Outcome
from tests import fakes
from tests.scripted import scripted

PROMPTS: list[str] = yaml.safe_load(PROMPT_SETS["basic"].read_text(encoding="utf-8"))
PRETRAINED = fakes.group("model", "tiny", weights="pretrained", path="/nowhere")


class Fish(ScriptedSession):
    """Answers everything with fish; ``!`` ends an answer."""

    ends = frozenset(b"!")

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        return [list(b"fish!")[:most] for _ in prompts]


def asked(**quality: object) -> Cell:
    group = fakes.group("quality", "samples", **{"texts": [], "max_new_tokens": 48} | quality)
    return scripted(model=PRETRAINED, quality=group)


def test_each_prompt_has_one_answer_which_ends_before_the_ending_token() -> None:
    cell = asked()
    samples = answer_prompts(cell, Fish(cell))
    assert [sample.prompt for sample in samples] == PROMPTS
    assert {(s.answer, s.tokens, s.ended) for s in samples} == {("fish", tuple(b"fish"), True)}


def test_an_answer_that_the_limit_ends_says_so() -> None:
    cell = asked(max_new_tokens=3)
    assert {(s.answer, s.ended) for s in answer_prompts(cell, Fish(cell))} == {("fis", False)}


def test_an_ending_at_once_is_an_empty_answer() -> None:
    class Silent(Fish):
        def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
            return [list(b"!")] * len(prompts)

    cell = asked()
    assert {(s.answer, s.tokens, s.ended) for s in answer_prompts(cell, Silent(cell))} == {
        ("", (), True)
    }


def test_without_prompts_or_a_tokenizer_there_are_no_answers() -> None:
    without_prompts, without_tokenizer = Fish(asked(prompts=None)), Fish(asked())
    without_tokenizer.tokenizer = None
    assert try_answers(asked(prompts=None), without_prompts) == ((), None)
    without = "there is no tokenizer beside the weights"
    assert try_answers(asked(), without_tokenizer) == ((), without)


def test_a_quality_job_is_all_that_a_cell_is_asked() -> None:
    phases: list[tuple[str, ...]] = []
    place = "bench.engine.scripted:ENGINE"
    found = answer_cell(lambda *phase: phases.append(phase), place, asked(), None)
    assert isinstance(found, Answers)
    assert (found.outcome, found.divergence, found.tasks) == (Outcome("ok"), None, ())
    assert len(found.samples) == len(PROMPTS)
    assert [phase[0] for phase in phases] == ["prepare", "load", *["quality"] * 5]


@pytest.mark.parametrize(
    ("limit", "numbers"),
    [(None, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4, 5, 6])],
)
def test_a_file_of_prompts_takes_the_place_of_the_shipped_ones(
    tmp_path: Path, limit: int | None, numbers: list[int]
) -> None:
    file = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "p0"}, {"role": "assistant", "content": "no"}]
    lines = [{"messages": turns}, *({"prompt": f"p{number}"} for number in range(1, 7))]
    file.write_text("\n".join(map(json.dumps, lines)))
    cell = asked(prompt_limit=limit)
    workload = replace(cell.workload, text=None, path=str(file), bucket="to2")  # whatever is timed
    cell = replace(cell, workload=workload)
    shown = ["user: p0\nassistant: no", *(f"p{number}" for number in range(1, 7))]
    samples = answer_prompts(cell, Fish(cell))
    assert [sample.prompt for sample in samples] == [shown[number] for number in numbers]
    without = replace(cell, quality=replace(cell.quality, prompts=None))
    assert answer_prompts(without, Fish(without)) == ()


@pytest.mark.parametrize(("store", "said"), [(True, "KeyError: 'Why?'"), (False, "KeyError")])
def test_why_there_are_no_answers_quotes_a_prompt_only_where_it_may_be_stored(
    store: bool, said: str
) -> None:
    class Broken(Fish):
        def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
            raise KeyError("Why?")

    cell = asked(store_prompts=store)
    assert try_answers(cell, Broken(cell)) == ((), said)


def test_long_prompts_are_not_answered_all_at_once_and_answers_stay_in_their_places(
    tmp_path: Path,
) -> None:
    groups: list[list[int]] = []

    class Echo(Fish):
        def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
            groups.append([len(prompt) for prompt in prompts])
            return [prompt[:most] for prompt in prompts]

    lengths = [3000, 1, 5000, 2, 1500, 1400]
    file = tmp_path / "prompts.jsonl"
    lines = ({"prompt": f"{index}" * length} for index, length in enumerate(lengths))
    file.write_text("\n".join(map(json.dumps, lines)))
    cell = asked(max_new_tokens=1)
    cell = replace(cell, workload=replace(cell.workload, text=None, path=str(file)))
    answers = [sample.answer for sample in answer_prompts(cell, Echo(cell))]
    assert answers == ["0", "1", "2", "3", "4", "5"]
    assert groups == [[1, 2], [1500, 1400], [3000], [5000]]
