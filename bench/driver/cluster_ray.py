"""Orders as tasks of Ray: answers come back through its object store, a stream for each task.

A task is never run again by Ray itself (``max_retries=0``): it would measure in silence what was
measured already. Python's own objects do not travel, only bytes, so that a worker needs nothing of
ours but what ``driver.launch`` starts. Ray 2.60: ``ray.wait`` takes streams, and names those that
have an item or have ended.
"""

import logging
from collections.abc import Mapping
from typing import Any

import ray
import ray.cloudpickle
import ray.exceptions

from bench.config.settings import Where
from bench.driver import launch
from bench.driver.cluster import Lost, read_answer
from bench.driver.orders import Answer, Done, Refused
from bench.errors import ConfigError
from bench.paths import PACKAGE

_A_SHARE = 0.001  # of a resource that only marks a node


class RayCluster:
    """A Ray that runs already, or one on this machine alone."""

    def __init__(self, where: Where) -> None:
        try:
            ray.init(
                address=where.address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError([f"where.address={where.address}: {_first_line(error)}"]) from error
        has = ray.cluster_resources()
        if where.constraint is not None and where.constraint not in has:
            names = sorted(name for name in has if not name.startswith("node:"))
            ray.shutdown()
            raise ConfigError(
                [
                    f"where.constraint={where.constraint}: no node has it; the cluster has"
                    f" {', '.join(names)}"
                ]
            )
        ray.cloudpickle.register_pickle_by_value(launch)  # workers may lie elsewhere
        gpus = (1 if has.get("GPU") else 0) if where.gpus is None else where.gpus
        self._start = ray.remote(launch.answers).options(
            num_cpus=where.cpus,
            num_gpus=gpus,
            resources={where.constraint: _A_SHARE} if where.constraint is not None else None,
            max_retries=0,
            num_returns="streaming",
        )
        self._streams: dict[Any, str] = {}
        self._over: set[str] = set()

    def submit(self, orders: Mapping[str, bytes]) -> None:
        for name, order in orders.items():
            self._streams[self._start.remote(order, str(PACKAGE.parent))] = name

    def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
        if not self._streams:
            return []
        streams = list(self._streams)
        ready, _ = ray.wait(streams, num_returns=1, timeout=limit_s)
        if ready:  # and whatever else there is by now
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
        found: list[tuple[str, Answer | Lost]] = []
        for stream in ready:
            name = self._streams[stream]
            try:
                found.append((name, read_answer(ray.get(next(stream)))))
            except StopIteration:
                del self._streams[stream]
            except (ray.exceptions.RayError, RuntimeError) as error:
                del self._streams[stream]
                if name not in self._over:
                    found.append((name, Lost(_reason(error))))
        self._over |= {name for name, answer in found if isinstance(answer, (Done, Refused))}
        return found

    def close(self) -> None:
        for stream in self._streams:
            ray.cancel(stream, force=True)
        ray.shutdown()


def _reason(error: Exception) -> str:
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{error.cause}"  # of ``launch.answers``: how the node's process ended
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
