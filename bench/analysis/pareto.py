"""Which cells are worth a look at all: those that no other beats in speed, memory and quality at once."""

from collections.abc import Sequence

from bench.analysis.metrics import derive
from bench.analysis.plausible import peak_memory_bytes
from bench.result import Result


def pareto_front(results: Sequence[Result]) -> list[str]:
    """cell_ids that are not dominated in output tokens/s (more), peak memory (less) and divergence (less).

    Equal in all counts as not dominated. Where some cells have no divergence, it is left out for all.
    """
    measured = [result for result in results if result.measurements]
    use_quality = all(result.divergence is not None for result in measured)
    points = [(result.cell_id, _costs(result, use_quality)) for result in measured]
    return [cell for cell, costs in points if not any(_dominates(other, costs) for _, other in points)]


def _costs(result: Result, use_quality: bool) -> tuple[float, ...]:
    values = derive(result)
    return (-values["output_tok_s"], peak_memory_bytes(result), *((values["kl_nats"],) if use_quality else ()))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
