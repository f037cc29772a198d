"""A file of somebody else's, and those of its fields that are known here.

Other tools add fields with every version and leave out what they do not know. So a reader names the
fields that it wants in a dataclass with defaults: ``fields`` passes over all others, takes null for
missing, and refuses a field of another type with the name of the file and the field.
"""

import dataclasses
import hashlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.config.parse import parse
from bench.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class File:
    """A text and what it is called."""

    name: str  # with the folder's that it lies in
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def refused(self, why: str) -> ConfigError:
        """The error that says why it cannot be taken."""
        return ConfigError([f"{self.name}: {why}"])

    def fields(self, cls: type[T], mapping: Any, of: str) -> T:
        """An instance of the dataclass ``cls`` with what ``mapping`` has of its fields.

        Args:
            of: what writes such a mapping, for messages.

        Raises:
            ConfigError: when a field is of another type, or a needed one is missing.
        """
        try:
            return parse(cls, _picked(cls, mapping))
        except ConfigError as error:
            raise self.refused(f"not as {of} writes it ({error.problems[0]})") from error


def _picked(hint: Any, value: Any) -> Any:
    """``value`` without what the type ``hint`` does not know, and without nulls."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next((of for of in typing.get_args(hint) if of is not types.NoneType), Any)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        return {
            name: _picked(hints[name], value[name]) for name in hints if value.get(name) is not None
        }
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return [_picked(typing.get_args(hint)[0], each) for each in value]
    return value
