"""Which cells are worth a look at all: those that no other beats in speed, memory and quality at
once.

And the comparison that a memory limit makes: what is smaller in memory can run a larger batch, so
values of an axis are compared at equal memory, each with the batch that gives the most output
within it.
"""

import math
from collections.abc import Mapping, Sequence

from bench.analysis.columns import comparable, coordinate
from bench.analysis.divergence import ranked_kl_nats
from bench.analysis.metrics import peak_memory_bytes
from bench.record.result import Result

_BUDGETS = 4

Values = Mapping[str, Mapping[str, float]]  # derived, by cell_id


def pareto_front(results: Sequence[Result], values: Values) -> list[str]:
    """cell_ids that are not dominated in output tokens/s (more), peak memory (less) and divergence
    (less; none where it cannot be told from the noise floor).

    Only alternatives are compared: cells of one model and workload. Equal in all counts as not
    dominated. What some cells have no reading of is left out for all.
    """
    measured = [result for result in results if result.measurements]
    return [cell for group in comparable(measured).values() for cell in _front(group, values)]


def _front(measured: Sequence[Result], values: Values) -> list[str]:
    points = {result.cell_id: _costs(result, values[result.cell_id]) for result in measured}
    kept = [i for i in range(3) if not any(math.isnan(costs[i]) for costs in points.values())]
    points = {cell: [costs[i] for i in kept] for cell, costs in points.items()}
    return [
        cell
        for cell, costs in points.items()
        if not any(_dominates(other, costs) for other in points.values())
    ]


def _costs(result: Result, values: Mapping[str, float]) -> list[float]:
    return [
        -values["output_tok_s"],
        peak_memory_bytes(result, values),
        ranked_kl_nats(result.divergence),
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def at_equal_memory(
    results: Sequence[Result], values: Values, axis: str
) -> tuple[list[str], list[tuple[float, list[Result | None]]]]:
    """The values of the axis; and for a few budgets in bytes, the best cell of each value, None
    where none fits.

    Empty where there is nothing to choose: a single value, or a single batch; or too much: several
    models or workloads.
    """
    sizes = {
        result.cell_id: size
        for result in results
        if not math.isnan(size := peak_memory_bytes(result, values[result.cell_id]))
    }
    measured = [result for result in results if result.cell_id in sizes]
    groups = list(dict.fromkeys(coordinate(result.cell, axis) for result in measured))
    batches = {result.cell.batch for result in measured}
    if len(comparable(results)) > 1 or len(groups) < 2 or len(batches) < 2:
        return [], []
    ordered = sorted(sizes.values())
    steps = [round(i * (len(ordered) - 1) / (_BUDGETS - 1)) for i in range(_BUDGETS)]
    rows: list[tuple[float, list[Result | None]]] = []
    for budget in dict.fromkeys(ordered[step] for step in steps):
        best: dict[str, Result] = {}
        for result in measured:
            group = coordinate(result.cell, axis)
            is_better = group not in best or _output(result, values) > _output(best[group], values)
            if sizes[result.cell_id] <= budget and is_better:
                best[group] = result
        rows.append((budget, [best.get(group) for group in groups]))
    return groups, rows


def _output(result: Result, values: Values) -> float:
    return values[result.cell_id]["output_tok_s"]
