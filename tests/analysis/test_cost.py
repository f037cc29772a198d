"""The arithmetic of bytes and operations, and both against peaks, computed by hand."""

from dataclasses import replace

import pytest

from bench.analysis import cost
from bench.record.result import Attestation, Peaks
from tests import fakes

FULL = fakes.attestation()  # 4 bytes a token in each of two layers


def windows(*sizes: int | None) -> Attestation:
    return fakes.attestation(shape=replace(FULL.shape, sliding_windows=sizes))


def test_a_cache_grows_with_context_and_batch() -> None:
    assert cost.kv_bytes(FULL, 10, 1) == 80
    assert cost.kv_bytes(FULL, 20, 1) == 160
    assert cost.kv_bytes(FULL, 10, 3) == 240


@pytest.mark.parametrize(("context_tokens", "expected"), [(5, 40), (6, 48), (10, 64), (100, 424)])
def test_a_layer_with_a_sliding_window_keeps_no_more_than_its_window(
    context_tokens: int, expected: int
) -> None:
    assert cost.kv_bytes(windows(None, 6), context_tokens, 1) == expected


def test_a_cache_of_sliding_windows_alone_stops_growing() -> None:
    assert cost.kv_bytes(windows(6, 4), 1000, 2) == 80


def test_a_mean_context_may_lie_between_two_tokens() -> None:
    assert cost.kv_bytes(FULL, 2.5, 1) == 20


def test_a_step_reads_the_weights_without_the_gathered_rows() -> None:
    assert cost.weight_bytes_per_step(FULL) == 800


def test_a_step_reads_weights_once_and_the_cache_of_each_sequence() -> None:
    assert cost.step_bytes(FULL, 10, 1) == 880
    assert cost.step_bytes(FULL, 10, 4) == 1120


# Of 300 weights in products, a head of 4 x 100, 2 layers with 4 heads of 1 dimension
WINDOW = fakes.attestation(shape=replace(FULL.shape, sliding_windows=(None, 3)))

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


def test_layers_without_a_cache_read_none() -> None:
    hybrid = windows(None, 0)
    assert cost.kv_bytes(hybrid, 10, 1) == 8 * 10  # all of it is the one layer's
    assert cost.kv_bytes(windows(0, 0), 10, 1) == 0
    assert cost.step_flops(hybrid, 10, 1) == 600 + 800 + 16 * 10
