"""Which cells are worth a look at all: those that no other beats in speed, memory and quality at
once.

And the comparison that a memory limit makes: what is smaller in memory can run a larger batch, so
values of an axis are compared at equal memory, each with the batch that gives the most output
within it.
"""

import math
from collections.abc import Sequence

from bench.analysis.comparison import comparable, coordinate
from bench.analysis.metrics import derive
from bench.analysis.plausible import peak_memory_bytes
from bench.record.result import Result

_BUDGETS = 4


def pareto_front(results: Sequence[Result]) -> list[str]:
    """cell_ids that are not dominated in output tokens/s (more), peak memory (less) and divergence
    (less).

    Only alternatives are compared: cells of one model and workload. Equal in all counts as not
    dominated. What some cells have no reading of is left out for all.
    """
    measured = [result for result in results if result.measurements]
    return [cell for group in comparable(measured).values() for cell in _front(group)]


def _front(measured: Sequence[Result]) -> list[str]:
    points = [(result.cell_id, _costs(result)) for result in measured]
    kept = [i for i in range(3) if not any(math.isnan(costs[i]) for _, costs in points)]
    points = [(cell, [costs[i] for i in kept]) for cell, costs in points]
    return [
        cell for cell, costs in points if not any(_dominates(other, costs) for _, other in points)
    ]


def _costs(result: Result) -> Sequence[float]:
    values = derive(result)
    return [-values["output_tok_s"], peak_memory_bytes(result), values.get("kl_nats", math.nan)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def at_equal_memory(
    results: Sequence[Result], axis: str
) -> tuple[list[str], list[tuple[float, list[Result | None]]]]:
    """The values of the axis; and for a few budgets in bytes, the best cell of each value, None
    where none fits.

    Empty where there is nothing to choose: a single value, or a single batch; or too much: several
    models or workloads.
    """
    sized = [(result, peak_memory_bytes(result)) for result in results if result.measurements]
    measured = [(result, size) for result, size in sized if not math.isnan(size)]
    groups = list(dict.fromkeys(coordinate(result.cell, axis) for result, _ in measured))
    if (
        len(comparable(results)) > 1
        or len(groups) < 2
        or len({result.cell.batch for result, _ in measured}) < 2
    ):
        return [], []
    sizes = sorted(size for _, size in measured)
    budgets = dict.fromkeys(
        sizes[round(i * (len(sizes) - 1) / (_BUDGETS - 1))] for i in range(_BUDGETS)
    )
    rows = []
    for budget in budgets:
        fitting = [result for result, size in measured if size <= budget]
        rows.append((budget, [_most_output(fitting, axis, group) for group in groups]))
    return groups, rows


def _most_output(results: Sequence[Result], axis: str, group: str) -> Result | None:
    members = [result for result in results if coordinate(result.cell, axis) == group]
    return max(members, key=lambda result: derive(result)["output_tok_s"], default=None)
