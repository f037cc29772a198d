"""Numbers and names as options of commands take them: with a unit, or as a share."""

from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Literal

_SIZES = {"GiB": 2**30, "MiB": 2**20, "GB": 1e9, "MB": 1e6}
_TIMES = {"ms": 1e-3, "s": 1.0}
_DURATIONS = {"min": 60.0, "s": 1.0, "h": 3600.0}


def size_bytes(text: str) -> float:
    """Like 8GiB. Raises: ArgumentTypeError, as all of these."""
    return _with_unit(text, _SIZES)


def time_s(text: str) -> float:
    """Like 200ms."""
    return _with_unit(text, _TIMES)


def duration_s(text: str) -> float:
    """Like 20min."""
    return _with_unit(text, _DURATIONS)


def bits_or_bytes(text: str) -> tuple[float, Literal["bits", "bytes"], str]:
    """Like 4.5bits or 120MB; the amount, its unit, and the text."""
    if text.endswith("bits"):
        return positive(text.removesuffix("bits")), "bits", text
    return _with_unit(text, {**_SIZES, "bits": 1.0}), "bytes", text


def _with_unit(text: str, units: Mapping[str, float]) -> float:
    for unit, factor in units.items():
        if text.endswith(unit):
            return positive(text.removesuffix(unit)) * factor
    raise ArgumentTypeError(f"{text}: want a number with one of {', '.join(units)}")


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text}: want a number above 0")
    return value


def share(text: str) -> float:
    """Like 0.05 or 5%."""
    value = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise ArgumentTypeError(f"{text}: want a share like 0.05 or 5%")
    return value


def count(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: want a whole number, at least 1")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    """Like nf4,int8: each once."""
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text}: want a number") from error
