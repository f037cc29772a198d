"""What a model says does not depend on batch or workload: cells that differ in these alone share
what is known of it.

The first of them is asked. What it could not answer, because its process ended in between, the next
one is asked.
"""

from dataclasses import replace

from bench.config.cell import sample_key
from bench.record.afterwards import Afterwards
from bench.record.result import Result


def still_to_ask(
    record: Result, answered: dict[str, Result], reference: str | None, trace: str | None
) -> Afterwards:
    """What the next process of this cell is asked besides being timed.

    Args:
        answered: by ``sample_key``, the result that knows most.
        reference: file of the model to compare with, if there is one.
        trace: file for a profile, if one is wanted.
    """
    known = answered.get(sample_key(record.cell), record)
    has_words = record.cell.model.weights == "pretrained"  # random ones predict nothing
    return Afterwards(
        samples=has_words and record.cell.quality.prompts is not None and not known.samples,
        tasks=has_words and not known.tasks,
        reference=reference if known.divergence is None else None,
        trace=trace,
    )


def share(record: Result, answered: dict[str, Result]) -> Result:
    """The result with what others have answered for it; ``answered`` learns what it has answered
    itself."""
    if record.attestation is None:
        return record
    key = sample_key(record.cell)
    other = answered.get(key, record)
    shared = replace(
        record,
        samples=record.samples or other.samples,
        divergence=record.divergence or other.divergence,
        tasks=record.tasks or other.tasks,
    )
    if shared != record and record.samples_from is None:
        shared = replace(shared, samples_from=other.samples_from or other.cell_id)
    if shared.samples or shared.divergence or shared.tasks:
        answered[key] = shared
    return shared
