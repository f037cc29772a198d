"""From a study's readings and a budget to allocations: the best one, those that it has to beat,
and what each is predicted to cost.

As a value of ``conf/quant`` an allocation is a base scheme, and patterns of layers that have
another one.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.analysis import allocation as solver
from bench.analysis.allocation import Allocation, NoAllocation, Options
from bench.analysis.sensitivity import (
    PLAIN,
    bits_per_weight,
    factor,
    options,
    predicted_bytes,
    predicted_kl_nats,
    predicted_step_s,
    sums,
)
from bench.analysis.stats import Estimate
from bench.errors import ConfigError
from bench.record.sensitivity import Prediction, Readings, Study

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Budget:
    """What an allocation may take: bits a weight of the layers, bytes of the whole model, or nats
    of divergence, with which the time of a decode step is minimized."""

    amount: float
    unit: Literal["bits", "bytes", "nats"]
    typed: str  # like 4.5bits, in the names of what comes of it


@dataclass(frozen=True, slots=True)
class Mixed:
    """An allocation, and what it is predicted to cost."""

    name: str  # of the value of conf/quant
    schemes: Mapping[str, str]  # by layer, of all
    stored_bytes: int  # of the whole model's weights
    bits_per_weight: float  # of the layers
    kl_nats: Estimate
    step_s: Estimate | None  # None where a layer was not timed


def mixed(readings: Readings, schemes: Sequence[str], budget: Budget, seed: int) -> list[Mixed]:
    """The best allocation of these schemes within the budget, then its controls at its bytes.

    A layer that none of the schemes can hold stays as published.

    Raises:
        ConfigError: when nothing keeps the budget.
    """
    plain = options(readings, [PLAIN])
    choice = {name: of or plain[name] for name, of in options(readings, schemes).items()}
    try:
        best = _best(readings, choice, budget)
    except NoAllocation as none:
        least = _in_unit(readings, none.least, budget)
        raise ConfigError(
            [
                f"{budget.typed}: the least that {', '.join(schemes)} can take is {least}; want"
                " that, or more schemes"
            ]
        ) from none
    name = f"mixed_{budget.typed}"
    found = {name: best}
    if solver.whole(choice):
        base = solver.smallest(choice)
        top, size = solver.near_lossless(choice, base), solver.total(best, solver.stored_bytes)
        others = solver.controls(choice, base, top, size, seed)
        found |= {f"{name}_{control}": given for control, given in others.items()}
    return [_predicted(readings, *each) for each in found.items()]


def _best(readings: Readings, choice: Options, budget: Budget) -> Allocation:
    if budget.unit == "nats":
        summed = budget.amount / factor(sums(readings)).value
        return solver.allocate(choice, solver.time_s, solver.loss_nats, summed)
    most = (
        budget.amount * readings.layer_weights / 8
        if budget.unit == "bits"
        else budget.amount - readings.other_bytes
    )
    return solver.allocate(choice, solver.loss_nats, solver.stored_bytes, most)


def _in_unit(readings: Readings, least: float, budget: Budget) -> str:
    """The total of a cost as one would type it for a budget, rounded up."""
    if budget.unit == "bits":
        return f"{bits_per_weight(readings, least) + 0.005:.2f}bits"
    if budget.unit == "bytes":
        return f"{(readings.other_bytes + least) / 1e6 + 0.005:.2f}MB"
    return f"{least * factor(sums(readings)).value:.2g} nats"


def _predicted(readings: Readings, name: str, given: Allocation) -> Mixed:
    schemes = {layer: option.scheme for layer, option in given.items()}
    return Mixed(
        name,
        schemes,
        predicted_bytes(readings, given),
        bits_per_weight(readings, solver.total(given, solver.stored_bytes)),
        predicted_kl_nats(readings, schemes),
        predicted_step_s(readings.timings, schemes),
    )


def to_try(found: Sequence[Mixed]) -> list[Mixed]:
    """The allocation, and its controls but for one scheme alone: that is a cell of its own."""
    best, *controls = found
    return [best, *(each for each in controls if len(set(each.schemes.values())) > 1)]


def prediction(study: Study, of: Mixed) -> Prediction | None:
    """As sweeps find it; None where the divergence has no upper end."""
    kl_nats, step_s = of.kl_nats, of.step_s
    if math.isinf(kl_nats.high):
        return None
    return Prediction(
        model=study.cell.model,
        layers=patterns(of.schemes),
        device_name=study.host.device_name,
        rows=study.cell.rows,
        kl_nats=(kl_nats.value, kl_nats.low, kl_nats.high),
        tpot_s=None if step_s is None else (step_s.value, step_s.low, step_s.high),
    )


def base_of(schemes: Mapping[str, str]) -> str:
    """The scheme that most layers have."""
    return Counter(schemes.values()).most_common(1)[0][0]


def patterns(schemes: Mapping[str, str]) -> dict[str, str]:
    """What the layers have that are not of the base scheme, as ``quant.layers`` takes it.

    Layers that differ in their block's number alone are one pattern,
    ``model.layers.{0,29}.mlp.up_proj``, or ``*`` where that is all of them.
    """
    base = base_of(schemes)
    blocks: dict[str, list[str]] = defaultdict(list)  # by name with a place for the number
    chosen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer, scheme in schemes.items():
        number = _NUMBER.search(layer)
        place = layer if number is None else f"{layer[: number.start()]}#{layer[number.end() :]}"
        block = "" if number is None else number[0]
        blocks[place].append(block)
        if scheme != base:
            chosen[place, scheme].append(block)
    return {
        place.replace("#", _alternatives(of, blocks[place])): scheme
        for (place, scheme), of in chosen.items()
    }


def _alternatives(chosen: list[str], all_blocks: list[str]) -> str:
    if len(chosen) == len(all_blocks) > 1:
        return "*"
    return chosen[0] if len(chosen) == 1 else f"{{{','.join(chosen)}}}"
