"""The seam to clusters: whoever takes orders to nodes and brings their answers back.

No queue, scheduler or cluster of our own: Ray and Slurm are there already. What the driver wants of
them is three functions. A job that dies, with its node or alone, is an answer as well: ``Lost``.
"""

import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.config.settings import Where
from bench.driver.orders import Answer
from bench.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Lost:
    """A job ended before its order was carried out."""

    reason: str


class Cluster(Protocol):
    """Jobs that run somewhere, each with an order."""

    def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
        """Queue a job for each order, by a name of its own, on no node of these names."""

    def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
        """What has come since the last call, by the order's name; waits until something has, or for
        this long. After ``Done``, ``Refused`` or ``Lost`` nothing follows of that order."""

    def close(self) -> None:
        """End what runs, cancel what has not begun, and leave the cluster."""


def read_answer(frame: bytes) -> Answer:
    """What a node has sent."""
    answer: Answer = pickle.loads(frame)
    return answer


def cluster_of(where: Where, outputs: Path) -> Cluster:
    """Join a cluster.

    Args:
        outputs: folder of a sweep's results, for what a cluster needs files for.
    Raises:
        ConfigError: when there is none, or the package that joins it is missing.
    """
    try:
        if where.name == "ray":
            from bench.driver.cluster_ray import RayCluster

            return RayCluster(where)
        from bench.driver.cluster_slurm import SlurmCluster

        return SlurmCluster(where, outputs)
    except ImportError as error:
        raise ConfigError(
            [f"where={where.name} needs the package {error.name}; pip install .[{where.name}]"]
        ) from error
