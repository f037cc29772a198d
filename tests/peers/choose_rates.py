"""How often ``choose`` is right, what it costs, and whether its chances are what they say: simulated
on recorded sweeps and recorded noise.

    python -m tests.peers.choose_rates [SPACES]

A space is ``drawn``, or a part of a ``recorded`` sweep (``tests/data/recorded_cells.json``): 4 to 10
configurations of it at one batch, with their TTFT or TPOT as the truth. A drawn one has 4 to 10
configurations whose true times differ by a factor that is itself drawn (a standard deviation of 5 %
to 80 %), and in every third space two are equal. A process reads its configuration's true time,
times a deviation drawn from recorded processes (``tests/data/process_noise.json``: quiet, alone on
another machine, beside a busy neighbour). Right is an answer within 3 % of the best. Beside it: as
many processes spent on random configurations, and a full grid of three. What it costs is compared
by the budgets of the two cares: a process of measure=quick has 12 s for its requests, one of
measure=standard 60.

The calibration has races stop at all sorts of confidence, and compares the chance that they state
with how often they are right.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from unittest.mock import patch

import numpy as np

from bench.analysis.metrics import derive
from bench.analysis.racing import missed
from bench.config.cell import Cell
from bench.driver import race as policy
from bench.paths import ROOT
from tests.driver.test_race import cells, play

_QUICK_S, _STANDARD_S, _MARGIN = 12.0, 60.0, 0.03


def deviations() -> dict[str, list[list[float]]]:
    """By kind of machine: logarithms of processes over their cell's mean, a row a cell."""
    data = json.loads((ROOT / "tests/data/process_noise.json").read_text(encoding="utf-8"))
    rows = {
        "quiet": data["quiet"]["median"]["tpot_s"],
        "alone": data["alone"]["least"]["tpot_s"],
        "disturbed": data["disturbed"]["least"]["tpot_s"],
    }
    return {
        kind: [[math.log(x) - fmean(map(math.log, row)) for x in row] for row in of_kind]
        for kind, of_kind in rows.items()
    }


Space = Callable[[np.random.Generator], list[float]]  # true times


def recorded(generator: np.random.Generator) -> list[float]:
    """Of a part of a recorded sweep."""
    file = ROOT / "tests/data/recorded_cells.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    cells_of = data["sweeps"][int(generator.integers(len(data["sweeps"])))]["cells"]
    batch = int(generator.integers(len(data["batches"])))
    metric = ("ttft_ms", "tpot_ms")[int(generator.integers(2))]
    names = generator.choice(list(cells_of), int(generator.integers(4, 11)), replace=False)
    return [cells_of[name][metric][batch] / 1000 for name in names]


def drawn(generator: np.random.Generator) -> list[float]:
    """Of configurations that nobody has measured."""
    count = int(generator.integers(4, 11))
    times = np.exp(generator.uniform(0.05, 0.8) * generator.standard_normal(count))
    if generator.random() < 1 / 3:
        order = np.argsort(times)
        times[order[1]] = times[order[0]]
    return list(map(float, times))


SPACES: Mapping[str, Space] = {"recorded": recorded, "drawn": drawn}


def once(
    true_s: Sequence[float], noise: Sequence[float], generator: np.random.Generator, sure: float
) -> tuple[bool, float, int]:
    """Whether the answer of one race is right, the chance that it states, and its processes."""
    given = cells(len(true_s))
    place = {cell.seed: s for cell, s in zip(given, true_s, strict=True)}

    def step_s(cell: Cell) -> float:
        return place[cell.seed] * math.exp(generator.choice(noise))

    course, records, jobs = play(given, step_s, confidence=sure)
    assert course.search is not None
    assert course.final is not None
    assert course.final.leader is not None
    twins = list(course.twins.values())
    right = true_s[twins.index(course.final.leader)] <= (1 + _MARGIN) * min(true_s)
    searched = [records.results[cell] for cell in course.search.chances]
    values = {result.cell_id: derive(result) for result in searched}
    inside = frozenset(arm for arm, twin in course.twins.items() if twin in course.final.chances)
    chance = course.final.chances[course.final.leader]
    return right, chance * (1 - missed(searched, values, course.question, inside)), len(jobs)


def at_random(
    true_s: Sequence[float], noise: Sequence[float], generator: np.random.Generator, spent: int
) -> bool:
    """As many processes of random configurations; the least mean is the answer."""
    read: dict[int, list[float]] = {}
    for which in generator.integers(0, len(true_s), spent):
        read.setdefault(int(which), []).append(
            math.log(true_s[which]) + float(generator.choice(noise))
        )
    best = min(read, key=lambda which: fmean(read[which]))
    return true_s[best] <= (1 + _MARGIN) * min(true_s)


def rates(space: Space, spaces: int) -> None:
    print(f"{'noise':<12}{'right':>8}{'at random':>11}{'full grid':>11}{'of its time':>13}")
    for kind, rows in deviations().items():
        generator = np.random.default_rng(0)
        noise = [x for row in rows for x in row]
        right, blind, grid, shares = [], [], [], []
        for _ in range(spaces):
            true_s = space(generator)
            is_right, _, spent = once(true_s, noise, generator, 0.95)
            right.append(is_right)
            blind.append(at_random(true_s, noise, generator, spent))
            means = [math.log(s) + fmean(generator.choice(noise) for _ in range(3)) for s in true_s]
            chosen = true_s[int(np.argmin(means))]
            grid.append(chosen <= (1 + _MARGIN) * min(true_s))
            shares.append(spent * _QUICK_S / (3 * len(true_s) * _STANDARD_S))
        print(
            f"{kind:<12}{fmean(right):>8.1%}{fmean(blind):>11.1%}{fmean(grid):>11.1%}"
            f"{median(shares):>13.2f}",
            flush=True,
        )


def calibration(space: Space, spaces: int) -> None:
    generator = np.random.default_rng(1)
    rows = deviations()
    told: dict[int, list[tuple[float, bool]]] = {}
    with patch.object(policy, "_CONFIRMING", 1):
        for index in range(spaces):
            noise = [x for row in rows[("quiet", "alone", "disturbed")[index % 3]] for x in row]
            sure = float(generator.uniform(0.2, 0.97))
            right, chance, _ = once(space(generator), noise, generator, sure)
            told.setdefault(min(9, int(chance * 10)), []).append((chance, right))
    print(f"{'chance':<12}{'races':>8}{'stated':>9}{'right':>9}")
    for bin_, of_bin in sorted(told.items()):
        stated, often = fmean(c for c, _ in of_bin), fmean(r for _, r in of_bin)
        print(
            f"{bin_ / 10:.1f} to {bin_ / 10 + 0.1:.1f}  {len(of_bin):>8}{stated:>9.2f}{often:>9.2f}"
        )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for name, space in SPACES.items():
        print(f"\nspaces: {name}")
        rates(space, count)
        calibration(space, 10 * count)
