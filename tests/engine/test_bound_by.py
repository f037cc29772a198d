"""What bounds a decode step, on real models in which the answer is planted."""

import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from bench.analysis.bottlenecks import Bottleneck, Cause, bottlenecks
from bench.engine import transformers
from bench.engine.clock import Clock
from bench.engine.protocol import ENGINES
from bench.engine.transformers.load import load
from bench.engine.transformers.profiling import profile_step
from bench.engine.transformers.strategies import loop
from bench.meter.cell import measure_cell
from tests import fakes

SMALL = dict(fakes.cell(model="tiny").model.architecture or {})


def bound(architecture: dict[str, Any], prompt_tokens: int = 16, **changes: Any) -> Bottleneck:
    """The word for a random model of this architecture, measured in this process."""
    model = fakes.group("model", "tiny", architecture=SMALL | architecture)
    workload = fakes.group("workload", "quick", prompt_tokens=prompt_tokens, new_tokens=6)
    measure = fakes.group("measure", "quick", warmups=1, repeats=3, target=None)
    cell = fakes.resolved(
        **{"model": model, "workload": workload, "measure": measure, "threads": 1} | changes
    )
    found = measure_cell(lambda *_: None, ENGINES["transformers"], cell)
    assert found.measurement is not None, found.attestation.mismatches
    result = fakes.result(
        cell=cell, replicates=(replace(fakes.process(), measurement=found.measurement),)
    )
    return bottlenecks([result])[result.cell_id]


def largest_operators(found: Bottleneck) -> Cause:
    """The interpreter's share is what a step takes beyond its operators: on a machine that tests
    share with others it has their time in it."""
    return next(cause for cause in found.shares if cause != "interpreter")


def test_huge_layers_are_bound_by_their_products() -> None:
    found = bound({"hidden_size": 2048, "intermediate_size": 8192})
    assert largest_operators(found) == "matrix products", found.evidence


def test_a_long_context_is_bound_by_attention() -> None:
    wide = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    found = bound(wide, prompt_tokens=2500)
    assert largest_operators(found) == "attention", found.evidence


def test_a_tiny_model_is_bound_by_what_is_around_its_products() -> None:
    narrow = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    found = bound({"num_hidden_layers": 8, **narrow, **heads})
    # Which of the two is larger is the machine's, and whether either alone exceeds the products
    around = found.shares["interpreter"] + found.shares["other operators"]
    assert around > found.shares["matrix products"], found.evidence


def test_the_quickest_of_the_profiled_steps_counts() -> None:
    model = load(fakes.cell(model="tiny", quant="fp32"), None)
    calls, pause_s = itertools.count(), 0.03

    def disturb(*_: object) -> None:
        if next(calls) % 2:
            time.sleep(pause_s)

    model.register_forward_pre_hook(disturb)
    with torch.inference_mode():
        found = profile_step(model, np.array([[1, 2, 3]]), "cpu")
    assert (found.phase, found.steps) == ("decode", 1)
    assert found.wall_s < pause_s
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s)


def test_int8_is_bound_by_what_it_does_to_activations() -> None:
    found = bound({"hidden_size": 256, "num_hidden_layers": 4}, quant="int8_nodecomp")
    assert largest_operators(found) == "dequantization", found.evidence


def test_a_sleep_in_the_step_is_the_interpreter_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transformers.STRATEGIES, "sleepy", f"{__name__}:sleepy")
    decode = {"name": "sleepy", "strategy": "sleepy"}
    found = bound({"hidden_size": 1024, "intermediate_size": 4096}, decode=decode)
    assert found.name == "interpreter", found.evidence


def sleepy(
    model: PreTrainedModel, prompt_ids: torch.Tensor, new_tokens: int, clock: Clock
) -> torch.Tensor:
    """The loop with a pause after each token."""

    class Slow:
        def start(self) -> None:
            clock.start()

        def token(self, count: int = 1) -> None:
            time.sleep(0.05)
            clock.token(count)

    return loop(model, prompt_ids, new_tokens, Slow())  # type: ignore[arg-type]
