"""How fast products with weights of our own are beside others': models in one process, in turn.

``python -m tests.peers.own_speed [ROUNDS]`` opens the default model once for each configuration and
lets them answer in turn, so that what disturbs the machine falls on all alike; ratios are of the
rounds' own pairs. It wants a quiet machine and its whole memory.
"""

import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench.config.cell import Cell
from bench.engine.protocol import ENGINES, engine_at
from bench.engine.transformers.own.build import instruction_set
from bench.meter.host import host_of
from tests import fakes

PROMPT_TOKENS, NEW_TOKENS, THREADS = 32, 16, 2
BATCHES = (1, 8, 32)
ENGINE: Any = engine_at(ENGINES["transformers"])


def cells() -> Mapping[str, Cell]:
    plain = {name: fakes.resolved(quant=name, threads=THREADS) for name in ("bf16", "nf4")}
    own = fakes.resolved(quant="int4_g64", threads=THREADS)
    with_head = {**own.quant.parameters, "head": "int8"}
    head = replace(own, quant=replace(own.quant, parameters=with_head))
    exact = replace(own, quant=replace(own.quant, parameters={**with_head, "activations": "none"}))
    eight = fakes.resolved(quant="int8_channel", threads=THREADS)
    return {
        **plain,
        "int4_g64": own,
        "int4_g64, int8 head": head,
        "the same, 16-bit activations": exact,
        "int8_channel": eight,
    }


def main(rounds: int) -> None:
    sessions: dict[str, Any] = {}
    step_bytes: dict[str, int] = {}
    ids = np.arange(1, PROMPT_TOKENS + 1)[None]
    for name, cell in cells().items():
        ENGINE.prepare(cell)
        sessions[name] = ENGINE.open(cell, ENGINE.provide(cell, print))
        attestation = sessions[name].attest(ids, 2)
        step_bytes[name] = attestation.weight_bytes - attestation.gathered_bytes
    print(f"{host_of(ENGINE).cpu_name}, instruction set {instruction_set()}, {THREADS} threads,")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {rounds} rounds")
    for batch in BATCHES:
        times: dict[str, list[tuple[float, float]]] = defaultdict(list)
        rows = np.repeat(ids, batch, axis=0)
        for number in range(rounds + 1):
            for name, session in sessions.items():
                clock = session.clock(NEW_TOKENS)
                session.request(rows, NEW_TOKENS, clock)
                repeat, _ = clock.read()
                if number:  # the first one warms up
                    times[name].append((repeat.ttft_s, statistics.median(repeat.decode_step_s)))
        report(batch, times, step_bytes)


def report(
    batch: int, times: Mapping[str, list[tuple[float, float]]], step_bytes: Mapping[str, int]
) -> None:
    print(f"\nbatch {batch}: ms of prefill and of a step (least), GB/s of weights, ratios (median)")
    for name, pairs in times.items():
        prefill, step = (min(each) for each in zip(*pairs, strict=True))
        ratios = [
            f"{statistics.median(b[i] / a[i] for a, b in zip(pairs, times[base], strict=True)):.2f}"
            for base in ("bf16", "nf4")
            for i in (0, 1)
        ]
        print(
            f"{name:>30} {prefill * 1e3:8.1f} {step * 1e3:7.1f} {step_bytes[name] / step / 1e9:6.1f}"
            f"   against bf16: prefill {ratios[0]}, decode {ratios[1]};"
            f" against nf4: prefill {ratios[2]}, decode {ratios[3]}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
