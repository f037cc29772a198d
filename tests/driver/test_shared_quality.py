"""Who is asked, and who takes over the answers."""

from dataclasses import replace

from bench.driver.shared_quality import share, still_to_ask
from bench.record.result import Outcome, Result
from tests import fakes

SAID = (fakes.sample(1, 2),)


def of_batch(batch: int, **changes: object) -> Result:
    return replace(fakes.result(cell=fakes.cell(batch=batch, quality="samples")), **changes)  # type: ignore[arg-type]


def test_the_first_cell_is_asked_and_the_others_take_over() -> None:
    answered: dict[str, Result] = {}
    first = of_batch(1)
    asked = still_to_ask(first, answered, "a file", None)
    assert (asked.samples, asked.reference) == (True, "a file")
    first = share(replace(first, samples=SAID, divergence=fakes.divergence()), answered)
    assert first.samples_from is None
    asked = still_to_ask(of_batch(8), answered, "a file", "a trace")
    assert (asked.samples, asked.reference, asked.trace) == (False, None, "a trace")
    other = share(of_batch(8), answered)
    assert (other.samples, other.divergence, other.samples_from) == (
        SAID,
        first.divergence,
        first.cell_id,
    )


def test_what_the_first_could_not_answer_the_next_is_asked() -> None:
    answered: dict[str, Result] = {}
    first = share(of_batch(1, samples=SAID), answered)  # its process ended while it was evaluated
    asked = still_to_ask(of_batch(8), answered, "a file", None)
    assert (asked.samples, asked.reference) == (False, "a file")
    second = share(of_batch(8, divergence=fakes.divergence()), answered)
    assert (second.samples, second.samples_from) == (SAID, first.cell_id)
    third = share(of_batch(32), answered)
    assert third.divergence is not None
    assert third.samples_from == first.cell_id


def test_other_models_and_cells_without_a_process_share_nothing() -> None:
    answered: dict[str, Result] = {}
    share(of_batch(1, samples=SAID), answered)
    assert (
        share(fakes.result(cell=fakes.cell(quant="fp16", quality="samples")), answered).samples
        == ()
    )
    lost = fakes.result(
        cell=fakes.cell(batch=8, quality="samples"), outcome=Outcome("oom", "no memory")
    )
    assert share(lost, answered) == lost


def test_random_weights_are_asked_nothing() -> None:
    asked = still_to_ask(
        fakes.result(cell=fakes.cell(model="tiny", quality="samples")), {}, None, None
    )
    assert (asked.samples, asked.tasks, asked.reference) == (False, False, None)
