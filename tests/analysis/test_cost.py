"""The arithmetic of bytes."""

from dataclasses import replace

import pytest

from bench.analysis import cost
from bench.record.result import Attestation
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
