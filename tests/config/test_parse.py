"""The border between YAML and dataclasses: what it lets in, and what it says about the rest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from bench.config.parse import parse, unknown_key
from bench.errors import ConfigError
from tests import fakes

Colour = Literal["red", "green"]


@dataclass(frozen=True)
class Leaf:
    size: int
    name: str = "leaf"


@dataclass(frozen=True)
class Range:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")


@dataclass(frozen=True)
class Tree:
    count: int = 0
    ratio: float = 0.0
    text: str = ""
    flag: bool = False
    colour: Colour = "red"
    level: Literal[0, 1] = 0
    note: str | None = None
    threads: int | Literal["auto"] = field(default="auto", metadata={"minimum": 1})
    share: float | None = field(default=None, metadata={"minimum": 0})
    sizes: tuple[int, ...] = ()
    cpus: tuple[int, ...] | Literal["all"] = "all"
    free: Mapping[str, Any] = field(default_factory=dict)
    pace: Mapping[Colour, float] = field(default_factory=dict)
    leaf: Leaf = Leaf(1)
    spare: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    range: Range = Range(0, 1)


def problems(mapping: Mapping[str, Any], cls: type = Tree, path: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(cls, mapping, path)
    return caught.value.problems


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("count", -3, -3),
        ("ratio", 0.5, 0.5),
        ("text", "a", "a"),
        ("flag", True, True),
        ("colour", "green", "green"),
        ("level", 1, 1),
        ("note", "a", "a"),
        ("note", None, None),
        ("threads", 4, 4),
        ("threads", "auto", "auto"),
        ("share", None, None),
        ("share", 0, 0.0),
        ("sizes", [1, 2], (1, 2)),
        ("cpus", [0, 1], (0, 1)),
        ("cpus", "all", "all"),
        ("free", {"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        ("pace", {"green": 2}, {"green": 2.0}),
        ("leaf", {"size": 2}, Leaf(2)),
        ("spare", {"size": 2, "name": "a"}, Leaf(2, "a")),
        ("spare", None, None),
        ("leaves", [{"size": 2}, {"size": 3}], (Leaf(2), Leaf(3))),
        ("range", {"low": 1, "high": 1}, Range(1, 1)),
    ],
)
def test_a_fitting_value_becomes_the_field(key: str, value: Any, parsed: Any) -> None:
    assert getattr(parse(Tree, {key: value}), key) == parsed


def test_absent_keys_take_their_defaults() -> None:
    assert parse(Tree, {}) == Tree()


def test_an_integer_for_a_number_becomes_a_float() -> None:
    assert type(parse(Tree, {"ratio": 2}).ratio) is float


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("count", 1.5, "count=1.5: want an integer"),
        ("count", "1", "count=1: want an integer"),
        ("count", None, "count=null: want an integer"),
        ("count", True, "count=true: want an integer"),
        ("ratio", False, "ratio=false: want a number"),
        ("ratio", math.inf, "ratio=inf: want a number"),
        ("ratio", math.nan, "ratio=nan: want a number"),
        ("flag", 1, "flag=1: want true or false"),
        ("flag", "yes", "flag=yes: want true or false"),
        ("colour", "blue", "colour=blue: want one of red, green"),
        ("level", True, "level=true: want one of 0, 1"),
        ("colour", False, "colour=false: want one of red, green"),
        ("threads", "many", "threads=many: want an integer or auto, at least 1"),
        ("threads", True, "threads=true: want an integer or auto, at least 1"),
        ("sizes", 3, "sizes=3: want a list, each an integer"),
        ("sizes", "12", "sizes=12: want a list, each an integer"),
        ("sizes", [1, "b"], "sizes[1]=b: want an integer"),
        ("cpus", "some", "cpus=some: want a list, each an integer or all"),
        ("cpus", [0, "b"], "cpus[1]=b: want an integer"),
        ("free", "a", "free=a: want a mapping"),
        ("pace", {"red": "fast"}, "pace.red=fast: want a number"),
        ("pace", {"gren": 1.0}, "pace.gren=1.0: unknown key; did you mean pace.green?"),
        ("leaf", 3, "leaf=3: want a group with the keys size, name"),
        ("leaf", {}, "leaf.size: missing; want an integer"),
        ("leaf", {"size": "a"}, "leaf.size=a: want an integer"),
        ("spare", {"size": "a"}, "spare.size=a: want an integer"),
        ("spare", 3, "spare=3: want a group with the keys size, name or null"),
        ("leaves", [{"size": 1}, {"size": "a"}], "leaves[1].size=a: want an integer"),
        ("range", {"low": 2, "high": 1}, "range.low=2 is above high=1"),
    ],
)
def test_a_misfit_is_named_with_path_value_and_what_was_wanted(
    key: str, value: Any, sentence: str
) -> None:
    assert problems({key: value}) == [sentence]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("text", 12, "text=12: want a text; YAML did not read it as one: quote it"),
        ("text", True, "text=true: want a text; YAML did not read it as one: quote it"),
        ("note", 1.5, "note=1.5: want a text or null; YAML did not read it as one: quote it"),
    ],
)
def test_a_text_that_yaml_reads_as_something_else_has_to_be_quoted(
    key: str, value: Any, sentence: str
) -> None:
    assert problems({key: value}) == [sentence]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("threads", 0, "threads=0: want an integer or auto, at least 1"),
        ("share", -0.1, "share=-0.1: want a number or null, at least 0"),
    ],
)
def test_a_number_beyond_the_limit_of_its_field_is_refused(
    key: str, value: float, sentence: str
) -> None:
    assert problems({key: value}) == [sentence]


@pytest.mark.parametrize(("key", "value"), [("threads", 1), ("share", 0.0)])
def test_a_number_just_within_the_limit_is_taken(key: str, value: float) -> None:
    assert getattr(parse(Tree, {key: value}), key) == value


def test_all_mistakes_are_told_at_once() -> None:
    mapping = {"count": "a", "colour": "blue", "leaf": {"size": None, "sise": 1}, "nonsense": 1}
    assert problems(mapping, path="tree") == [
        (
            "tree.nonsense=1: unknown key; known are count, ratio, text, flag, colour, level, note,"
            " threads, share, sizes, cpus, free, pace, leaf, spare, leaves, range"
        ),
        "tree.count=a: want an integer",
        "tree.colour=blue: want one of red, green",
        "tree.leaf.sise=1: unknown key; did you mean tree.leaf.size?",
        "tree.leaf.size=null: want an integer",
    ]


def test_an_error_shows_one_mistake_a_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^count=a: want an integer\nflag=b: want true or false$"
    ):
        parse(Tree, {"count": "a", "flag": "b"})


def test_a_field_without_a_default_must_be_given() -> None:
    assert problems({}, Range) == [
        "low: missing; want an integer",
        "high: missing; want an integer",
    ]


def test_fields_are_checked_against_each_other_only_when_each_is_right() -> None:
    assert problems({"low": 2, "high": "a"}, Range) == ["high=a: want an integer"]


def test_a_contradiction_at_the_top_has_no_path() -> None:
    assert problems({"low": 2, "high": 1}, Range) == ["low=2 is above high=1"]


def test_an_unknown_key_is_told_with_the_one_that_was_probably_meant() -> None:
    assert unknown_key("bach", 4, ["batch", "seed"]) == "bach=4: unknown key; did you mean batch?"


def test_an_unknown_key_like_no_other_is_told_with_all_that_are_known() -> None:
    assert (
        unknown_key("zzz", None, ["batch", "seed"], "cell")
        == "cell.zzz=null: unknown key; known are batch, seed"
    )


def test_the_advice_to_quote_is_for_texts_only() -> None:
    with pytest.raises(ConfigError) as caught:
        fakes.cell(model=fakes.group("model", "gpt2", architecture=5))
    assert caught.value.problems == ["model.architecture=5: want a mapping or null"]
