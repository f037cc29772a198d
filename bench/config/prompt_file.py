"""A file of the user's own prompts, and the buckets of equal shape that are measured.

A line is a JSON object with ``prompt`` (a text that the model gets as it is) or ``messages`` (a
list of role and content, which its chat template makes a prompt of), and may say how many
``new_tokens`` it wants. A batch has one shape and nothing is padded, so prompts are measured in
buckets: a bucket has prompts of about 33 to 64 tokens, say (``to64``), each cut to the shortest
of them. Which bucket a prompt is in follows from its bytes: so it is the same for every model and
machine, and no tokenizer has to be there before anything runs; the measured process then counts.
Lines with ``new_tokens`` have buckets of their own (``to64+128``), in which as many are generated
as one of them wants at most. Where ``workload.prompt_tokens`` is given each prompt is cut or
extended to that many, and its bucket is called ``at96``.

No message here quotes a prompt: it may end up in a record that travels.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config.cell import Cell, Quality, Workload, estimated_tokens
from bench.errors import ConfigError
from bench.paths import from_here

Message = Mapping[str, str]  # role and content

_KEYS = ("prompt", "messages", "new_tokens")
_LEAST_NEW_TOKENS = 2  # as of Workload.new_tokens
_MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of a file: a text, or the messages that become one."""

    number: int  # from 1, in the file
    prompt: str | None
    messages: tuple[Message, ...] = ()
    new_tokens: int | None = None

    @property
    def text(self) -> str:
        """What somebody wrote, without roles."""
        if self.prompt is not None:
            return self.prompt
        return "\n\n".join(message["content"] for message in self.messages)

    @property
    def shown(self) -> str:
        """For people: with roles, unless one turn is all."""
        if self.prompt is not None or len(self.messages) == 1:
            return self.text
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


def lines_of(workload: Workload) -> tuple[Line, ...]:
    """Every prompt of a workload's file.

    Raises:
        ConfigError: with each line that is none; for another file than the one that was meant.
    """
    assert workload.path is not None
    content = content_of(workload.path, "workload.path", workload.sha256)
    return _lines(content, f"workload.path={from_here(Path(workload.path))}")


@functools.lru_cache(maxsize=4)  # each cell of a grid asks
def _lines(content: bytes, where: str) -> tuple[Line, ...]:
    lines: list[Line] = []
    problems: list[str] = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        try:
            lines += [_line(number, line)] if line.strip() else []
        except ValueError as error:
            problems.append(f"{where}, line {number}: {error}")
    if len(problems) > _MOST_TOLD:
        more = len(problems) - _MOST_TOLD
        problems[_MOST_TOLD:] = [f"{where}: and {more} lines more that are no prompts"]
    if not lines and not problems:
        problems = [f"{where}: no prompt in it"]
    if problems:
        raise ConfigError(problems)
    return tuple(lines)


def in_bucket(workload: Workload) -> tuple[Line, ...]:
    """The prompts that a cell with this workload is timed with."""
    lines = lines_of(workload)
    return tuple(line for line in lines if workload.bucket in (None, _bucket(line, workload)))


def cells_of(cell: Cell) -> list[Cell]:
    """A cell for each bucket of its workload's prompts; the cell itself where it has no file.

    Raises:
        ConfigError: for a file that cannot be read, or has no such bucket.
    """
    asked = cell.workload
    if asked.path is None:
        return [cell]
    buckets: dict[str, list[Line]] = {}
    for line in lines_of(asked):
        buckets.setdefault(_bucket(line, asked), []).append(line)
    if asked.bucket is not None and asked.bucket not in buckets:
        raise ConfigError(
            [
                f"workload.bucket={asked.bucket}: no such prompts in {from_here(Path(asked.path))};"
                f" want one of {', '.join(_in_order(buckets))}, or null for all"
            ]
        )
    named = _in_order(buckets) if asked.bucket is None else [asked.bucket]
    return [replace(cell, workload=_of_bucket(asked, name, buckets[name])) for name in named]


def _of_bucket(asked: Workload, bucket: str, lines: list[Line]) -> Workload:
    assert asked.path is not None
    new_tokens = max(line.new_tokens or asked.new_tokens for line in lines)
    name = f"{Path(asked.path).stem}-{bucket}"
    return replace(asked, name=name, bucket=bucket, new_tokens=new_tokens)


def _bucket(line: Line, workload: Workload) -> str:
    tokens = workload.prompt_tokens
    length = f"to{_end(estimated_tokens(line.text))}" if tokens is None else f"at{tokens}"
    return length if line.new_tokens is None else f"{length}+{_end(line.new_tokens)}"


def _end(tokens: int) -> int:
    """The power of two that ends the bucket of a length, whose half is the end of the one
    before."""
    return 1 << (tokens - 1).bit_length()


