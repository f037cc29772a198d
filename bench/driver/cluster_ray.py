"""Orders as tasks of Ray: answers come back through its object store, a stream for each task.

A task is never run again by Ray itself (``max_retries=0``): it would measure in silence what was
measured already. Python's own objects do not travel, only bytes, so that a worker needs nothing of
ours but what ``driver.launch`` starts. Ray 2.60: ``ray.wait`` takes streams, and names those that
have an item or have ended.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
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
_NODE_ID = "ray.io/node-id"


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
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._asked = _request(where, nodes)
        fitting = [node for node in nodes if _has(node, self._asked)]
        if not fitting:
            ray.shutdown()
            raise ConfigError([f"where=ray: no node has {_in_words(self._asked)}; {_of(nodes)}"])
        self._id_of = {node["NodeManagerHostname"]: node["NodeID"] for node in fitting}
        ray.cloudpickle.register_pickle_by_value(launch)  # workers may lie elsewhere
        self._start = ray.remote(launch.answers).options(
            num_cpus=self._asked.pop("CPU"),
            num_gpus=self._asked.pop("GPU", 0),
            resources=self._asked or None,
            max_retries=0,
            num_returns="streaming",
        )
        self._streams: dict[Any, str] = {}
        self._over: set[str] = set()
        self._refused: list[tuple[str, Answer | Lost]] = []

    def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
        avoided = [self._id_of[name] for name in avoid if name in self._id_of]
        if len(avoided) == len(self._id_of):
            self._refused += [(name, Lost("every node refuses")) for name in orders]
            return
        start = self._start
        if avoided:
            start = start.options(label_selector={_NODE_ID: f"!in({','.join(avoided)})"})
        for name, order in orders.items():
            self._streams[start.remote(order, str(PACKAGE.parent))] = name

    def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
        if self._refused or not self._streams:
            found, self._refused = self._refused, []
            return found
        streams = list(self._streams)
        ready, _ = ray.wait(streams, num_returns=1, timeout=limit_s)
        if ready:  # and whatever else there is by now
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
        found = []
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


def _request(where: Where, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a job asks of a node: by default all CPUs of the smallest one that may measure, and a
    GPU where there are any."""
    marked = {} if where.constraint is None else {where.constraint: _A_SHARE}
    resources = [node["Resources"] for node in nodes if _has(node, marked)]
    gpus = where.gpus
    if gpus is None:
        gpus = int(any(of.get("GPU", 0) >= 1 for of in resources))
    cpus = [of["CPU"] for of in resources if of.get("CPU", 0) >= 1 and of.get("GPU", 0) >= gpus]
    asked = {"CPU": float(where.cpus or min(cpus, default=1)), **marked}
    return asked | ({"GPU": float(gpus)} if gpus else {})


def _has(node: Mapping[str, Any], asked: Mapping[str, float]) -> bool:
    return all(node["Resources"].get(name, 0) >= amount for name, amount in asked.items())


def _in_words(asked: Mapping[str, float]) -> str:
    return " and ".join(
        name if amount == _A_SHARE else f"{amount:g} {name}" for name, amount in asked.items()
    )


def _of(nodes: Sequence[Mapping[str, Any]]) -> str:
    most: dict[str, float] = {}
    for node in nodes:
        for name, amount in node["Resources"].items():
            if not name.startswith(("node:", "memory", "object_store")):
                most[name] = max(amount, most.get(name, 0))
    return "the cluster's nodes have up to " + ", ".join(
        f"{amount:g} {name}" for name, amount in sorted(most.items())
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{error.cause}"  # of ``launch.answers``: how the node's process ended
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
