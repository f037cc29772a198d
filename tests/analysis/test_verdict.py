"""Verdicts against hand-computed intervals, and how often they are wrong in simulated sweeps."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.verdict import compare_pairs, spread
from bench.record.sweep import Spread

NOISE = json.loads(
    (Path(__file__).parents[1] / "data" / "process_noise.json").read_text(encoding="utf-8")
)


def test_noise_is_what_cells_and_blocks_do_not_explain() -> None:
    # The second block is 1 slower, the third 2; left over: 0.5 of one
    rows = [[0.0, 1.0, 2.0], [10.0, 11.0, 12.5]]
    found = spread(rows, blocked=True)
    # residuals of a 2 x 3 table: +-1/6, +-1/6 / ... computed by hand: sum of squares 1/12, df
    # (2-1)(3-1) = 2
    assert found is not None
    assert found.df == 2
    assert found.deviation == pytest.approx(math.sqrt(1 / 12 / 2))


def test_without_blocks_only_the_cells_means_are_taken_out() -> None:
    found = spread([[0.0, 2.0], [10.0, 10.0, 13.0]], blocked=False)
    assert found is not None
    assert found.df == 3
    assert found.deviation == pytest.approx(math.sqrt((1 + 1 + 1 + 1 + 4) / 3))


@pytest.mark.parametrize("blocked", [True, False])
def test_one_process_a_cell_has_no_noise(blocked: bool) -> None:
    assert spread([[0.0], [1.0]], blocked) is None


def verdict(
    gain: float, deviation: float, comparisons: int = 1
) -> tuple[str, float | None, float | None]:
    """Of a cell that is ``gain`` faster (in logs), one process each, known noise with many degrees
    of freedom."""
    noise = Spread(deviation / math.sqrt(2), 1e6)
    found = compare_pairs(
        {"base": [0.0], "cell": [-gain]},
        [("cell", "base")],
        groups=[["base", "cell"]],
        margin=0.03,
        comparisons=comparisons,
        calibration=noise,
    )["cell"]
    return found.word, found.low, found.high


@pytest.mark.parametrize(
    ("gain", "deviation", "word"),
    [
        (0.10, 0.03, "faster"),  # 0.10 - 1.96 x 0.03 = 0.041 > ln 1.03 = 0.0296
        (0.10, 0.04, "different"),  # 0.0216: above 0, below the margin
        (0.10, 0.06, "cannot tell"),  # -0.018
        (-0.10, 0.03, "slower"),
        (-0.10, 0.04, "different"),
        (0.00, 0.01, "equivalent"),  # 1.645 x 0.01 inside the margin
        (0.00, 0.02, "cannot tell"),
        (0.02, 0.005, "equivalent"),  # different from 1, and yet within the margin
    ],
)
def test_the_word_follows_from_one_interval_and_one_margin(
    gain: float, deviation: float, word: str
) -> None:
    assert verdict(gain, deviation)[0] == word


def test_more_comparisons_ask_for_more() -> None:
    assert verdict(0.10, 0.03)[0] == "faster"
    assert verdict(0.10, 0.03, comparisons=12)[0] == "different"
    narrow, wide = verdict(0.1, 0.03), verdict(0.1, 0.03, comparisons=12)
    assert narrow[1] is not None
    assert wide[1] is not None
    assert math.log(narrow[1]) == pytest.approx(0.1 - 1.95996 * 0.03, abs=1e-5)
    assert math.log(wide[1]) == pytest.approx(0.1 - 2.86527 * 0.03, abs=1e-4)  # z of 0.05 / 24


def test_nothing_to_judge_by_is_uncalibrated() -> None:
    found = compare_pairs(
        {"a": [0.0], "b": [-1.0]}, [("b", "a")], groups=[["a", "b"]], margin=0.03, comparisons=1
    )["b"]
    assert (found.word, found.low, found.high) == ("uncalibrated", None, None)
    assert found.ratio == pytest.approx(math.e)


CELLS, SWEEPS = 9, 1000
# Two values against a baseline, at three batches
PAIRS = [(str(cell), str(cell % 3)) for cell in range(3, CELLS)]
METRICS = ("ttft_s", "tpot_s")
ALARMS = ("faster", "slower", "different")
BY_CHANCE = 66  # of 1,000 sweeps: 5 %, and what chance adds with 99 % probability


def residuals(kind: str, metric: str, times: str = "least") -> np.ndarray:
    """What recorded processes differ by, logarithms, from the mean of their cell."""
    logs = np.log(np.array(NOISE[kind][times][metric]))
    left: np.ndarray = logs - logs.mean(axis=1, keepdims=True)
    return left.ravel() * math.sqrt(logs.shape[1] / (logs.shape[1] - 1))


def sweeps_with(kind: str, passes: int, planted: float, times: str = "least") -> np.ndarray:
    """Words of simulated sweeps: recorded processes drawn again; cell 3 is slower in TTFT."""
    rng = np.random.default_rng(0)
    words = []
    for _ in range(SWEEPS):
        words.append([])
        for metric in METRICS:
            # Blocks drift as well
            drift = rng.normal(0, 0.02, size=passes)
            logs = rng.choice(residuals(kind, metric, times), size=(CELLS, passes)) + drift
            logs[3] += math.log1p(planted) if metric == "ttft_s" else 0.0
            rows = {str(i): list(map(float, row)) for i, row in enumerate(logs)}
            found = compare_pairs(
                rows, PAIRS, groups=[list(rows)], margin=0.03, comparisons=2 * len(PAIRS)
            )
            words[-1] += [found[cell].word for cell, _ in PAIRS]
    return np.array(words)


def alarms(words: np.ndarray) -> int:
    """Sweeps in which cells that are equal are called different."""
    return int(np.isin(words, ALARMS).any(axis=1).sum())


def found(words: np.ndarray) -> int:
    """Sweeps that find what is planted."""
    return int(np.isin(words[:, 0], ("slower", "different")).sum())


def test_on_a_quiet_machine_equal_cells_rarely_alarm_and_five_percent_are_found() -> None:
    equal, planted = (sweeps_with("quiet", 3, gain, times="median") for gain in (0.0, 0.05))
    print(f"quiet: {alarms(equal)} of {SWEEPS} alarm falsely, {found(planted)} find 5 %")
    assert alarms(equal) <= BY_CHANCE
    assert found(planted) >= 0.9 * SWEEPS


@pytest.mark.parametrize("kind", ["alone", "disturbed", "alone_worse_day", "disturbed_worse_day"])
def test_on_a_machine_with_neighbours_equal_cells_rarely_alarm(kind: str) -> None:
    equal, planted = sweeps_with(kind, 6, 0.0), sweeps_with(kind, 6, 0.15)
    by_medians = sweeps_with(kind, 6, 0.15, times="median")
    print(f"{kind}: {alarms(equal)} of {SWEEPS} alarm falsely, {found(planted)} find 15 %")
    print(f"by medians {found(by_medians)} find it")
    assert alarms(equal) <= BY_CHANCE
    if kind == "disturbed":  # on the worse day six processes find it in a third of sweeps
        assert found(planted) >= 0.8 * SWEEPS


REAL = [(kind, passes) for kind in ("alone", "disturbed") for passes in (3, 6)]
REAL += [("alone_worse_day", 3), ("alone_worse_day", 6), ("disturbed_worse_day", 6)]


@pytest.mark.parametrize(("kind", "passes"), REAL)
def test_real_sweeps_of_equal_cells_rarely_alarm(kind: str, passes: int) -> None:
    """Every choice of so many of the recorded passes is a sweep; cells that differ in the seed
    alone are equal."""
    names = NOISE[kind]["cells"]
    bases = {name.split()[0]: name for name in names if name.endswith("seed 0")}
    pairs = [(n, bases[n.split()[0]]) for n in names if n not in bases.values()]
    assert len(pairs) == 4
    recorded = [np.log(np.array(NOISE[kind]["least"][metric])) for metric in METRICS]
    choices = list(itertools.combinations(range(recorded[0].shape[1]), passes))
    wrong = 0
    for chosen in choices:
        words: list[str] = []
        for logs in recorded:
            rows = {n: logs[i, list(chosen)].tolist() for i, n in enumerate(names)}
            verdicts = compare_pairs(
                rows, pairs, groups=[list(rows)], margin=0.03, comparisons=2 * len(pairs)
            )
            words += [verdicts[cell].word for cell, _ in pairs]
        wrong += any(word in ALARMS for word in words)
    print(f"{kind}: {wrong} of {len(choices)} sweeps of {passes} passes alarm falsely")
    # 5 %, and what chance adds: of the choices only a few have no pass in common
    assert wrong <= 0.1 * len(choices)


def test_a_calibration_counts_where_it_knows_more_than_the_sweep() -> None:
    logs = {"base": [0.0, 0.5], "cell": [-1.0, -0.9]}  # one degree of freedom
    alone = compare_pairs(
        logs, [("cell", "base")], groups=[list(logs)], margin=0.03, comparisons=400
    )["cell"]
    assert alone.word == "cannot tell"
    assert alone.high is not None
    assert math.isfinite(alone.high)
    calm = Spread(0.01, 7)
    helped = compare_pairs(
        logs, [("cell", "base")], groups=[list(logs)], margin=0.03, comparisons=4, calibration=calm
    )["cell"]
    assert helped.word == "faster"
