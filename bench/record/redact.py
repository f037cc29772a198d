"""Nothing secret reaches a record: what looks like a credential is replaced before a text is stored
or logged.

A record travels: its files are attached to tickets, its runs are read by a whole team. So
credentials in URLs, secrets in their query, tokens of a known shape and the values of environment
variables that are named like secrets become ``***``. Variables of the environment are never
recorded wholesale (``bench.meter.host.ENVIRONMENT`` names those that are), but an error message of
a library may quote one.
"""

import os
import platform
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

HIDDEN = "***"

# User:password@host; a password may have an @ of its own
_IN_URLS = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
_IN_QUERIES = re.compile(
    r"(?i)([?&][\w.-]*(?:token|secret|password|signature|api_?key|access_?key)[\w.-]*=|[?&]sig=)[^&\s\"']+"
)
_TOKENS = re.compile(
    r"\bhf_\w{20,}"  # Hugging Face
    r"|\bgh[opsur]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bdapi[0-9a-f]{32}\b|\bxox[a-z]-[\w-]{10,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"  # a JSON web token
    r"|(?<=[Bb]earer )[\w.~+/-]{8,}"
)
_SECRET_NAMES = re.compile(  # whole parts of a name: TOKENIZER is none
    r"(?i)(^|_)(token|secret|pass|password|passwd|passphrase|sshpass|credentials?|connection_string)(_|$)"
    r"|_pwd$|(api|access|account|private|secret)_?key(_|$)"
)
_SHORTEST = 8  # a shorter value may be part of any word


# Whose machine says nothing of anybody; and they are values of a record
_NO_NAMES = {"localhost", "cpu", "cuda", "gpu", "ok"}


def redacted(value: Any) -> Any:
    """``value`` (texts, and what JSON has for containers) with every secret in it hidden."""
    return _replaced(value, partial(_without_secrets, secrets=_secrets()))


def anonymous(value: Any) -> Any:
    """As ``redacted``, and without names of this machine, of users and of their homes: for what
    strangers are to read."""
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111 (pathlib raises where there is none)
    users = {os.environ.get("USER"), os.environ.get("LOGNAME"), os.path.basename(home)}  # noqa: PTH119
    user = "|".join(re.escape(name) for name in users - {None, ""} if name)
    full = platform.node()
    hosts = {name for name in (full, full.partition(".")[0]) if name.lower() not in _NO_NAMES}
    host = "|".join(re.escape(name) for name in sorted(hosts - {""}, key=len, reverse=True))
    rules = [
        (re.compile(rf"{re.escape(home)}(?![\w.-])") if home else None, "~"),
        (re.compile(r"(?<=/home/|Users/)[^/\s:\"']+"), HIDDEN),
        (re.compile(rf"(?<=/)({user})(?![\w.-])") if user else None, HIDDEN),
        (re.compile(rf"(?i)(?<![\w.-])({host})(?![\w-])") if host else None, HIDDEN),
    ]

    def without_names(text: str) -> str:
        for pattern, instead in rules:
            text = text if pattern is None else pattern.sub(instead, text)
        return text

    return _replaced(redacted(value), without_names)


def _secrets() -> list[str]:
    named = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST
    ]
    return sorted(named, key=len, reverse=True)  # one may contain another


def _without_secrets(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _TOKENS.sub(HIDDEN, _IN_QUERIES.sub(rf"\1{HIDDEN}", _IN_URLS.sub(HIDDEN, text)))


def _replaced(value: Any, replace: Callable[[str], str]) -> Any:
    """``value`` with ``replace`` applied to every text in it."""
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, Mapping):
        return {_replaced(key, replace): _replaced(each, replace) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, replace) for each in value)
    return value
