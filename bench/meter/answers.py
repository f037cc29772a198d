"""What a configuration says: a quality job, in a process of its own, once for each sample key.

Answers are greedy, to the model's own end of sequence, the same prompts for every cell. Multiple
choice is in ``bench.meter.choices``, divergence in ``bench.meter.divergence``, perplexity with
overlapping windows in ``bench.meter.perplexity``; tasks of lm-evaluation-harness run on the very
model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from bench.config.cell import Cell
from bench.config.prompt_file import Line, lines_of
from bench.engine.prompts import error_in_words, line_ids
from bench.engine.protocol import Announce, Session
from bench.errors import CellFailure
from bench.meter.cell import opened
from bench.meter.choices import choose
from bench.meter.divergence import evaluate
from bench.meter.perplexity import read_with_stride
from bench.paths import PROMPT_SETS
from bench.record.measurement import Sample
from bench.record.result import Answers, Outcome

_TOKENS_AT_ONCE = 4096  # padding included: a row of 4,096 tokens is what many a model takes anyway


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
    announce("quality", "multiple choice")
    choices = choose(cell, session)
    announce("quality", "perplexity")
    strided = read_with_stride(cell, session)
    announce("quality", "divergence")
    divergence = None if reference is None else evaluate(session, Path(reference))
    announce("quality", "tasks")
    tasks = session.tasks(cell.quality, cell.seed) if cell.quality.tasks else ()
    return Answers(Outcome("ok"), samples, divergence, tasks, choices, strided, without)


def try_answers(cell: Cell, session: Session) -> tuple[tuple[Sample, ...], str | None]:
    """``answer_prompts``, or why there are none: a tokenizer or a chat template, which is code of
    the model's author, may fail in any way, and nothing else of a cell's quality needs it."""
    if cell.quality.prompts is not None and session.tokenizer is None:
        return (), "there is no tokenizer beside the weights"
    try:
        return answer_prompts(cell, session), None
    except CellFailure as failure:
        return (), failure.reason
    except Exception as error:
        return (), error_in_words(cell, error)


def answer_prompts(cell: Cell, session: Session) -> tuple[Sample, ...]:
    """One answer for each prompt of the cell's file, or of its quality."""
    tokenizer = session.tokenizer
    if cell.quality.prompts is None:
        return ()
    assert tokenizer is not None, "without one nothing is asked"
    lines = asked_lines(cell)
    asked = [line_ids(cell, line, tokenizer) for line in lines]
    answered: dict[int, list[int]] = {}
    for group in _together([len(ids) for ids in asked]):
        answers = session.complete([asked[i] for i in group], cell.quality.max_new_tokens)
        answered |= zip(group, answers, strict=True)
    samples = []
    for index, line in enumerate(lines):
        ids = answered[index]
        stop = next((i for i, token in enumerate(ids) if token in session.ends), None)
        kept = ids if stop is None else ids[:stop]
        samples.append(Sample(line.shown, tokenizer.decode(kept), tuple(kept), stop is not None))
    return tuple(samples)


def _together(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which prompts are answered at once: of similar lengths, as the longest pads the others, and
    not more tokens than there is memory for."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) + 1) * lengths[index] > _TOKENS_AT_ONCE:
            yield sorted(group)
            group = []
        group.append(index)
    yield sorted(group)


def asked_lines(cell: Cell) -> list[Line]:
    """What a cell is asked: prompts of its file, evenly spread as far as there are too many, or a
    shipped set."""
    if cell.workload.path is not None:
        lines = lines_of(cell.workload)
        count = min(len(lines), cell.quality.prompt_limit or len(lines))
        return [lines[index * len(lines) // count] for index in range(count)]
    file = PROMPT_SETS[str(cell.quality.prompts)]
    prompts: list[str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    turns = [({"role": "user", "content": prompt},) for prompt in prompts]
    return [Line(number, None, turn) for number, turn in enumerate(turns, 1)]
