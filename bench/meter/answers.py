"""What a configuration says: a quality job, in a process of its own, once for each sample key.

Answers are greedy, to the model's own end of sequence, the same prompts for every cell. Divergence
is in ``bench.meter.divergence``; tasks of lm-evaluation-harness run on the very model.
"""

from pathlib import Path

import yaml

from bench.config.cell import Cell
from bench.engine.protocol import Announce, Session
from bench.meter.cell import opened
from bench.meter.divergence import evaluate
from bench.paths import PROMPT_SETS
from bench.record.measurement import Sample
from bench.record.result import Answers, Outcome


def answer_cell(announce: Announce, place: str, cell: Cell, reference: str | None) -> Answers:
    """Everything that a resolved cell is asked besides being timed.

    Args:
        reference: file of the model that its predictions are compared with; None: they are not.
    Raises:
        CellFailure: when the model cannot be loaded or gives no numbers.
    """
    session = opened(announce, place, cell)
    announce("quality", "answers")
    samples, without = try_answers(cell, session)
    announce("quality", "divergence")
    divergence = None if reference is None else evaluate(session, Path(reference))
    announce("quality", "tasks")
    tasks = session.tasks(cell.quality, cell.seed) if cell.quality.tasks else ()
    return Answers(Outcome("ok"), samples, divergence, tasks, without)


def try_answers(cell: Cell, session: Session) -> tuple[tuple[Sample, ...], str | None]:
    """``answer_prompts``, or why there are none: a tokenizer or a chat template, which is code of
    the model's author, may fail in any way, and nothing else of a cell's quality needs it."""
    if cell.quality.prompts is not None and session.tokenizer is None:
        return (), "there is no tokenizer beside the weights"
    try:
        return answer_prompts(cell, session), None
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return (), f"{type(error).__name__}: {first}"


def answer_prompts(cell: Cell, session: Session) -> tuple[Sample, ...]:
    """One answer for each prompt of the cell's quality."""
    tokenizer = session.tokenizer
    if cell.quality.prompts is None:
        return ()
    assert tokenizer is not None, "without one nothing is asked"
    file = PROMPT_SETS[cell.quality.prompts]
    prompts: list[str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    asked = [tokenizer.chat(prompt) for prompt in prompts]
    samples = []
    for prompt, ids in zip(
        prompts, session.complete(asked, cell.quality.max_new_tokens), strict=True
    ):
        stop = next((i for i, token in enumerate(ids) if token in session.ends), None)
        kept = ids if stop is None else ids[:stop]
        samples.append(Sample(prompt, tokenizer.decode(kept), tuple(kept), stop is not None))
    return tuple(samples)
