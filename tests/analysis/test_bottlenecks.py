"""Bytes and operations against peaks, computed by hand, and the rules that name a bottleneck."""

from dataclasses import replace

import pytest

from bench.analysis import bottlenecks, cost
from bench.analysis.bottlenecks import StepReading, bottleneck
from bench.record.result import Peaks
from tests import fakes

# 300 weights in products, a head of 4 x 100, 2 layers with 4 heads of 1 dimension
FULL = fakes.attestation()
WINDOW = fakes.attestation(shape=replace(FULL.shape, sliding_windows=(None, 3)))
NF4 = fakes.attestation(is_quantized=True)

SHEET = Peaks(1000.0, {"fp32": 50.0, "bf16": 4000.0}, "data sheet: of a toy", measured=False)


def test_a_prefill_multiplies_weights_for_each_token_and_the_head_once() -> None:
    products, head = 2 * 300 * 5, 2 * 4 * 100
    pairs = 2 * (1 + 2 + 3 + 4 + 5)  # two layers
    assert cost.forward_flops(FULL, 5, 1) == products + head + 4 * 4 * 1 * pairs
    assert cost.forward_flops(FULL, 5, 3) == 3 * cost.forward_flops(FULL, 5, 1)


@pytest.mark.parametrize(
    ("tokens", "pairs"), [(1, 1 + 1), (3, 6 + 6), (4, 10 + 6 + 3), (5, 15 + 6 + 3 + 3)]
)
def test_a_window_bounds_what_a_token_looks_at(tokens: int, pairs: int) -> None:
    assert cost.forward_flops(WINDOW, tokens, 1) == 2 * 300 * tokens + 800 + 16 * pairs


def test_a_decode_step_looks_at_its_context() -> None:
    assert cost.step_flops(FULL, 10, 1) == 600 + 800 + 16 * (10 + 10)
    assert cost.step_flops(FULL, 2.5, 2) == 2 * (600 + 800 + 16 * 5)
    assert cost.step_flops(WINDOW, 10, 1) == 600 + 800 + 16 * (10 + 3)


def test_a_prompt_of_one_token_is_a_decode_step() -> None:
    assert cost.forward_flops(FULL, 1, 4) == cost.step_flops(FULL, 1, 4)


def test_bandwidth_use_is_bytes_over_time_over_the_peak() -> None:
    assert cost.bandwidth_share(SHEET, 500, 2.0) == 0.25
    assert cost.bandwidth_share(SHEET, 1500, 1.0) == 1.5  # more than the peak is shown as it is


def test_compute_use_is_of_the_dtype_that_ran() -> None:
    assert cost.mfu(SHEET, 1000, 0.5, "bf16") == 0.5
    assert cost.mfu(SHEET, 50, 2.0, "fp32") == 0.5
    assert cost.mfu(SHEET, 1000, 0.5, "int8") is None


def test_the_ceiling_is_the_nearer_of_both_bounds() -> None:
    assert cost.ceiling_tok_s(SHEET, 500, 40, 4, "bf16") == 8  # 0.5 s to read
    assert cost.ceiling_tok_s(SHEET, 500, 40, 4, "fp32") == 5  # 0.8 s to compute
    assert cost.ceiling_tok_s(SHEET, 500, 40, 4, "int8") == 8  # an unknown peak bounds nothing


# A step of 10 s, of which 1 s would do to read its bytes and 0.5 s to compute.
SLOW = StepReading(step_s=10.0, step_bytes=1000, step_flops=50, read_bytes_s=1000, peak_flops=100)
# Quantized: 16-bit weights would be read in 4 s.
QUANTIZED = replace(SLOW, unquantized_bytes=4000)


