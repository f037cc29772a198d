"""The multiple-choice set ``quality.choices=shipped``, made from the shipped texts.

    python -m tests.choices        # writes bench/data/choices/shipped.jsonl

Each item is a piece of a text and four ways to go on, one of which is the text's own. The three
others stand elsewhere in the same text. They are of the same kind: words that go on in the middle
of a sentence, or a line of code that is indented as deep. And they have exactly as many bytes: so
the likelihoods of whole continuations rank the four as the likelihoods per byte do, and none is
favoured by its length. Contexts are short, which keeps an item cheap and leaves it hard.

The file is committed and does not follow the texts by itself: numbers computed from it must stay
comparable. A test compares the two.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.paths import DATA, TEXTS

FILE = DATA / "choices" / "shipped.jsonl"
_ITEMS = {"alice": 160, "code": 64, "prose": 32}
_OTHERS = 3
_CONTEXT, _LONGEST_CONTEXT = 24, 48  # characters, cut at words or lines
_LEAST, _LONGEST = 12, 40  # bytes of a continuation, where its first whole words reach the least
_APART = 400  # characters between a text's own continuation and one that stands elsewhere


@dataclass(frozen=True)
class Place:
    """Where a text may be cut."""

    at: int
    context: str
    continuation: str

    @property
    def kind(self) -> tuple[int, int, bool]:
        """What is alike in all four: bytes, indentation, whether a small letter comes first."""
        body = self.continuation.lstrip()
        return (
            len(self.continuation.encode()),
            len(self.continuation) - len(body),
            body[:1].islower(),
        )


def items() -> list[dict[str, object]]:
    """All of them, in the order of the texts."""
    return [item for name, count in _ITEMS.items() for item in _items(name, count)]


def _items(name: str, count: int) -> Iterator[dict[str, object]]:
    text = TEXTS[name].read_text(encoding="utf-8")
    places = list(_lines(text) if name == "code" else _words(text))
    alike: dict[tuple[int, int, bool], list[Place]] = defaultdict(list)
    for place in places:
        alike[place.kind].append(place)
    usable = [place for place in places if len(_elsewhere(place, alike[place.kind])) >= _OTHERS]
    generator = random.Random(name)
    for index in range(count):
        place = usable[index * len(usable) // count]
        others = generator.sample(_elsewhere(place, alike[place.kind]), _OTHERS)
        right = generator.randrange(_OTHERS + 1)
        continuations = [*others[:right], place.continuation, *others[right:]]
        yield {
            "text": name,
            "context": place.context,
            "continuations": continuations,
            "right": right,
        }


def _elsewhere(place: Place, alike: list[Place]) -> list[str]:
    """What goes on like this far from it, each once."""
    far = (other.continuation for other in alike if abs(other.at - place.at) >= _APART)
    return [each for each in dict.fromkeys(far) if each != place.continuation]


def _words(text: str) -> Iterator[Place]:
    """Each word within a sentence, with the words after it until they are long enough."""
    for paragraph in re.finditer(r"[^\n]+", text):
        words = list(re.finditer(r"\s\S+", paragraph.group()))
        for index, word in enumerate(words):
            before = paragraph.group()[: word.start()]
            if len(before) < _CONTEXT or before[-1] in ".!?:;'\"":
                continue
            ends = (w.end() for w in words[index:] if w.end() - word.start() >= _LEAST)
            end = next(ends, None)
            if end is not None:
                start = before.index(" ", len(before) - _CONTEXT) + 1
                continuation = paragraph.group()[word.start() : end]
                yield Place(paragraph.start() + word.start(), before[start:], continuation)


def _lines(text: str) -> Iterator[Place]:
    """Each line of code after lines of the same file."""
    lines = list(re.finditer(r"[^\n]+", text))
    for index, line in enumerate(lines):
        continuation = "\n" + line.group()
        context = ""
        for before in reversed(lines[:index]):
            context = before.group() + ("\n" + context if context else "")
            if len(context) >= _CONTEXT:
                break
        if len(context) > _LONGEST_CONTEXT:
            context = context[context.find(" ", len(context) - _LONGEST_CONTEXT) + 1 :]
        is_usual = _LEAST <= len(continuation.encode()) <= _LONGEST
        if is_usual and len(context) >= _CONTEXT:
            yield Place(line.start(), context.rstrip(), continuation)


def written() -> str:
    """The file's content."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items())


if __name__ == "__main__":
    Path(FILE).parent.mkdir(exist_ok=True)
    FILE.write_text(written(), encoding="utf-8")
