"""Which way of running a language model is best on this machine: sweep, measure, record,
compare.

In a notebook, ``bench.results()`` and ``bench.readings()`` are the newest sweep as DataFrames.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What a notebook wants, without a command line waiting for pandas."""
    if name not in ("results", "readings"):
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    from bench.report import frames

    return getattr(frames, name)
