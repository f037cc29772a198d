"""Layers that read the same tensor are one product, of which each finds its part."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.config.cell import LayerQuant
from bench.engine.transformers.load import load
from bench.engine.transformers.own.build import obstacle
from bench.engine.transformers.own.layers import Int4Linear, OwnLinear
from bench.engine.transformers.own.siblings import Shelf, Siblings, join, joined
from bench.engine.transformers.schemes import SCHEMES
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


def apart(model: PreTrainedModel) -> PreTrainedModel:
    for layer in model.modules():
        if isinstance(layer, OwnLinear):
            layer.siblings = None
    return model


def prefill_and_step(model: PreTrainedModel, rows: int = 3) -> tuple[Tensor, Tensor]:
    ids = PROMPTS[:rows]
    with torch.inference_mode():
        prefill = model(ids, use_cache=True)
        step = model(ids[:, :1], past_key_values=prefill.past_key_values, use_cache=True)
    return prefill.logits, step.logits


def test_of_seven_layers_of_a_block_four_products_are_left() -> None:
    model = tiny()
    blocks = model.config.num_hidden_layers
    assert joined(model) == {"q_proj+k_proj+v_proj": blocks, "gate_proj+up_proj": blocks}
    assert products(model, PROMPTS) == 4 * blocks
    assert products(apart(model), PROMPTS) == 7 * blocks
    assert joined(model) == {}


@pytest.mark.parametrize("quant", ["int4_g64", "int4_g32", "int8_channel"])
def test_no_number_changes(quant: str) -> None:
    model = tiny(quant)
    together = [prefill_and_step(model, rows) for rows in (3, 1)]
    alone = [prefill_and_step(apart(model), rows) for rows in (3, 1)]
    for ours, theirs in zip(together, alone, strict=True):
        assert all(map(torch.equal, ours, theirs))


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
    assert attention.q_proj.siblings.shelf.outputs == ()  # nothing is kept
    assert torch.equal(attention.k_proj(one), attention.k_proj.product(one))


def test_only_layers_of_one_kind_are_joined() -> None:
    blocks = tiny().config.num_hidden_layers
    assert joined(tiny(**{"**.q_proj": "int8_channel", "**.up_proj": "int4_g32"})) == {
        "k_proj+v_proj": blocks
    }
    assert joined(tiny("int4_g64_awq")) == {}  # each scales its inputs


def test_a_layer_that_two_blocks_share_stays_alone() -> None:
    model = apart(tiny())
    model.model.layers[1].mlp.gate_proj = model.model.layers[0].mlp.gate_proj
    join(model)
    assert "gate_proj+up_proj" not in joined(model)


def own(outputs: int) -> Int4Linear:
    quant, of = fakes.resolved(quant="int4_g64").quant, SCHEMES["own_int4"].layer
    assert of is not None
    layer = of(torch.nn.Linear(64, outputs).bfloat16(), quant)
    assert isinstance(layer, Int4Linear)
    return layer


def test_biases_are_joined_too() -> None:
    layers, x = [own(24), own(8)], torch.randn(5, 64, dtype=torch.bfloat16)
    alone = [layer(x) for layer in layers]
    Siblings(layers, Shelf())
    assert all(torch.equal(layer(x), before) for layer, before in zip(layers, alone, strict=True))


def test_a_compiled_graph_holds_one_product_of_both() -> None:
    mlp = tiny().model.layers[0].mlp
    graph = torch.export.export(mlp, (torch.randn(2, 1, mlp.hidden_size, dtype=torch.bfloat16),))
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert called.count("bench.int4_linear.default") == 2


def test_a_layer_that_moves_goes_by_itself() -> None:
    model = tiny()
    before, _ = prefill_and_step(model)
    model.to(torch.device("cpu"))
    assert joined(model) == {}
    assert torch.equal(before, prefill_and_step(model)[0])


def test_layers_are_not_kept_by_their_siblings() -> None:
    layers = [own(24), own(8)]
    Siblings(layers, Shelf())
    seen = weakref.ref(layers[0])
    layers.clear()
    assert seen() is None  # without a collection of garbage


def test_two_groups_that_alternate_keep_apart() -> None:
    """q and v of one scheme, k and another of a second: whoever comes last has the shelf."""
    x, shelf = torch.randn(3, 64, dtype=torch.bfloat16), Shelf()
    one, other = ([own(outputs) for outputs in (24, 8)] for _ in range(2))
    alone = [layer(x) for pair in zip(one, other, strict=True) for layer in pair]
    Siblings(one, shelf)
    Siblings(other, shelf)
    together = [layer(x) for pair in zip(one, other, strict=True) for layer in pair]
    assert all(map(torch.equal, together, alone))


def test_joined_layers_can_be_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny()
    state = {name: t for name, t in model.state_dict().items() if "mlp" in name}
    save_file(state, tmp_path / "own.safetensors")
    again = load_file(tmp_path / "own.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
