"""Fits over the depth, on times that were planted: what is found again, how often, and what is
said of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench.analysis.comparison import Comparison, compare
from bench.analysis.depth import (
    at,
    coefficient,
    configurations,
    crossing_tokens,
    even_tokens,
    fitted,
    is_off,
    quotient,
)
from bench.analysis.growth import QUANTITIES, scored
from bench.analysis.stats import Estimate
from bench.analysis.verdict import spread
from bench.record.depth import Fit
from bench.record.measurement import Repeat
from bench.record.result import Result
from bench.record.sweep import Spread
from tests import fakes

DEPTHS = (128, 512, 2048, 4096)
BASE_S, PER_TOKEN_S = 0.020, 2e-6
LINE = (BASE_S, PER_TOKEN_S)
SEEDS = range(200)
# Of 200 seeds at 95 %: 190, and beyond these bounds once in ten thousand such tests
ABOUT_95_PERCENT = range(178, 200)


def planted(
    seed: int, *coefficients: float, processes: int = 3, deviation: float = 0.02
) -> list[list[float]]:
    """Times at ``DEPTHS`` with noise that is a share of them."""
    noise = np.random.default_rng(seed).normal(1.0, deviation, (len(DEPTHS), processes))
    exact = np.polynomial.polynomial.polyval(np.array(DEPTHS), coefficients)
    return [list(row) for row in exact[:, None] * noise]


def own_noise(times_s: Sequence[Sequence[float]]) -> Spread | None:
    return spread([list(np.log(each)) for each in times_s], blocked=False)


def fit(times_s: Sequence[Sequence[float]], degree: int = 1, noise: Spread | None = None) -> Fit:
    found = fitted(DEPTHS, times_s, degree, noise or own_noise(times_s))
    assert found is not None
    return found


def holds(estimate: Estimate | None, truth: float) -> bool:
    return estimate is not None and estimate.low <= truth <= estimate.high


def counted(holds_for: Callable[[int], bool]) -> int:
    return sum(map(holds_for, SEEDS))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("power", [0, 1])
def test_the_line_is_in_its_interval_as_often_as_that_says(processes: int, power: int) -> None:
    """With several processes a depth, and with one, where distances from the line are the noise."""
    found = counted(
        lambda seed: holds(
            coefficient(fit(planted(seed, *LINE, processes=processes)), power), LINE[power]
        )
    )
    assert found in ABOUT_95_PERCENT


@pytest.mark.parametrize("power", [0, 1, 2])
def test_so_is_the_prefill(power: int) -> None:
    curve = (0.05, 8e-5, 6e-9)
    found = counted(
        lambda seed: holds(coefficient(fit(planted(seed, *curve), degree=2), power), curve[power])
    )
    assert found in ABOUT_95_PERCENT


def test_a_line_fits_as_often_as_it_should_and_a_curve_does_not() -> None:
    assert 200 - counted(lambda seed: is_off(fit(planted(seed, *LINE)))) in ABOUT_95_PERCENT
    curved = (*LINE, 2e-9)  # at 4,096 twice the line
    assert counted(lambda seed: is_off(fit(planted(seed, *curved)))) == 200
    assert fit(planted(0, *curved)).farthest > 0.05
    assert counted(lambda seed: is_off(fit(planted(seed, *curved), degree=2))) <= 22


def test_a_calibration_stands_in_for_processes_that_are_not_there() -> None:
    calm, curved = Spread(0.02, 7), planted(0, *LINE, 2e-9, processes=1)
    alone = fit(curved)
    assert alone.lack_of_fit_p is None
    assert not is_off(alone)
    assert is_off(fit(curved, noise=calm))
    straight = fit(planted(1, *LINE, processes=1), noise=calm)
    assert (straight.deviation, straight.df) == (0.02, 7)


def test_a_lack_of_fit_makes_the_interval_wider() -> None:
    straight, curved = fit(planted(3, *LINE)), fit(planted(3, *LINE, 2e-9))

    def width(of: Fit) -> float:
        slope = coefficient(of, 1)
        return (slope.high - slope.low) / slope.value

    assert width(curved) > 3 * width(straight)


def test_too_few_depths_give_nothing() -> None:
    noise = Spread(0.02, 7)
    assert fitted((128, 512), [[1.0], [2.0]], 1, None) is None
    assert fitted((128, 512, 1024), [[1.0], [2.0], [4.0]], 2, None) is None
    exact = fitted((128, 512, 1024), [[1.0], [2.0], [4.0]], 2, noise)
    assert exact is not None
    assert exact.lack_of_fit_p is None
    assert at(exact, 512).value == pytest.approx(2.0)


def test_a_prediction_holds_for_what_is_measured_afterwards() -> None:
    def held(seed: int) -> bool:
        of, tokens = fit(planted(seed, *LINE)), 8192
        later = np.random.default_rng(1000 + seed).normal(1.0, 0.02, 3).mean()
        return holds(at(of, tokens, 3), (BASE_S + PER_TOKEN_S * tokens) * float(later))

    assert counted(held) in ABOUT_95_PERCENT


def test_the_interval_of_a_quotient_is_that_of_fieller() -> None:
    """Its ends are where above - quotient x below is a limit of significance."""
    covariance = [[0.04, 0.01], [0.01, 0.09]]
    found = quotient(6.0, 2.0, covariance, 10)
    assert found is not None
    assert found.value == 3.0
    t = 2.2281388519649385
    for end in (found.low, found.high):
        variance = 0.04 - 2 * end * 0.01 + end**2 * 0.09
        assert (6.0 - end * 2.0) ** 2 == pytest.approx(t * t * variance)
    assert quotient(6.0, 0.6, covariance, 10) is None  # 0.6 may be 0


def test_where_context_outweighs_all_else_is_in_its_interval() -> None:
    truth = BASE_S / PER_TOKEN_S  # 10,000 tokens, beyond the depths
    assert counted(lambda s: holds(even_tokens(fit(planted(s, *LINE))), truth)) in ABOUT_95_PERCENT


def test_a_planted_crossing_is_in_its_interval() -> None:
    """30 ms + 1 us a token against 20 ms + 5 us: equal at 2,500 tokens."""

    def found(seed: int) -> Estimate | None:
        first = fit(planted(seed, 0.030, 1e-6))
        return crossing_tokens(first, fit(planted(1000 + seed, 0.020, 5e-6)))

    # The lesser degrees of freedom of two make it a little wider
    assert counted(lambda seed: holds(found(seed), 2500)) >= ABOUT_95_PERCENT.start


def test_lines_that_are_alike_cross_nowhere_that_could_be_told() -> None:
    crossings = [
        crossing_tokens(fit(planted(s, *LINE)), fit(planted(1000 + s, *LINE))) for s in SEEDS
    ]
    assert sum(each is not None for each in crossings) <= 22


def measured(quant: str, prompt_tokens: int, *steps_s: float, ttft_s: float = 1.0) -> Result:
    """One process for each of ``steps_s``; prompts of 3 new tokens, so steps attend to 1.5 tokens
    more on average."""
    workload = {"name": "few", "text": "prose", "prompt_tokens": prompt_tokens, "new_tokens": 3}
    processes = tuple(
        fakes.process(
            prompt_tokens=prompt_tokens,
            repeats=(Repeat(ttft_s, (step_s, step_s), ttft_s + 2 * step_s),),
        )
        for step_s in steps_s
    )
    cell = fakes.resolved(quant=quant, workload=workload)
    return fakes.result(cell=cell, replicates=processes)


def deep(
    quant: str, base_s: float, per_token_s: float, depths: Sequence[int] = DEPTHS
) -> list[Result]:
    """Two processes a depth, 1 % to both sides."""
    exact = {n: base_s + per_token_s * (n + 1.5) for n in depths}
    return [measured(quant, n, 0.99 * s, 1.01 * s, ttft_s=1e-3 * n) for n, s in exact.items()]


def said(comparison: Comparison) -> list[str]:
    return [f.sentence for f in comparison.findings if f.kind == "depth"]


BF16, NF4 = deep("bf16", 0.020, 2e-6), deep("nf4", 0.010, 6e-6)


def test_a_sweep_over_the_depth_says_what_context_costs_and_where_lines_cross() -> None:
    comparison = compare([*BF16, *NF4], fakes.sweep())
    cost, crossing = said(comparison)
    assert cost.startswith("context: quant=bf16: each 1,000 tokens cost a step 2 ms (1.")
    assert "; quant=nf4: each 1,000 tokens cost a step 6 ms (5." in cost
    assert "and beyond 10,000 tokens (" in cost
    assert "extrapolated) attention outweighs the rest; " in cost  # 10,000, not nf4's 1,667
    assert cost.count("extrapolated") == 1
    assert crossing.startswith("quant=bf16 decodes faster than nf4 from a context of 2,500 tokens")
    fits = [each for each in comparison.crossovers if each.along == "context"]
    assert [(each.first, each.second) for each in fits] == [("nf4", "bf16")]
    assert fits[0].low < 2500 < fits[0].high
    # In place of the straight line between the two depths around it
    pairs = [(each.metric, each.along) for each in comparison.crossovers]
    assert ("tpot_s", "prompt_tokens") not in pairs


def test_its_numbers_are_numbers_of_every_cell() -> None:
    comparison = compare([*BF16, *NF4], fakes.sweep())
    keys = {quantity.key for quantity in QUANTITIES}
    for result in (*BF16, *NF4):
        of_cell = comparison.values[result.cell_id]
        assert keys <= of_cell.keys()
        slope = 2e-6 if result.cell.quant.name == "bf16" else 6e-6
        assert of_cell["step_per_context_token_s"] == pytest.approx(slope, rel=1e-3)
        assert of_cell["step_per_context_token_s_low"] < slope
        assert of_cell["prefill_per_token_s"] == pytest.approx(1e-3, rel=1e-3)


def test_a_crossing_beyond_the_depths_is_called_extrapolated() -> None:
    far = compare([*deep("bf16", 0.060, 2e-6), *NF4], fakes.sweep())  # at 12,500
    assert any("(1" in each and "extrapolated from 130 to 4,098)" in each for each in said(far))


def test_what_does_not_grow_so_that_it_shows_is_said_so() -> None:
    (sentence,) = said(compare(deep("bf16", 0.020, 0.0), fakes.sweep()))
    assert sentence.startswith("context: up to 4,096 tokens no growth of a step can be told, ")


def test_a_line_that_does_not_fit_is_said_so() -> None:
    curved = [
        measured("bf16", n, 0.99 * step_s, 1.01 * step_s)
        for n, step_s in zip(DEPTHS, (0.02, 0.02, 0.04, 0.10), strict=True)
    ]
    (sentence,) = said(compare(curved, fakes.sweep()))
    assert "(no straight line: depths are up to " in sentence


def test_one_process_a_depth_cannot_tell_whether_a_line_fits() -> None:
    alone = [replace(result, replicates=result.replicates[:1]) for result in BF16]
    (sentence,) = said(compare(alone, fakes.sweep()))
    assert sentence.endswith("one process a depth cannot tell whether these are straight lines")


def test_other_cells_are_no_depth() -> None:
    other = replace(NF4[0], cell=replace(NF4[0].cell, batch=8))
    assert configurations([*BF16[:2], other, *NF4[2:]], {}) == []
    assert said(compare([*BF16[:2], *NF4[2:]], fakes.sweep())) == []


def test_an_earlier_fit_is_held_against_a_depth_that_it_did_not_have() -> None:
    (configuration,) = configurations(BF16, {})
    earlier = {configuration.growth.configuration: configuration.growth}
    straight, slow = deep("bf16", 0.020, 2e-6, (8192,)), deep("bf16", 0.030, 2e-6, (8192,))
    (sentence,) = scored(straight, earlier, ["quant"])
    begin = "predicted by the fits of sweep 2026-01-31_12-00-00: quant=bf16 at 8,192 tokens"
    assert sentence.startswith(f"{begin} TPOT 36.4 (")
    assert "measured 36.4 ms: held, TTFT " in sentence
    (sentence,) = scored(slow, earlier, ["quant"])
    assert "measured 46.4 ms: missed" in sentence
    # Not against what it had, what is another machine's, another configuration's, or older
    elsewhere = replace(straight[0], host=fakes.host(device_name="Another CPU"))
    for results in (BF16, NF4, [elsewhere], [replace(straight[0], reused_from="before")]):
        assert list(scored(results, earlier, [])) == []
