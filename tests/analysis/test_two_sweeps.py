"""Noise of two sweeps against hand-computed values, and how often verdicts across sweeps are wrong
in simulated ones."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.stats import t_quantile
from bench.analysis.two_sweeps import Noise, Retimed, Side, overall, retimed, slowdowns
from bench.analysis.verdict import Levels, of_single_readings, spread, unpooled
from bench.config.cell import cell_id
from bench.record.measurement import Repeat
from bench.record.result import Replicate, Result
from bench.record.sweep import Spread
from bench.report.gated import gate_lines
from tests import fakes

RECORDED = json.loads(
    (Path(__file__).parents[1] / "data" / "process_noise.json").read_text(encoding="utf-8")
)
LEVELS = Levels(0.975, 0.975, 0.95)


def side(*results: Result, **changes: object) -> Side:
    return Side(fakes.sweep(*(r.cell_id for r in results), **changes), results)


def times(then: Side, now: Side) -> list[Retimed]:
    return retimed(now, then, [result.cell_id for result in then.results])


def test_what_passes_share_is_noise_with_as_few_degrees_of_freedom() -> None:
    # Two cells in three passes; only the passes differ, so there are three readings, not six
    alike = [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
    found = of_single_readings([alike])
    assert found == Spread(pytest.approx(1.0), pytest.approx(2.0))  # type: ignore[arg-type]
    # A residual of 1/12 within cells, 4.1667 between passes (test_verdict): 2 and 2 degrees
    found = of_single_readings([[[0.0, 1.0, 2.0], [10.0, 11.0, 12.5]]])
    assert found is not None
    shared, rest = 5 + 1 / 6 - 1 / 12, 1 / 12
    assert found.deviation**2 == pytest.approx((shared + rest) / 4)
    assert found.df == pytest.approx((shared + rest) ** 2 / (shared**2 / 2 + rest**2 / 2))


def test_without_passes_or_with_one_cell_every_reading_counts() -> None:
    rows = [[0.0, 1.0], [1.0, 3.0, 2.0]]
    assert of_single_readings([[row] for row in rows]) == spread(rows, blocked=False)
    assert of_single_readings([rows[1:]]) == spread(rows[1:], blocked=False)
    assert of_single_readings([[[1.0], [2.0]]]) is None
    calm = of_single_readings([[[1.0, 1.0], [2.0, 2.0]]])
    assert calm == Spread(0.0, 2)


def test_two_machines_are_welch_s_by_hand() -> None:
    # Variances 4 and 1 of three and six readings: 4/3 + 1/6 = 1.5
    found = unpooled(Spread(2.0, 2), 3, Spread(1.0, 5), 6)
    assert found.deviation**2 * (1 / 3 + 1 / 6) == pytest.approx(1.5)
    assert found.df == pytest.approx(1.5**2 / ((4 / 3) ** 2 / 2 + (1 / 6) ** 2 / 5))
    assert unpooled(Spread(0.0, 4), 3, Spread(0.0, 2), 3) == Spread(0.0, 2)


def test_one_machine_shares_its_noise_and_two_do_not() -> None:
    cell = fakes.cell()
    then = side(fakes.paced(cell, 1.0, 1.1))
    here, elsewhere = (
        side(fakes.paced(cell, 1.0, 1.3, 1.1, host=fakes.host(**changes)))
        for changes in ({}, {"cpu_name": "Another CPU"})
    )
    shared, apart = (times(then, now)[0].noise for now in (here, elsewhere))
    assert shared.is_shared
    assert shared.now == shared.then
    assert shared.now is not None
    assert shared.now.df == 3
    assert not apart.is_shared
    assert apart.then is not None
    assert apart.now is not None
    assert (apart.then.df, apart.now.df) == (1, 2)
    assert apart.then.deviation < shared.now.deviation < apart.now.deviation


def test_a_cell_whose_max_became_another_number_is_not_compared() -> None:
    asked = fakes.cell(batch="max")

    def found(rows: int, *steps_s: float) -> Side:
        result = fakes.paced(asked.sized(rows), *steps_s)
        return side(replace(result, asked=asked, cell_id=cell_id(asked)))

    then, alike, smaller = found(64, 1.0, 1.01), found(64, 1.002, 1.012), found(32, 1.003, 1.013)
    assert {each.word for each in slowdowns(alike, then, 0.5)} == {"no worse"}
    (change,) = slowdowns(smaller, then, 0.5)
    assert (change.word, change.ratio) == ("another size", None)
    assert overall([change]) == "cannot tell"
    first, last = gate_lines([change], 0.5)
    assert "/b32: max was another number in the baseline" in first
    assert last.startswith("cannot tell")


def test_a_machine_that_nothing_is_known_of_borrows_no_noise() -> None:
    cell, calm = fakes.cell(), {"tpot_s": Spread(0.01, 7)}
    then = side(fakes.paced(cell, 1.0, 1.01))
    once = fakes.paced(cell, 1.2)
    assert times(then, side(once))[0].change(0.03, LEVELS).low is not None
    other = replace(once, host=fakes.host(cpus=4))
    assert times(then, side(other))[0].change(0.03, LEVELS).word == "uncalibrated"
    calibrated = side(other, calibration=calm)
    assert times(then, calibrated)[0].change(0.03, LEVELS).low is not None


SWEEPS = 1000
BY_CHANCE = 66  # of 1,000: 5 %, and what chance adds with 99 % probability


def test_intervals_across_machines_hold_what_they_say() -> None:
    """One machine five times as noisy as the other, with fewer processes: pooling would miss."""
    rng, held, would_hold = np.random.default_rng(0), 0, 0
    for _ in range(SWEEPS):
        early, late = rng.normal(0, 0.05, 3), rng.normal(0, 0.01, 12)
        spreads = [spread([list(map(float, side))], blocked=False) for side in (early, late)]
        then, now = spreads
        assert then is not None
        assert now is not None
        difference = abs(float(late.mean() - early.mean()))
        noise = Noise(then, now, False).of(12, 3)
        assert noise is not None
        held += difference < _half(noise)
        df = then.df + now.df
        deviation = math.sqrt((then.deviation**2 * then.df + now.deviation**2 * now.df) / df)
        would_hold += difference < _half(Spread(deviation, df))
    print(f"{held} of {SWEEPS} intervals hold; pooled {would_hold} would")
    assert held >= SWEEPS - BY_CHANCE
    assert would_hold < SWEEPS - 2 * BY_CHANCE


def _half(noise: Spread) -> float:
    return t_quantile(0.975, noise.df) * noise.deviation * math.sqrt(1 / 3 + 1 / 12)


CELLS = [fakes.cell(batch=batch) for batch in range(1, 7)]
ALL, ONE = np.ones((2, 4)), np.zeros((2, 4))
ONE[1, 0] = 1  # the first one's TPOT
THRESHOLD = 0.05


def simulated(
    rng: np.random.Generator, passes: int, slower: np.ndarray, noise: float, drift: float
) -> Side:
    """Every cell slower by its share, in TTFT and TPOT; passes drift for all cells together."""
    logs = rng.normal(0, noise, (*slower.shape, passes)) + rng.normal(0, drift, (2, 1, passes))
    times_s = np.exp(logs + np.log1p(slower)[..., None])
    return side(
        *(
            fakes.result(cell=cell, replicates=tuple(map(_process, *of_cell)))
            for cell, of_cell in zip(CELLS, times_s.transpose(1, 0, 2).tolist(), strict=False)
        )
    )


def _process(ttft_s: float, step_s: float) -> Replicate:
    return fakes.process(repeats=(Repeat(ttft_s, (step_s,) * 3, ttft_s + 3 * step_s),))


def elsewhere(of: Side) -> Side:
    return replace(of, results=tuple(replace(r, host=fakes.host(cpus=4)) for r in of.results))


@pytest.mark.parametrize("is_elsewhere", [False, True])
@pytest.mark.parametrize("drift", [0.0, 0.03])
def test_a_gate_rarely_alarms_and_rarely_passes_what_is_slower(
    is_elsewhere: bool, drift: float
) -> None:
    """At the edge: every cell as slow as is accepted, and then only one."""
    rng, sweeps = np.random.default_rng(1), 250
    words: list[tuple[str, str]] = []
    for _ in range(sweeps):
        then, *later = (
            simulated(rng, 3, slower, 0.005, drift)
            for slower in (0 * ALL, THRESHOLD * ALL, THRESHOLD * ONE)
        )
        if is_elsewhere:
            later = [elsewhere(side) for side in later]
        every, one = (overall(slowdowns(now, then, THRESHOLD)) for now in later)
        words.append((every, one))
    alarms = sum(every == "worse" for every, _ in words)
    passed = sum(one == "no worse" for _, one in words)
    print(f"elsewhere {is_elsewhere}, drift {drift}: {alarms} alarm, {passed} pass, of {sweeps}")
    by_chance = 0.05 * sweeps + 2.33 * math.sqrt(0.05 * 0.95 * sweeps)
    assert alarms <= by_chance
    assert passed <= by_chance


def test_a_gate_finds_ten_percent_and_passes_what_is_as_fast() -> None:
    rng, sweeps = np.random.default_rng(2), 100
    words = []
    for slower in (0.0, 0.10):
        words.append([])
        for _ in range(sweeps):
            then, now = (simulated(rng, 6, by * ONE, 0.01, 0.005) for by in (0.0, slower))
            words[-1].append(overall(slowdowns(now, then, THRESHOLD)))
    print([{word: of.count(word) for word in set(of)} for of in words])
    assert words[0].count("no worse") >= 0.9 * sweeps
    assert words[1].count("worse") >= 0.9 * sweeps


@pytest.mark.parametrize(("kind", "passes"), [("alone", 3), ("alone", 6), ("disturbed", 3)])
def test_a_gate_between_passes_of_one_recorded_sitting_rarely_alarms(
    kind: str, passes: int
) -> None:
    """Twice so many of the recorded passes, drawn at random, are two sweeps of the same cells."""
    ttft_s, step_s = (np.array(RECORDED[kind]["least"][key]) for key in ("ttft_s", "tpot_s"))
    rng, tries, words = np.random.default_rng(0), 60, []
    for _ in range(tries):
        drawn = rng.permutation(ttft_s.shape[1])[: 2 * passes].reshape(2, passes)
        then, now = (
            side(
                *(
                    fakes.result(
                        cell=CELLS[i],
                        replicates=tuple(_process(ttft_s[i, k], step_s[i, k]) for k in chosen),
                    )
                    for i in range(len(ttft_s))
                )
            )
            for chosen in drawn.tolist()
        )
        words.append(tuple(overall(slowdowns(now, then, by)) for by in (THRESHOLD, 0.20)))
    counts = [{word: of.count(word) for word in set(of)} for of in zip(*words, strict=True)]
    print(f"{kind}, {passes} passes each, within 5 % and 20 %: {counts}")
    assert sum("worse" in each for each in words) <= 0.1 * tries
