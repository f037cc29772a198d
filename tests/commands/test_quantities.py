"""Numbers as options take them, and what is said of others."""

from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from bench.commands.quantities import count, positive, share, size_bytes, time_s


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (share, "5%", 0.05),
        (share, "0.05", 0.05),
        (size_bytes, "8GiB", 8 * 2**30),
        (size_bytes, "500MB", 5e8),
        (time_s, "200ms", 0.2),
        (time_s, "1.5s", 1.5),
        (positive, "0.05", 0.05),
        (count, "5", 5),
    ],
)
def test_a_number_with_its_unit(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text", "wanted"),
    [
        (share, "five", "five: want a number"),
        (share, "%", ": want a number"),
        (share, "500%", "500%: want a share like 0.05 or 5%"),
        (share, "nan", "nan: want a share like 0.05 or 5%"),
        (size_bytes, "8", "8: want a number with one of GiB, MiB, GB, MB"),
        (size_bytes, "GiB", ": want a number"),
        (time_s, "-1s", "-1: want a number above 0"),
        (positive, "inf", "inf: want a number above 0"),
        (count, "1.5", "1.5: want a whole number, at least 1"),
    ],
)
def test_what_is_none_is_named(read: Callable[[str], float], text: str, wanted: str) -> None:
    with pytest.raises(ArgumentTypeError) as error:
        read(text)
    assert str(error.value) == wanted
