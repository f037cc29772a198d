"""Verdicts against hand-computed intervals, and how often they are wrong in simulated sweeps."""

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
        blocked=True,
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
        {"a": [0.0], "b": [-1.0]}, [("b", "a")], blocked=True, margin=0.03, comparisons=1
    )["b"]
    assert (found.word, found.low, found.high) == ("uncalibrated", None, None)
    assert found.ratio == pytest.approx(math.e)


CELLS, PASSES, SWEEPS = 9, 3, 1000
# Two values against a baseline, at three batches
PAIRS = [(str(cell), str(cell % 3)) for cell in range(3, CELLS)]


def sweeps_with(
    rng: np.random.Generator, noise: np.ndarray, passes: int, planted: float
) -> np.ndarray:
    """Words of simulated sweeps: recorded processes drawn again; cell 3 is slower in the first
    metric."""
    words = []
    for _ in range(SWEEPS):
        words.append([])
        for metric in range(2):
            # Blocks drift as well
            logs = rng.choice(noise, size=(CELLS, passes)) + rng.normal(0, 0.02, size=passes)
            logs[3] += planted if metric == 0 else 0.0
            rows = {str(i): list(map(float, row)) for i, row in enumerate(logs)}
            found = compare_pairs(
                rows, PAIRS, blocked=True, margin=0.03, comparisons=2 * len(PAIRS)
            )
            words[-1] += [found[cell].word for cell, _ in PAIRS]
    return np.array(words)


ALARMS = ("faster", "slower", "different")


@pytest.mark.parametrize("metric", ["ttft_s", "tpot_s"])
def test_simulated_sweeps_of_equal_cells_rarely_alarm(metric: str) -> None:
    noise = np.log(NOISE["processes"][metric])
    words = sweeps_with(np.random.default_rng(0), noise - noise.mean(), PASSES, planted=0.0)
    alarms = int(np.isin(words, ALARMS).any(axis=1).sum())
    print(f"{metric}: {alarms} of {SWEEPS} sweeps with a false alarm")
    assert alarms <= 66  # 5 %, and what chance adds to 1,000 sweeps with 99 % probability


@pytest.mark.parametrize("metric", ["ttft_s", "tpot_s"])
def test_a_planted_difference_of_five_percent_is_found(metric: str) -> None:
    noise = np.log(NOISE["processes"][metric])
    words = sweeps_with(
        np.random.default_rng(1), noise - noise.mean(), PASSES, planted=math.log(1.05)
    )
    found = int(np.isin(words[:, 0], ("slower", "different")).sum())
    print(f"{metric}: {found} of {SWEEPS} sweeps find it")
    assert found >= 0.8 * SWEEPS


def test_a_calibration_counts_where_it_knows_more_than_the_sweep() -> None:
    logs = {"base": [0.0, 0.5], "cell": [-1.0, -0.9]}  # one degree of freedom
    alone = compare_pairs(logs, [("cell", "base")], blocked=True, margin=0.03, comparisons=400)[
        "cell"
    ]
    assert alone.word == "cannot tell"
    assert alone.high is not None
    assert math.isfinite(alone.high)
    calm = Spread(0.01, 7)
    helped = compare_pairs(
        logs, [("cell", "base")], blocked=True, margin=0.03, comparisons=4, calibration=calm
    )["cell"]
    assert helped.word == "faster"
