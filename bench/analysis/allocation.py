"""Which layer gets which scheme: the least loss within a budget of bytes, or the least time within
a budget of loss.

One scheme a layer, additive losses, bytes and times: the multiple-choice knapsack problem, solved
to its exact optimum as an integer program (HiGHS by ``scipy.optimize.milp``). That the loss of a
set is the sum of its layers' losses is an assumption, which ``bench.analysis.sensitivity`` checks
against sets that were measured.

Beside it stand the allocations that it has to beat at the same bytes. Three keep some layers in a
better scheme and all others in the smallest one: layers in random order, the least sensitive first,
and the ends of the model first, as studies keep their first and last layers. The fourth is as near
to a uniform scheme as these bytes allow: of the two schemes whose whole models are the neighbours
of the budget, the larger one is spread evenly over every kind of layer and over the depth, whatever
a layer loses. Where one scheme alone takes the budget, that is this scheme.
"""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import BenchError

_SCALE = 1e4  # of the objective: HiGHS stops within an absolute gap of 1e-6
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Option:
    """A layer under a scheme. Units: bytes as stored, nats a token, seconds a decode step."""

    scheme: str
    stored_bytes: int
    loss_nats: float
    time_s: float = 0.0


Options = Mapping[str, Sequence[Option]]  # by layer
Allocation = dict[str, Option]  # by layer, in the order of the options
Cost = Callable[[Option], float]


class NoAllocation(BenchError):
    """A budget that not even the smallest choice keeps; ``least`` is what that takes."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the smallest choice takes {least:g}")
        self.least = least


def stored_bytes(option: Option) -> float:
    """As a cost."""
    return option.stored_bytes


def loss_nats(option: Option) -> float:
    """As a cost."""
    return option.loss_nats


def time_s(option: Option) -> float:
    """As a cost."""
    return option.time_s


def total(allocation: Mapping[str, Option], cost: Cost) -> float:
    """Of all layers together."""
    return math.fsum(cost(option) for option in allocation.values())


def allocate(options: Options, minimize: Cost, limited: Cost, budget: float) -> Allocation:
    """The choice of least total ``minimize`` among those whose total ``limited`` is at most
    ``budget``; of equal schemes of a layer the one that takes less.

    Costs that must not be negative for a layer may be so, since estimates are noisy.

    Raises:
        NoAllocation: when there is none.
    """
    worthwhile = {layer: undominated(of, minimize, limited) for layer, of in options.items()}
    least = math.fsum(min(map(limited, of)) for of in worthwhile.values())
    if least > budget:
        raise NoAllocation(least)
    allowed = budget
    for _ in range(_TRIES):
        chosen = _solved(worthwhile, minimize, limited, allowed)
        excess = total(chosen, limited) - budget
        if excess <= 0:
            return chosen
        allowed -= excess  # a solver's choices are whole to within 1e-6: all together may exceed it
    raise BenchError(f"no exact allocation within {budget:g} was found")


def undominated(options: Sequence[Option], minimize: Cost, limited: Cost) -> list[Option]:
    """Without those that another one beats, or equals, in both."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda each: (limited(each), minimize(each))):
        if not kept or minimize(option) < minimize(kept[-1]):
            kept.append(option)
    return kept


