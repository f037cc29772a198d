"""Sweeps side by side, on made-up results whose ratios are known."""

import math
from dataclasses import replace

import pytest

from bench.analysis.side_by_side import MEMORY, SideBySide, side_by_side
from bench.analysis.two_sweeps import Side, overall
from bench.record.measurement import Canary, Divergence
from bench.record.result import Outcome, Result
from tests import fakes

ONE, EIGHT = fakes.cell(), fakes.cell(batch=8)


def side(*results: Result, **changes: object) -> Side:
    return Side(fakes.sweep(*(result.cell_id for result in results), **changes), results)


FIRST = side(fakes.paced(ONE, 0.500, 0.502, 0.501), fakes.paced(EIGHT, 1.00, 1.01, 1.004))
AGAIN = side(fakes.paced(ONE, 0.5005, 0.5015, 0.5025), fakes.paced(EIGHT, 1.003, 1.009, 1.001))
SLOWER = side(fakes.paced(ONE, 0.551, 0.552, 0.5505), fakes.paced(EIGHT, 1.002, 1.008, 1.005))


def words(found: SideBySide, metric: str = "tpot_s") -> list[list[str | None]]:
    return [
        [None if each is None else each.times[metric].word for each in row.against]
        for row in found.rows
    ]


def test_a_planted_slowdown_is_found_and_an_equal_cell_is_equivalent() -> None:
    found = side_by_side([FIRST, SLOWER], 0.03)
    assert found.columns == ("batch",)
    assert words(found) == [[None, "slower"], [None, "equivalent"]]
    assert words(found, "ttft_s") == [[None, "equivalent"]] * 2
    change = found.rows[0].against[1].times["tpot_s"]  # type: ignore[union-attr]
    assert change.ratio == pytest.approx(0.909, abs=0.001)
    assert change.low is not None
    assert change.high is not None
    assert change.low < 0.909 < change.high < 1 / 1.03
    assert change.medians_ratio == pytest.approx(change.ratio)
    assert found.rows[0].values[0]["tpot_s"] == pytest.approx(0.501, abs=1e-4)
    assert [overall(each) if each else None for each in found.verdicts] == [None, "worse"]


def test_the_same_once_more_is_equivalent_and_no_worse() -> None:
    found = side_by_side([FIRST, AGAIN], 0.03)
    assert words(found) == [[None, "equivalent"]] * 2
    assert found.elsewhere == [[], []]
    assert found.within == [[], []]
    assert overall(found.verdicts[1]) == "no worse"


def test_three_sweeps_are_compared_with_the_first_and_all_together() -> None:
    two, three = side_by_side([FIRST, SLOWER], 0.03), side_by_side([FIRST, SLOWER, AGAIN], 0.03)
    assert words(three) == [[None, "slower", "equivalent"], [None, "equivalent", "equivalent"]]
    ends = [found.rows[0].against[1].times["tpot_s"].low for found in (two, three)]  # type: ignore[union-attr]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[1] < ends[0]  # more comparisons ask for more


def test_a_cell_that_the_first_lacks_is_compared_with_the_next() -> None:
    only_one = side(FIRST.results[0])
    found = side_by_side([only_one, AGAIN, SLOWER], 0.03)
    last = found.rows[1].against
    assert last[0] is None
    assert last[1] is None
    assert last[2] is not None
    assert last[2].base == 1


def test_cells_that_only_one_has_are_named() -> None:
    found = side_by_side([side(FIRST.results[0]), AGAIN], 0.03)
    assert len(found.rows) == 1
    assert found.alone == ((), (EIGHT.label,))
    apart = side_by_side([side(FIRST.results[0]), side(AGAIN.results[1])], 0.03)
    assert apart.rows == ()
    assert apart.alone == ((ONE.label,), (EIGHT.label,))


def test_a_cell_without_a_number_has_a_place_and_no_ratio() -> None:
    failed = fakes.result(cell=ONE, outcome=Outcome("oom", "too large"))
    found = side_by_side([FIRST, side(failed, AGAIN.results[1])], 0.03)
    assert found.rows[0].against == (None, None)
    assert found.rows[0].values[1] == {}
    assert overall(found.verdicts[1]) == "worse"


def test_the_same_readings_are_not_compared() -> None:
    found = side_by_side([FIRST, side(FIRST.results[0], AGAIN.results[1])], 0.03)
    taken, measured = (row.against[1] for row in found.rows)
    assert taken is not None
    assert measured is not None
    assert taken.apart == "the same readings"
    assert taken.times == {}
    assert measured.times["tpot_s"].word == "equivalent"


