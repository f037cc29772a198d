"""What another token loop brings: one model, its strategies in turn in one process.

``python -m tests.peers.decode_speed [ROUNDS]``: by how much ``static`` and ``compiled`` shorten a
decode step of ``loop``, and ``prompt_lookup`` a token of ``workload=rewrite``; ratios are of the
rounds' own pairs, so that what disturbs the machine falls on all alike. It wants a quiet machine
and a compiler.
"""

import platform
import statistics
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.config.cell import Cell
from bench.engine.clock import Untimed
from bench.engine.prompts import Ids, prompt_ids
from bench.engine.protocol import ENGINES, engine_at
from bench.engine.transformers import strategy
from bench.meter.host import host_of
from tests import fakes

PROMPT_TOKENS, NEW_TOKENS, THREADS = 128, 64, 2
ENGINE: Any = engine_at(ENGINES["transformers"])


def cell_of(quant: str, **changes: Any) -> Cell:
    cell = fakes.resolved(quant=quant, threads=THREADS, **changes)
    if "head" not in cell.quant.parameters:
        return cell
    with_head = {**cell.quant.parameters, "head": "int8"}
    return replace(cell, quant=replace(cell.quant, parameters=with_head))


def compare(session: Any, names: tuple[str, ...], ids: Ids, new_tokens: int, rounds: int) -> None:
    """Times of a token, of each strategy and as a ratio to the first one's."""
    runs = {name: strategy(name, session.model) for name in names}
    times: dict[str, list[float]] = defaultdict(list)
    answers: dict[str, Ids] = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            session.strategy = run
            if not number:  # compiles, and warms up
                session.ready(ids, new_tokens)
                answers[name] = session.request(ids, new_tokens, Untimed())
                continue
            clock = session.clock(new_tokens)
            session.request(ids, new_tokens, clock)
            repeat, _ = clock.read()
            times[name].append(sum(repeat.decode_step_s) / repeat.decoded_tokens)
    first = names[0]
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
        unlike = (answers[name] != answers[first]).any(0).nonzero()[0]
        same = "all tokens alike" if not len(unlike) else f"unlike from token {unlike[0]} on"
        least_ms = min(times[name]) * 1e3
        print(
            f"{session.cell.quant.name:>10} batch {len(ids)} {name:>14} {least_ms:7.2f} ms a token"
        )
        print(f"{'':>26} {ratio:.2f} times as fast as {first}, {same} {runs[name].ran().details}")


def main(rounds: int) -> None:
    print(
        f"{host_of(ENGINE).cpu_name}, {THREADS} threads, torch {torch.__version__}, Python"
        f" {platform.python_version()}, {rounds} rounds"
    )
    steps = ("loop", "static", "compiled")
    for quant, batch in (("fp16", 1), ("bf16", 1), ("nf4", 1), ("int4_g64", 1), ("fp16", 8)):
        session = opened(cell_of(quant))
        ids = np.arange(1, batch * PROMPT_TOKENS + 1).reshape(batch, PROMPT_TOKENS)
        compare(session, steps, ids, NEW_TOKENS, rounds)
    for quant in ("bf16", "fp32"):
        session = opened(cell_of(quant, workload="rewrite"))
        ids = prompt_ids(session.cell, session.tokenizer, session.vocabulary)
        new_tokens = session.cell.workload.new_tokens
        compare(session, ("loop", "prompt_lookup"), ids, new_tokens, rounds)


def opened(cell: Cell) -> Any:
    ENGINE.prepare(cell)
    return ENGINE.open(cell, ENGINE.provide(cell, print))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
