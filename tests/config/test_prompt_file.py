"""Files of the user's own prompts: lines, mistakes, buckets, and which file it was."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell, cell_id
from bench.config.compose import parsed
from bench.config.prompt_file import (
    cells_of,
    changed_files,
    in_bucket,
    lines_of,
    own_files,
    with_digests,
)
from bench.errors import ConfigError
from tests import fakes

PLANTED = "zyxwvut"
OWN = fakes.group("workload", "prompts")
SHORT, LONG = "a" * 20, "b" * 300  # 4 and 60 tokens at 5 bytes each


def jsonl(folder: Path, *lines: Mapping[str, Any] | str, name: str = "prompts.jsonl") -> str:
    file = folder / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(file)


def cell_of(path: str, **changes: Any) -> Cell:
    return fakes.cell(workload=OWN | {"path": path} | changes)


def problems(configured: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parsed([configured])
    return caught.value.problems


def mistakes(folder: Path, *lines: Mapping[str, Any] | str) -> list[str]:
    """What is said of a file with these lines, without where it lies."""
    path = jsonl(folder, *lines)
    found = problems(fakes.config_mapping(workload=OWN | {"path": path}))
    return [problem.removeprefix(f"workload.path={path}") for problem in found]


def test_a_line_has_a_prompt_or_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé?"}]
    path = jsonl(tmp_path, {"prompt": "Why? "}, "", {"messages": turns, "new_tokens": 9})
    first, second = lines_of(cell_of(path).workload)
    assert (first.number, first.prompt, first.new_tokens) == (1, "Why? ", None)
    assert first.text == first.shown == "Why? "
    assert (second.number, second.messages, second.new_tokens) == (3, tuple(turns), 9)
    assert second.text == "Be brief.\n\nHé?"
    assert second.shown == "system: Be brief.\nuser: Hé?"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": PLANTED}, "want prompt or messages"),
        (f'["{PLANTED}"]', "want prompt or messages"),
        ({"prompt": PLANTED, "messages": []}, "want prompt or messages, not both"),
        ({"prompt": " "}, "prompt: want a text that is not empty"),
        ({"prompt": [PLANTED]}, "prompt: want a text that is not empty"),
        ({"prompt": PLANTED, "new_token": 4}, "unknown key new_token; known are prompt, messages,"),
        ({"prompt": PLANTED, "new_tokens": 1}, "new_tokens: want an integer, at least 2"),
        ({"prompt": PLANTED, "new_tokens": True}, "new_tokens: want an integer, at least 2"),
        ({"messages": PLANTED}, "messages: want a list of role and content that is not empty"),
        ({"messages": []}, "messages: want a list of role and content that is not empty"),
        ({"messages": [{"role": "user"}]}, "messages[0]: want role and content, nothing else"),
        ({"messages": [{"role": 1, "content": PLANTED}]}, "messages[0].role: want a text"),
        ({"messages": [{"role": "user", "content": [PLANTED]}]}, "messages[0].content: want a "),
        ({"messages": [{"role": "user", "content": ""}]}, "messages: every content is empty"),
        (f'{{"prompt": "{PLANTED}"', "not JSON (Expecting ',' delimiter, column 21); want an obj"),
        (PLANTED, "not JSON (Expecting value, column 1); want an object like {"),
        (r'{"prompt": "zyxwvut \ud800"}', "half of a character in it (a lone surrogate)"),
        ("[" * 200_000, "want an object, this is nested too deeply"),
        ('{"prompt": "a", "new_tokens": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_prompt_is_told_with_its_number_and_not_with_its_words(
    tmp_path: Path, line: Mapping[str, Any] | str, said: str
) -> None:
    (problem,) = mistakes(tmp_path, {"prompt": "a"}, "", line)
    assert problem.startswith(f", line 3: {said}")
    assert PLANTED not in problem


def test_of_many_wrong_lines_the_first_are_told(tmp_path: Path) -> None:
    *first, last = mistakes(tmp_path, *["a,b"] * 100)
    assert [problem[: problem.index(":")] for problem in first] == [
        f", line {number}" for number in range(1, 6)
    ]
    assert last == ": and 95 lines more that are no prompts"


def test_a_file_that_gives_no_prompts_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "a"}\n{"prompt": "é"}'.encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    for typed, said in (
        ("none.jsonl", ": cannot be read (No such file or directory)"),
        ("folder", ": cannot be read (Is a directory)"),
        ("latin.jsonl", ", line 2: not UTF-8"),
        ("empty.jsonl", ": nothing in it"),
    ):
        workload = OWN | {"path": typed}
        assert problems(fakes.config_mapping(workload=workload)) == [f"workload.path={typed}{said}"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes('\ufeff{"prompt": "a"}\r\n{"prompt": "b\u2028c"}\r\n'.encode())
    assert [line.text for line in lines_of(cell_of(str(file)).workload)] == ["a", "b\u2028c"]


def test_each_bucket_of_similar_lengths_is_a_cell(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"prompt": LONG},  # 60 tokens
        {"prompt": "b" * 165},  # 33 tokens
        {"prompt": "b" * 160},  # 32 tokens
        {"prompt": SHORT, "new_tokens": 100},
        {"prompt": SHORT, "new_tokens": 65},
        {"prompt": SHORT},
    )
    cells = cells_of(cell_of(path))
    found = {
        cell.workload.name: (
            [line.number for line in in_bucket(cell.workload)],
            cell.workload.new_tokens,
        )
        for cell in cells
    }
    assert found == {
        "prompts-to4": ([6], 64),
        "prompts-to4+128": ([4, 5], 100),
        "prompts-to32": ([3], 64),
        "prompts-to64": ([1, 2], 64),
    }
    assert list(found) == [cell.workload.name for cell in cells]  # the short ones first
    assert [cell.workload.least_prompt_tokens for cell in cells] == [3, 3, 17, 33]
    assert len({cell_id(cell) for cell in cells}) == 4
    for cell in cells:
        assert cells_of(cell) == [cell]


def test_with_one_length_for_all_there_is_one_bucket(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": LONG}, {"prompt": SHORT})
    (cell,) = cells_of(cell_of(path, prompt_tokens=96))
    assert cell.workload.name == "prompts-at96"
    assert cell.workload.least_prompt_tokens == 96
    assert len(in_bucket(cell.workload)) == 2


def test_one_bucket_can_be_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": LONG}, {"prompt": SHORT})
    (cell,) = cells_of(cell_of(path, bucket="to64"))
    assert cell in cells_of(cell_of(path))
    (problem,) = problems(fakes.config_mapping(workload=OWN | {"path": path, "bucket": "to7"}))
    assert problem == (
        f"workload.bucket=to7: no such prompts in {path}; want one of to4, to64, or null for all"
    )


def test_a_file_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, text = jsonl(tmp_path, {"prompt": "a"}), tmp_path / "mine.txt"
    text.write_text("mine")
    mapping = fakes.config_mapping(
        workload=OWN | {"path": "prompts.jsonl"},
        quality=fakes.group("quality", "samples", texts=["alice", "./mine.txt"]),
    )
    (config,) = parsed([mapping])
    cell = config.cell
    assert cell.workload.path == path
    assert cell.workload.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert cell.quality.texts == ("alice", str(text))
    assert cell.quality.digests == (hashlib.sha256(b"mine").hexdigest(),)
    assert with_digests(cell) == cell
    assert changed_files(cell) == []
    assert own_files([cell, cell]) == {
        f"{cell.workload.sha256[:12]}-prompts.jsonl": Path(path).read_bytes(),
        f"{cell.quality.digests[0][:12]}-mine.txt": b"mine",
    }


def test_a_file_that_has_changed_since_it_was_asked_for_is_refused(tmp_path: Path) -> None:
    path, text = jsonl(tmp_path, {"prompt": "a"}), tmp_path / "mine.txt"
    text.write_text("mine")
    asked = cell_of(path)
    cell = with_digests(replace(asked, quality=replace(asked.quality, texts=(str(text),))))
    jsonl(tmp_path, {"prompt": "b"})
    text.unlink()
    assert changed_files(cell) == [
        f"workload.path={path}: has changed, its SHA-256 was {cell.workload.sha256}; want that file"
    ]
    jsonl(tmp_path, {"prompt": "a"})
    assert changed_files(cell) == [
        f"quality.texts={text}: cannot be read (No such file or directory)"
    ]


def test_a_name_that_is_no_path_is_of_a_shipped_text() -> None:
    quality = fakes.group("quality", "samples", texts=["alcie"])
    assert problems(fakes.config_mapping(quality=quality)) == [
        "quality.texts=alcie: no such file; want one of alice, code, prose, or a path like"
        " ./mine.txt"
    ]