def test_what_differs_comes_from_machine_and_code_and_from_what_cells_became() -> None:
    host = fakes.host(cpu_name="Other CPU", device_name="Other CPU")
    moved = [
        replace(
            r,
            host=host,
            cell=replace(r.cell, threads=4),
            attestation=fakes.attestation(weight_bytes=900),
        )
        for r in AGAIN.results
    ]
    found = side_by_side([FIRST, side(*moved, provenance=fakes.provenance(commit="abc"))], 0.03)
    assert [each.what for each in found.elsewhere[1]] == ["device", "commit"]
    assert [(d.what, d.then, d.now, n) for d, n in found.within[1]] == [
        ("threads", "2", "4", 2),
        ("in memory, weight bytes", "1000", "900", 2),
    ]
    assert found.rows[0].against[1].times["tpot_s"].low is not None  # type: ignore[union-attr]


def test_reference_kernels_tell_of_another_state_of_the_machine() -> None:
    def with_kernels(of: Side, times: float) -> Side:
        canary = Canary(*(times * each for each in (0.01, 0.002, 0.004)))
        slowed = (
            replace(
                r,
                replicates=tuple(
                    replace(p, measurement=replace(p.measurement, before=canary))
                    for p in r.replicates
                    if p.measurement is not None
                ),
            )
            for r in of.results
        )
        return side(*slowed)

    assert side_by_side([FIRST, with_kernels(AGAIN, 1.02)], 0.03).kernels(1) is None
    assert side_by_side([FIRST, with_kernels(AGAIN, 1.3)], 0.03).kernels(1) == pytest.approx(1.3)


def test_memory_is_compared_as_it_is() -> None:
    def with_peak(of: Side, peak: int) -> Side:
        memory = fakes.memory(rss_peak_bytes=peak)
        results = (
            replace(
                r,
                replicates=tuple(
                    replace(p, measurement=replace(p.measurement, run_memory=memory))
                    for p in r.replicates
                    if p.measurement is not None
                ),
            )
            for r in of.results
        )
        return side(*results)

    row = side_by_side([FIRST, with_peak(AGAIN, 7000)], 0.03).rows[0]
    assert [values[MEMORY] for values in row.values] == [4000, 6000]  # grown from 1,000
    assert row.against[1] is not None
    assert row.against[1].memory == 1.5


def asked(nll_nats: tuple[float, ...], kl_nats: tuple[float, ...], **changes: object) -> Divergence:
    windows = (
        fakes.window(nll_nats=nll, kl_nats=kl, **changes)
        for nll, kl in zip(nll_nats, kl_nats, strict=True)
    )
    return fakes.divergence(*windows)


def shifts(then: Divergence, now: Divergence) -> dict[str, tuple[str, float]]:
    pairs = [
        side(fakes.paced(ONE, 0.5 + i / 1000, 0.501, divergence=each))
        for i, each in enumerate((then, now))
    ]
    against = side_by_side(pairs, 0.03).rows[0].against[1]
    assert against is not None
    return {key: (shift.word, shift.value.value) for key, shift in against.quality.items()}


THEN = asked((2.0, 2.5, 3.0, 2.2), (0.50, 0.80, 0.30, 0.60))


def test_quality_is_paired_by_window() -> None:
    """Windows differ far more than any of them moved."""
    now = asked((2.1, 2.61, 3.09, 2.3), (0.52, 0.82, 0.319, 0.621))
    found = shifts(THEN, now)
    assert found["kl_nats"] == ("higher", pytest.approx(0.02))
    assert found["perplexity"] == ("higher", pytest.approx(math.exp(0.1)))
    back = shifts(now, THEN)
    assert back["kl_nats"] == ("lower", pytest.approx(-0.02))
    assert shifts(THEN, asked((2.1, 2.4, 3.1, 2.1), (0.4, 0.9, 0.2, 0.7)))["kl_nats"][0] == (
        "cannot tell"
    )


def test_equal_windows_are_equal_and_other_texts_are_not_compared() -> None:
    assert {word for word, _ in shifts(THEN, THEN).values()} == {"equal"}
    other = asked((2.0, 2.5, 3.0, 2.2), (0.5, 0.8, 0.3, 0.6), text="code")
    assert shifts(THEN, other) == {}
    assert shifts(THEN, replace(THEN, reference="bf16")).keys() == {"perplexity"}


def test_at_the_noise_floor_no_order_is_said() -> None:
    then, now = (
        asked((2.0,) * 4, kls, floor_kl_nats=0.01)
        for kls in ((0.009, 0.011, 0.009, 0.0105), (0.0091, 0.0111, 0.0091, 0.0106))
    )
    assert shifts(then, now)["kl_nats"][0] == "at the noise floor"