@pytest.mark.parametrize(
    ("reading", "name", "value"),
    [
        (replace(SLOW, step_bytes=6000), "bandwidth", "0.60"),
        (replace(SLOW, step_bytes=5999), "unclear", "0.60, below 0.6"),
        (replace(SLOW, step_flops=600), "compute", "0.60"),
        (replace(SLOW, step_flops=599), "unclear", "0.60, below 0.6"),
        (replace(SLOW, step_flops=600, peak_flops=None), "unclear", "0.10, below 0.6"),
        (replace(SLOW, host_s=8.0), "host overhead", "0.80"),
        (replace(SLOW, host_s=7.99), "unclear", "0.80, below 0.8"),
        # beyond the floor 9 s here, 6 s in the 16-bit cell: 3 of 10 s are added
        (replace(QUANTIZED, unquantized_step_s=10.0), "dequantization", "0.30"),
        (replace(QUANTIZED, unquantized_step_s=10.01), "unclear", "0.30, below 0.3"),
        (replace(QUANTIZED, unquantized_step_s=12.0), "unclear", "0.10, below 0.3"),
        # no such cell: 6 of 10 s are left when 16-bit weights are read
        (QUANTIZED, "dequantization", "0.60"),
        (replace(QUANTIZED, unquantized_bytes=6000), "dequantization", "0.40"),
        (replace(QUANTIZED, unquantized_bytes=6001), "unclear", "0.40, below 0.4"),
    ],
)
def test_each_rule_holds_from_its_threshold_on(reading: StepReading, name: str, value: str) -> None:
    found = bottleneck(reading)
    assert found.name == name
    assert value in found.evidence


def test_the_first_rule_that_holds_decides() -> None:
    everything = replace(QUANTIZED, step_bytes=7000, step_flops=700, host_s=9.0)
    assert bottleneck(everything).name == "bandwidth"
    assert bottleneck(replace(everything, step_bytes=1)).name == "compute"
    assert bottleneck(replace(everything, step_bytes=1, step_flops=1)).name == "host overhead"
    assert (
        bottleneck(replace(everything, step_bytes=1, step_flops=1, host_s=1.0)).name
        == "dequantization"
    )


def test_a_cell_without_quantization_has_none_to_blame() -> None:
    assert bottleneck(replace(SLOW, unquantized_step_s=1.0)).name == "unclear"


def test_the_evidence_has_the_numbers() -> None:
    reading = StepReading(
        0.01, 8e9, 1e12, 1e12, 1e15, unquantized_bytes=16e9, unquantized_step_s=0.02
    )
    assert (
        bottleneck(reading).evidence
        == "share of the read bandwidth in use: 0.80, at least 0.6; a step takes 10 ms, at least 8"
        " ms; it reads 8 GB at a peak of 1000 GB/s; with 16-bit weights it takes 20 ms"
    )


def test_every_rule_can_be_printed() -> None:
    assert {rule.cause for rule in bottlenecks.RULES} == {
        "bandwidth",
        "compute",
        "host overhead",
        "dequantization",
    }
    for rule in bottlenecks.RULES:
        assert 0 < rule.threshold < 1
        assert rule.quantity


def test_the_reading_of_a_quantized_cell_knows_its_16_bit_weights() -> None:
    reading = bottlenecks.read_step(
        NF4, SHEET, 10, 2, step_s=1.5, unquantized_step_s=2.0, host_s=0.5
    )
    assert reading == StepReading(
        step_s=1.5,
        step_bytes=cost.step_bytes(NF4, 10, 2),
        step_flops=cost.step_flops(NF4, 10, 2),
        read_bytes_s=1000.0,
        peak_flops=4000.0,
        unquantized_bytes=2 * (300 + 400) + 160,
        unquantized_step_s=2.0,
        host_s=0.5,
    )


def test_the_reading_of_another_cell_has_nothing_to_compare_with() -> None:
    reading = bottlenecks.read_step(FULL, SHEET, 10, 2, step_s=1.5, unquantized_step_s=2.0)
    assert reading.unquantized_bytes is None
    assert reading.unquantized_step_s is None