def _in_order(buckets: Mapping[str, Any]) -> list[str]:
    """By length, then by new tokens."""
    return sorted(buckets, key=lambda name: [int(each) for each in re.findall(r"\d+", name)])


def _line(number: int, line: str) -> Line:
    """Raises: ValueError, which says what is wrong."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a character in it (a lone surrogate)") from None
    except RecursionError:
        raise ValueError("want an object, this is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg}, column {error.colno}); want an object like"
            ' {"prompt": "..."} or {"messages": [...]}'
        ) from None
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        both = isinstance(value, dict) and "prompt" in value
        raise ValueError("want prompt or messages, not both" if both else "want prompt or messages")
    if unknown := [key for key in value if key not in _KEYS]:
        raise ValueError(f"unknown key {unknown[0]}; known are {', '.join(_KEYS)}")
    new_tokens = value.get("new_tokens")
    if new_tokens is not None and (type(new_tokens) is not int or new_tokens < _LEAST_NEW_TOKENS):
        raise ValueError(f"new_tokens: want an integer, at least {_LEAST_NEW_TOKENS}")
    if "prompt" in value:
        if not isinstance(value["prompt"], str) or not value["prompt"].strip():
            raise ValueError("prompt: want a text that is not empty")
        return Line(number, value["prompt"], (), new_tokens)
    return Line(number, None, tuple(_messages(value["messages"])), new_tokens)


def _messages(value: Any) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages: want a list of role and content that is not empty")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f"messages[{index}]: want role and content, nothing else")
        for key in ("role", "content"):
            if not isinstance(message[key], str):
                raise ValueError(f"messages[{index}].{key}: want a text")
        yield message
    if not any(message["content"].strip() for message in value):
        raise ValueError("messages: every content is empty")


# Files of text


def is_file(text: str) -> bool:
    """Whether an entry of ``quality.texts`` is a path: the shipped texts have neither slash nor
    dot in their names."""
    return os.sep in text or "." in text


def label_of(path: str) -> str:
    """What a file is called where its numbers stand; MLflow takes no other characters."""
    return re.sub(r"[^\w.-]", "_", Path(path).name)


def content_of(path: str, key: str, sha256: str | None) -> bytes:
    """What is in a file of text.

    Args:
        key: which names it, like workload.path.
        sha256: that it must have; None: any.
    Raises:
        ConfigError: for one that cannot be read, is not UTF-8, is empty, or is another one.
    """
    where = f"{key}={from_here(Path(path))}"
    try:
        content = Path(path).read_bytes()
        content.decode()
    except OSError as error:
        raise ConfigError([f"{where}: cannot be read ({error.strerror})"]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{where}, line {line}: not UTF-8"]) from None
    if not content.strip():
        raise ConfigError([f"{where}: nothing in it"])
    if sha256 is not None and digest_of(content) != sha256:
        raise ConfigError([f"{where}: has changed, its SHA-256 was {sha256}; want that file"])
    return content


def digest_of(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def with_digests(cell: Cell) -> Cell:
    """The cell, with which files it names by their content. A digest that it has already must be
    the file's.

    Raises:
        ConfigError: for one that cannot be read, or is another one.
    """
    workload, quality = cell.workload, cell.quality
    if workload.path is not None:
        content = content_of(workload.path, "workload.path", workload.sha256)
        workload = replace(workload, sha256=digest_of(content))
    digests = tuple(digest_of(content) for _, content in own_texts(quality))
    return replace(cell, workload=workload, quality=replace(quality, digests=digests))


def changed_files(cell: Cell) -> list[str]:
    """A sentence for a file of the user's that is not there any more, or is another one by now."""
    try:
        with_digests(cell)
    except ConfigError as error:
        return error.problems
    return []


def own_texts(quality: Quality) -> list[tuple[str, bytes]]:
    """Path and content of those texts that are files. Raises: ConfigError as ``content_of``."""
    named = [text for text in quality.texts if is_file(text)]
    wanted: Sequence[str | None] = quality.digests or [None] * len(named)
    return [
        (path, content_of(path, "quality.texts", sha256))
        for path, sha256 in zip(named, wanted, strict=True)
    ]


def own_files(cells: Sequence[Cell]) -> dict[str, bytes]:
    """What is in the user's files that these cells read, by names that say which ones these are.

    Raises:
        ConfigError: as ``content_of``.
    """
    files = {(cell.workload.path, cell.workload.sha256) for cell in cells}
    contents = [
        (path, content_of(path, "workload.path", sha256))
        for path, sha256 in files
        if path is not None
    ]
    for quality in dict.fromkeys(cell.quality for cell in cells):
        contents += own_texts(quality)
    return {f"{digest_of(content)[:12]}-{Path(path).name}": content for path, content in contents}
