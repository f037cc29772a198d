"""Tasks that tests run in an engine's own interpreter, which has no pytest."""

import sys

from bench.config.cell import Cell
from bench.engine.protocol import Announce, Untimed
from bench.meter.cell import begin, ids_of, measure_cell
from bench.record.result import Findings


def measure_and_list_modules(
    announce: Announce, place: str, cell: Cell
) -> tuple[Findings, list[str]]:
    """A timed process, and every module that it has imported by the end."""
    return measure_cell(announce, place, cell), sorted(sys.modules)


def greedy_tokens(announce: Announce, place: str, cell: Cell) -> list[int]:
    """What one request of the cell chooses."""
    engine, files, _ = begin(announce, place, cell)
    session = engine.open(cell, files)
    ids = ids_of(cell, session)
    tokens: list[int] = session.request(ids, cell.workload.new_tokens, Untimed())[0].tolist()
    return tokens


def logits_twice(announce: Announce, place: str, cell: Cell) -> tuple[bool, int, float]:
    """Whether rows read in turns give what each gives alone, how many positions they have, and the
    largest difference that the alternative kernel makes."""
    import numpy as np

    engine, files, _ = begin(announce, place, cell)
    session = engine.open(cell, files)
    rows = np.stack([ids_of(cell, session)[0]] * 2)
    rows[1] = rows[1, ::-1]
    alone = [np.concatenate(list((session.logits(row[None]) or [])[0])) for row in rows]
    together = session.logits(rows)
    assert together is not None
    in_turns = [np.concatenate(p) for p in zip(*zip(*together, strict=True), strict=True)]
    same = all(map(np.array_equal, alone, in_turns))
    session.alternative()
    other = np.concatenate(list((session.logits(rows[:1]) or [])[0]))
    return same, len(alone[0]), float(np.abs(other - alone[0]).max())
