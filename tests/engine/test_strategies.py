"""The timed loops give the tokens that a plain forward over the whole text gives."""

import dataclasses

import pytest
import torch
from transformers import PreTrainedModel

from bench.engine.protocol import HostClock
from bench.engine.transformers import STRATEGIES, strategy
from bench.engine.transformers.load import load
from tests import fakes


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load(fakes.cell(model="tiny", quant="fp32"), None)


def greedy_without_cache(
    model: PreTrainedModel, ids: torch.Tensor, new_tokens: int
) -> torch.Tensor:
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, -new_tokens:]


@pytest.mark.parametrize("name", list(STRATEGIES))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_loop_is_greedy_and_counts_every_step(
    model: PreTrainedModel, name: str, batch: int
) -> None:
    ids = torch.randint(0, 320, (batch, 9), generator=torch.Generator().manual_seed(1))
    clock = HostClock()
    with torch.inference_mode():
        tokens = strategy(name)(model, ids, 6, clock)
        assert tokens.tolist() == greedy_without_cache(model, ids, 6).tolist()
    repeat, mismatch = clock.read()
    assert mismatch is None
    assert len(repeat.decode_step_s) == 5
    assert repeat.ttft_s + sum(repeat.decode_step_s) == pytest.approx(repeat.e2e_s)


def test_every_loop_of_the_configuration_exists() -> None:
    names = {fakes.cell(decode=name).decode.strategy for name in ("loop", "generate")}
    assert names == set(STRATEGIES)


def test_an_end_of_sequence_does_not_end_the_loop(model: PreTrainedModel) -> None:
    ids = torch.zeros((1, 4), dtype=torch.int64)
    with torch.inference_mode():
        first = int(strategy("loop")(model, ids, 2, HostClock())[0, 0])
        model.generation_config.eos_token_id = first
        try:
            lengths = {
                name: strategy(name)(model, ids, 5, HostClock()).shape[1] for name in STRATEGIES
            }
        finally:
            model.generation_config.eos_token_id = None
    assert lengths == {"loop": 5, "generate": 5}


def test_cells_are_values() -> None:
    cell = fakes.cell()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cell.batch = 2  # type: ignore[misc]
