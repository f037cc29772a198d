"""Layers that read the same tensor are one product, of which each finds its part."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.config.cell import LayerQuant, Quant
from bench.engine.clock import HostClock
from bench.engine.transformers.exchange import LayerExchange
from bench.engine.transformers.load import load
from bench.engine.transformers.own.build import obstacle
from bench.engine.transformers.own.layers import Int4Linear, OwnLinear
from bench.engine.transformers.own.siblings import Siblings, apart, join, joined
from tests import fakes

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"needs {obstacle()}")

PROMPTS = torch.arange(24).reshape(3, 8)


def tiny(name: str = "int4_g64", **layers: str) -> PreTrainedModel:
    cell = fakes.resolved(model="tiny", quant=name)
    named = {
        pattern: LayerQuant(other, values["scheme"], parameters=values["parameters"])
        for pattern, other in layers.items()
        for values in [fakes.group("quant", other)]
    }
    return load(replace(cell, quant=replace(cell.quant, layers=named)), None)


def products(model: PreTrainedModel, ids: Tensor) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.inference_mode(), torch.profiler.profile(activities=activities) as profile:
        model(ids)
    return sum(event.name == "bench::int4_linear" for event in profile.events())


def prefill_and_step(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        prefill = model(PROMPTS, use_cache=True)
        step = model(PROMPTS[:, :1], past_key_values=prefill.past_key_values, use_cache=True)
    return prefill.logits, step.logits


def test_of_seven_layers_of_a_block_four_products_are_left() -> None:
    model = tiny()
    blocks = model.config.num_hidden_layers
    assert joined(model) == {"q_proj+k_proj+v_proj": blocks, "gate_proj+up_proj": blocks}
    assert products(model, PROMPTS) == 4 * blocks
    with apart(model):
        assert joined(model) == {}
        assert products(model, PROMPTS) == 7 * blocks
    assert products(model, PROMPTS) == 4 * blocks


@pytest.mark.parametrize("quant", ["int4_g64", "int4_g32", "int8_channel"])
def test_no_number_changes(quant: str) -> None:
    model = tiny(quant)
    together = prefill_and_step(model)
    with apart(model):
        for joint, alone in zip(together, prefill_and_step(model), strict=True):
            assert torch.equal(joint, alone)


def test_weights_lie_once() -> None:
    attention = tiny().model.layers[0].self_attn
    whole = attention.q_proj.siblings.whole
    start = whole.weight.untyped_storage().data_ptr()
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert layer.weight.untyped_storage().data_ptr() == start
        assert layer.weight.is_contiguous()


def test_a_layer_that_is_called_with_something_else_computes_its_own() -> None:
    attention = tiny().model.layers[0].self_attn
    one, other = torch.randn(2, attention.q_proj.in_features, dtype=torch.bfloat16).split(1)
    attention.q_proj(one)
    assert torch.equal(attention.k_proj(other), attention.k_proj.product(other))
    assert torch.equal(attention.v_proj(one), attention.v_proj.product(one))
    assert attention.q_proj.siblings.input is None  # nothing is kept
    assert torch.equal(attention.k_proj(one), attention.k_proj.product(one))


def test_only_layers_of_one_kind_are_joined() -> None:
    blocks = tiny().config.num_hidden_layers
    assert joined(tiny(**{"**.q_proj": "int8_channel", "**.up_proj": "int4_g32"})) == {
        "k_proj+v_proj": blocks
    }
    assert joined(tiny("int4_g64_awq")) == {}  # each scales its inputs


def test_a_layer_that_two_blocks_share_stays_alone() -> None:
    model = tiny()
    for layer in model.modules():
        if isinstance(layer, OwnLinear):
            layer.siblings = None
    model.model.layers[1].mlp.gate_proj = model.model.layers[0].mlp.gate_proj
    join(model)
    assert "gate_proj+up_proj" not in joined(model)


def test_biases_are_joined_too() -> None:
    quant = Quant("int4_g64", "own_int4", "bf16", fakes.resolved(quant="int4_g64").quant.parameters)
    from bench.engine.transformers.schemes import SCHEMES

    of = SCHEMES[quant.scheme].layer
    assert of is not None
    layers = [of(torch.nn.Linear(64, outputs).bfloat16(), quant) for outputs in (24, 8)]
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    alone = [layer(x) for layer in layers]
    Siblings(layers)
    assert all(torch.equal(layer(x), before) for layer, before in zip(layers, alone, strict=True))
    assert all(isinstance(layer, Int4Linear) for layer in layers)


def test_a_compiled_graph_holds_one_product_of_both() -> None:
    mlp = tiny().model.layers[0].mlp
    graph = torch.export.export(mlp, (torch.randn(2, 1, mlp.hidden_size, dtype=torch.bfloat16),))
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count("bench.int4_linear.default") == 2


def test_exchanged_layers_run_as_they_would_and_are_timed_alone() -> None:
    cell = fakes.resolved(model="tiny", quant="int4_g64")
    model = load(fakes.resolved(model="tiny", quant="bf16"), None)
    exchange = LayerExchange(model, {"int4_g64": cell.quant}, "cpu")
    clock = HostClock()
    with exchange.exchanged(dict.fromkeys(exchange.sizes, "int4_g64")):
        assert sum(joined(model).values()) == 2 * model.config.num_hidden_layers
        with exchange.stamped(clock) as called:
            clock.start()
            assert products(model, PROMPTS) == len(exchange.sizes)
        assert called == list(exchange.sizes)
        assert products(model, PROMPTS) == 4 * model.config.num_hidden_layers
    assert products(model, PROMPTS) == 0


def test_joined_layers_can_be_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny()
    state = {name: t for name, t in model.state_dict().items() if "mlp" in name}
    save_file(state, tmp_path / "own.safetensors")
    again = load_file(tmp_path / "own.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
