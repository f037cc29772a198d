"""From plain mappings (YAML, JSON) to frozen dataclasses, refusing whatever is not known.

Hydra composes a configuration but does not check it: ``+foo=1`` is accepted, ``batch=yes`` becomes
a bool, and a frozen dataclass cannot be its schema. So the border is here: ``parse(Cell, mapping)``
walks the dataclass and the mapping together and collects *all* mistakes, each as ``path=value: what
was wanted``, before it raises. The same function reads result files back.

A field's metadata may limit it: a number by ``minimum`` (or ``above``, which it must exceed) and
``maximum``, a tuple by its least ``length``; ``each`` has the limits of what a tuple or mapping
holds.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from bench.errors import ConfigError

T = TypeVar("T")

_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    types.NoneType: "null",
}


class _Mismatch(Exception):
    """The value does not fit this type; internal to the walk over a union."""


def parse(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """An instance of the dataclass ``cls`` with the values of ``mapping``.

    Raises:
        ConfigError: with one line per mistake.
    """
    problems: list[str] = []
    value = _dataclass(cls, mapping, path, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast("T", value)


def _dataclass(cls: type, mapping: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(mapping, Mapping):
        where = f"{path}={_shown(mapping)}: " if path else ""
        problems.append(f"{where}want a group with the keys {_keys(cls)}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    before = len(problems)
    for key in mapping:
        if key not in fields:
            problems.append(unknown_key(str(key), mapping[key], list(fields), path))
    values = {}
    for name, field in fields.items():
        where = _join(path, name)
        if name in mapping:
            values[name] = _checked(hints[name], mapping[name], where, field.metadata, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{where}: missing; want {_wanted(hints[name], field.metadata)}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # a __post_init__ that checks fields against each other
        about_a_field = re.match(r"\w+", str(error))
        joint = "." if about_a_field and about_a_field[0] in fields else ": "
        problems.append(f"{path}{joint}{error}" if path else str(error))
        return None


def _checked(
    hint: Any, value: Any, where: str, metadata: Mapping[str, Any], problems: list[str]
) -> Any:
    try:
        result = _value(hint, value, where, problems, metadata.get("each", {}))
        if not _is_within(result, metadata):
            raise _Mismatch
    except _Mismatch:
        options = (
            typing.get_args(hint)
            if typing.get_origin(hint) in (typing.Union, types.UnionType)
            else (hint,)
        )
        wants_text = str in options and not isinstance(value, str)
        advice = "; YAML did not read it as one: quote it" if wants_text else ""
        problems.append(f"{where}={_shown(value)}: want {_wanted(hint, metadata)}{advice}")
        return None
    return result


POSITIVE = {"above": 0}
NOT_NEGATIVE = {"minimum": 0}
COUNT = {"minimum": 1}


def within(**limits: Any) -> dict[str, Any]:
    """Metadata of a field whose value keeps to these limits."""
    return limits


def _is_within(value: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether a number or a tuple keeps to what its field's metadata say."""
    if isinstance(value, tuple):
        return bool(len(value) >= metadata.get("length", 0))
    if not isinstance(value, int | float):
        return True
    least, most = metadata.get("minimum", -math.inf), metadata.get("maximum", math.inf)
    return bool(least <= value <= most and value > metadata.get("above", -math.inf))


def _value(
    hint: Any, value: Any, where: str, problems: list[str], each_within: Mapping[str, Any]
) -> Any:
    """``value`` as the type ``hint``; nested mistakes go to ``problems``, a misfit of this very
    value raises. ``each_within``: limits of what a container holds."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in typing.get_args(hint) and not isinstance(value, bool):
            return value
        raise _Mismatch
    if origin in (typing.Union, types.UnionType):
        return _union(hint, value, where, problems, each_within)
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast("type", hint), value, where, problems)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _Mismatch
        item = typing.get_args(hint)[0]
        return tuple(
            _checked(item, each, f"{where}[{i}]", each_within, problems)
            for i, each in enumerate(value)
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Mismatch
        key_hint, item = typing.get_args(hint)
        names = typing.get_args(key_hint)  # of a Literal; any text otherwise
        problems += [
            unknown_key(str(key), each, list(names), where)
            for key, each in value.items()
            if names and key not in names
        ]
        return {
            str(key): _checked(item, each, f"{where}.{key}", each_within, problems)
            for key, each in value.items()
        }
    return _scalar(hint, value)


def _scalar(hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _Mismatch
    if hint is float and not math.isfinite(value):
        raise _Mismatch
    return value


def _union(
    hint: Any, value: Any, where: str, problems: list[str], each_within: Mapping[str, Any]
) -> Any:
    for option in typing.get_args(hint):
        if dataclasses.is_dataclass(option):
            if isinstance(value, Mapping):
                return _dataclass(typing.cast("type", option), value, where, problems)
            continue
        try:
            return _value(option, value, where, problems, each_within)
        except _Mismatch:
            continue
    raise _Mismatch


def _wanted(hint: Any, metadata: Mapping[str, Any]) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        options = ", ".join(str(option) for option in typing.get_args(hint))
        text = f"one of {options}" if len(typing.get_args(hint)) > 1 else options
    elif origin in (typing.Union, types.UnionType):
        text = " or ".join(_wanted(option, {}) for option in typing.get_args(hint))
    elif dataclasses.is_dataclass(hint):
        text = f"a group with the keys {_keys(hint)}"
    elif origin is tuple:
        text = f"a list, each {_wanted(typing.get_args(hint)[0], {})}"
    elif origin is not None:
        text = "a mapping"
    else:
        text = _NAMES.get(hint, str(hint))
    limits = (
        ("minimum", "at least"),
        ("above", "above"),
        ("maximum", "at most"),
        ("length", "with entries, at least"),
    )
    return text + "".join(f", {words} {metadata[key]}" for key, words in limits if key in metadata)


def unknown_key(key: str, value: Any, known: list[str], path: str = "") -> str:
    """The sentence about a key that nothing knows, with the one that was probably meant."""
    close = difflib.get_close_matches(key, known, n=1)
    options = f"known are {', '.join(known)}" if known else "none is wanted here"
    meant = f"did you mean {_join(path, close[0])}?" if close else options
    return f"{_join(path, key)}={_shown(value)}: unknown key; {meant}"


def _shown(value: Any) -> str:
    """As a person would have typed it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _keys(cls: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def problems(kind: type, mapping: Mapping[str, Any], path: str) -> list[str]:
    """What ``parse`` objects to, a sentence each; empty when nothing."""
    try:
        parse(kind, mapping, path)
    except ConfigError as error:
        return error.problems
    return []