def _solved(options: Options, minimize: Cost, limited: Cost, budget: float) -> Allocation:
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes half a second
    from scipy.sparse import csr_array

    flat = [option for of in options.values() for option in of]
    rows = np.repeat(np.arange(len(options)), [len(of) for of in options.values()])
    loss, size = (np.array([cost(option) for option in flat]) for cost in (minimize, limited))
    one_each = csr_array((np.ones(len(flat)), (rows, np.arange(len(flat)))))
    unit = np.abs(size).max() or 1.0
    answer = milp(
        loss * (_SCALE / (np.abs(loss).max() or 1.0)),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(size[None] / unit, -np.inf, budget / unit),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if answer.x is None:
        raise BenchError(f"no allocation within {budget:g} was found: {answer.message}")
    taken = answer.x > 0.5
    chosen = [option for option, is_taken in zip(flat, taken, strict=True) if is_taken]
    return dict(zip(options, chosen, strict=True))


def uniform(options: Options, scheme: str) -> Allocation:
    """One scheme for all; a layer that it cannot hold stays out."""
    return {
        layer: option for layer, of in options.items() for option in of if option.scheme == scheme
    }


def filled(
    order: Sequence[str], base: Allocation, top: Allocation, budget_bytes: float
) -> Allocation:
    """``base``, and along the order ``top``, wherever it still fits."""
    chosen, left = dict(base), budget_bytes - total(base, stored_bytes)
    for layer in order:
        more = top[layer].stored_bytes - base[layer].stored_bytes
        if more <= left:
            chosen[layer], left = top[layer], left - more
    return chosen


def evenly(options: Options, budget_bytes: float) -> Allocation:
    """The largest uniform scheme within the budget, and every n-th layer of each kind under the
    next larger scheme, so that the bytes are used.

    A scheme that loses more than a smaller one is no neighbour: nobody would take it for all
    layers.
    """
    sizes = [
        Option(scheme, int(total(of, stored_bytes)), total(of, loss_nats))
        for scheme, of in ((each, uniform(options, each)) for each in whole(options))
    ]
    steps = undominated(sizes, loss_nats, stored_bytes)
    within = sum(step.stored_bytes <= budget_bytes for step in steps)
    if within in (0, len(steps)):
        return uniform(options, steps[max(0, within - 1)].scheme)
    base, top = steps[within - 1 : within + 1]
    share = (budget_bytes - base.stored_bytes) / (top.stored_bytes - base.stored_bytes)
    chosen, better = uniform(options, base.scheme), uniform(options, top.scheme)
    more = {layer: better[layer].stored_bytes - chosen[layer].stored_bytes for layer in options}
    saved_bytes = 0.0  # of the layers so far: their share without what they took
    # Small kinds first, whose rest a layer of a large one does not notice; in a kind as they come
    for layer in sorted(options, key=lambda name: (more[name], name.rpartition(".")[2])):
        saved_bytes += share * more[layer]
        if more[layer] <= saved_bytes:
            chosen[layer] = better[layer]
            saved_bytes -= more[layer]
    return chosen


def in_random_order(layers: Sequence[str], seed: int) -> list[str]:
    """The layers, shuffled."""
    shuffled = list(layers)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def from_the_ends(layers: Sequence[str]) -> list[str]:
    """Those of the first and of the last block, then those beside them; in a block as they come."""
    blocks = {layer: block_of(layer) for layer in layers}
    last = max(blocks.values(), default=0)
    return sorted(layers, key=lambda layer: min(blocks[layer], last - blocks[layer]))


def least_sensitive_first(base: Allocation, top: Allocation) -> list[str]:
    """By what ``top`` saves a byte: the inverse of a good order."""

    def saved_a_byte(layer: str) -> float:
        more_bytes = max(1, top[layer].stored_bytes - base[layer].stored_bytes)
        return (base[layer].loss_nats - top[layer].loss_nats) / more_bytes

    return sorted(base, key=saved_a_byte)


def block_of(layer: str) -> int:
    """The number of a layer's block, the first number in its name; 0 without one."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
    return int(number[1]) if number else 0


def controls(
    options: Options, base: str, top: str, budget_bytes: float, seed: int
) -> dict[str, Allocation]:
    """What an allocation has to beat, by name; each takes no more than the budget, and less than a
    layer below it."""
    low, high = uniform(options, base), uniform(options, top)
    layers = list(low)
    orders = {
        "random": in_random_order(layers, seed),
        "inverted": least_sensitive_first(low, high),
        "ends": from_the_ends(layers),
    }
    kept = {name: filled(order, low, high, budget_bytes) for name, order in orders.items()}
    return {"uniform": evenly(options, budget_bytes), **kept}


def whole(options: Options) -> list[str]:
    """The schemes that hold every layer."""
    schemes = dict.fromkeys(option.scheme for of in options.values() for option in of)
    return [scheme for scheme in schemes if len(uniform(options, scheme)) == len(options)]


def near_lossless(options: Options, base: str) -> str:
    """The smallest scheme that takes away nine tenths of the loss of ``base``: what controls give
    to the layers that they keep."""
    schemes = whole(options)
    loss = {scheme: total(uniform(options, scheme), loss_nats) for scheme in schemes}
    size = {scheme: total(uniform(options, scheme), stored_bytes) for scheme in schemes}
    good = [scheme for scheme in schemes if loss[scheme] <= loss[base] / 10]
    return min(good or schemes, key=lambda scheme: size[scheme] if good else loss[scheme])


def smallest(options: Options) -> str:
    """The scheme whose layers take the fewest bytes, of those that hold every layer."""
    return min(whole(options), key=lambda scheme: total(uniform(options, scheme), stored_bytes))
