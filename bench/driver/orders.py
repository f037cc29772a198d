"""What travels between the driver and a node of a cluster: orders there, answers back.

Both are the driver's own frozen records, pickled; so a node has to have the same code, which it
checks before it unpickles an order: the digest of the package stands in front. On the node,
``driver.node`` takes an order; ``driver.launch`` starts it from within a job of the cluster.
"""

import functools
import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.config.cell import Cell
from bench.driver.policy import Job
from bench.driver.worker import Timing
from bench.errors import BenchError
from bench.paths import PACKAGE
from bench.record.description import Description
from bench.record.result import Host, Outcome, Peaks, Result

_DIGEST_BYTES = 32  # of SHA-256


@dataclass(frozen=True, slots=True)
class Look:
    """Say what machine you are, and what these cells' models are."""

    asked: tuple[Cell, ...]
    wants_peaks: bool


@dataclass(frozen=True, slots=True)
class Block:
    """Run one pass of cells that are compared with each other, one after another."""

    number: int  # which cells; all passes of them have the same
    pass_index: int
    results: tuple[Result, ...]  # of these cells so far, in the order in which they run
    is_timed: bool  # False: they have a number, and are asked for their quality alone
    asks: frozenset[str]  # cell_ids of those that are asked for their quality
    hosts: Mapping[str, Host]  # what kind of machine is wanted, by engine
    descriptions: Mapping[str, Description | None]


@dataclass(frozen=True, slots=True)
class Looked:
    """The answer to ``Look``."""

    hosts: Mapping[str, Host]
    descriptions: Mapping[str, Description | None]
    peaks: Mapping[str, Peaks | None]  # by cell_id


@dataclass(frozen=True, slots=True)
class Step:
    """A process of a block has ended."""

    job: Job
    value: Any  # what its task returned, or the CellFailure that ended it
    timing: Timing
    log: str  # what it wrote


@dataclass(frozen=True, slots=True)
class Sized:
    """What ``max`` means of a cell, or why it cannot run."""

    cell_id: str
    cell: Cell
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a node did not take an order; another one may."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """An order is carried out: nothing follows."""


Order = Look | Block
Answer = Looked | Step | Sized | Refused | Done


def packed(order: Order) -> bytes:
    """An order with the digest of the code that wrote it in front."""
    return _code() + pickle.dumps(order)


def unpacked(order: bytes) -> Order:
    """Raises: BenchError when other code wrote it."""
    if order[:_DIGEST_BYTES] != _code():
        raise BenchError("has other code of this tool than the machine that the sweep began on")
    read: Order = pickle.loads(order[_DIGEST_BYTES:])
    return read


@functools.cache
def _code() -> bytes:
    """The digest of every module of the package."""
    sha = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        sha.update(file.relative_to(PACKAGE).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.digest()
