"""Does what a process did before it loaded a model change what it reads?

    python -m tests.peers.heap                # with the heap set, as in every measured process
    python -m tests.peers.heap --as-it-comes  # without

Each history is planted in fresh processes, in turn with the others, five times: a tokenizer was
loaded, the heap has holes, other threads have allocated from arenas of their own, large pages were
asked for. Prints the least TTFT and TPOT of each beside those without a history (fp32, batch 3, 77
prompt tokens of random weights; a minute and a half on two CPU cores a round).
"""

import ctypes
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np

from bench.engine.clock import HostClock
from bench.engine.sources import fetch
from bench.engine.transformers import ENGINE
from bench.meter.memory import settle_heap
from tests import fakes

ROUNDS, REQUESTS, NEW_TOKENS = 5, 8, 8
_PR_SET_THP_DISABLE = 41  # prctl(2)


def nothing() -> None:
    """No history."""


def tokenizer() -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(fetch(fakes.cell().model))


def holes() -> None:
    """Every other one of 4,000 blocks of 64 KiB to 1 MiB is freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(2**16 * (1 + index % 16)) for index in range(4000)]
    for block in blocks[::2]:
        libc.free(block)


def arenas() -> None:
    threads = [threading.Thread(target=holes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def no_large_pages() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


HISTORIES: dict[str, Callable[[], None]] = {
    "nothing": nothing,
    "tokenizer": tokenizer,
    "holes": holes,
    "arenas": arenas,
    "no large pages": no_large_pages,
}


def measured(history: str, is_set: bool) -> None:
    """In a process of its own: print the least TTFT and TPOT."""
    if is_set:
        settle_heap()
    HISTORIES[history]()
    model = fakes.group("model", "smollm2-135m", weights="random")
    cell = fakes.resolved(model=model, quant="fp32", attn="sdpa", batch=3)
    ENGINE.prepare(cell)
    session = ENGINE.open(cell, ENGINE.provide(cell, lambda _: None))
    ids = np.random.default_rng(0).integers(1, 40_000, (3, 77))
    repeats = []
    for _ in range(REQUESTS):
        clock = HostClock()
        session.request(ids, NEW_TOKENS, clock)
        repeats.append(clock.read()[0])
    steps = zip(*(repeat.decode_step_s for repeat in repeats), strict=True)
    print(min(r.ttft_s for r in repeats), statistics.fmean(map(min, steps)))


def compare(*flags: str) -> None:
    """Every history in turn, ``ROUNDS`` times; beside no history at all."""
    times: dict[str, list[list[float]]] = {name: [] for name in HISTORIES}
    for _ in range(ROUNDS):
        for name in HISTORIES:
            command = [sys.executable, "-m", "tests.peers.heap", "--history", name, *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times[name].append([float(each) for each in done.stdout.split()[-2:]])
    for name, rows in times.items():
        ratios = [
            [here / plain for here, plain in zip(row, base, strict=True)]
            for row, base in zip(rows, times["nothing"], strict=True)
        ]
        ttft, tpot = (statistics.median(column) for column in zip(*ratios, strict=True))
        seconds = " ".join(f"{row[0]:.3f}" for row in rows)
        print(f"{name:15} TTFT {ttft:.3f} times, TPOT {tpot:.3f} times; TTFT s {seconds}")


if __name__ == "__main__":
    if "--history" in sys.argv:
        measured(sys.argv[sys.argv.index("--history") + 1], "--as-it-comes" not in sys.argv)
    else:
        compare(*sys.argv[1:])
