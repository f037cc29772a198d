"""Nothing secret reaches a record: what looks like a credential is replaced before a text is stored
or logged.

A record travels: its files are attached to tickets, its runs are read by a whole team. So
credentials in URLs, secrets in their query, tokens of a known shape and the values of environment
variables that are named like secrets become ``***``. Variables of the environment are never
recorded wholesale (``bench.meter.host.ENVIRONMENT`` names those that are), but an error message of
a library may quote one.
"""

import os
import re
from collections.abc import Mapping
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


def redacted(value: Any) -> Any:
    """``value`` (texts, and what JSON has for containers) with every secret in it hidden."""
    return _hidden(value, _secrets())


def _secrets() -> list[str]:
    named = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST
    ]
    return sorted(named, key=len, reverse=True)  # one may contain another


def _hidden(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _TOKENS.sub(HIDDEN, _IN_QUERIES.sub(rf"\1{HIDDEN}", _IN_URLS.sub(HIDDEN, value)))
    if isinstance(value, Mapping):
        return {_hidden(key, secrets): _hidden(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_hidden(each, secrets) for each in value)
    return value
