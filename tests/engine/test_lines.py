"""The lines that load a cell's model are executed, and what they leave is what the engine loads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.config.cell import Cell
from bench.engine.protocol import ENGINES, engine_at
from bench.engine.transformers.attention import packed
from bench.engine.transformers.load import load
from bench.engine.transformers.packed import tensors_within
from tests import fakes
from tests.engine.quants import QUANTS, tried

ENGINE = engine_at(ENGINES["transformers"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("it's a model")
    load(fakes.cell(model="tiny", quant="fp32"), None).save_pretrained(folder)
    return folder


def loaded_by(lines: str) -> Any:
    names: dict[str, Any] = {}
    exec(lines, names)
    assert f"set_num_threads({torch.get_num_threads()})" in lines
    return names["model"]


def numbers(model: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{i}": inner
        for name, tensor in model.state_dict().items()
        for i, inner in enumerate(tensors_within(tensor))
    }


@pytest.mark.parametrize("quant", tried(sorted({*QUANTS} - {"fp16", "int4_g32", "int4_g128"})))
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_they_load_what_is_measured(saved: Path, quant: str, attn: str) -> None:
    own = {"weights": "pretrained", "tokenizer": "bytes", "path": str(saved)}
    cell = fakes.resolved(model=fakes.group("model", "tiny", **own), quant=quant, attn=attn)
    packed = ENGINE.provide(cell, print).packed
    ours, theirs = load(cell, saved, packed=packed), loaded_by(ENGINE.lines(cell))
    assert not theirs.training
    assert theirs.config._attn_implementation == attn
    assert [type(m) for m in theirs.modules()] == [type(m) for m in ours.modules()]
    expected = numbers(ours)
    assert numbers(theirs).keys() == expected.keys()
    for name, value in numbers(theirs).items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


def test_what_packs_queries_is_registered_by_the_lines(saved: Path) -> None:
    own = {"weights": "pretrained", "tokenizer": "bytes", "path": str(saved)}
    model = fakes.group("model", "tiny", **own)
    try:
        for quant in ("fp32", "int4_g64"):
            cell = fakes.resolved(model=model, quant=quant, attn="sdpa_packed")
            ENGINE.provide(cell, print)
            AttentionInterface.register("sdpa", sdpa_attention_forward)
            theirs = loaded_by(ENGINE.lines(cell))
            assert AttentionInterface._global_mapping["sdpa"] is packed
            assert theirs.config._attn_implementation == "sdpa"
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)


def test_random_weights_have_their_architecture_and_quantized_ones_no_lines() -> None:
    random = fakes.resolved(model="tiny", quant="bf16")
    model = loaded_by(ENGINE.lines(random))
    assert model.config.hidden_size == random.model.architecture["hidden_size"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert ENGINE.lines(fakes.resolved(model="tiny", quant="nf4")) == ""


def hub(cell: Cell) -> Cell:
    return replace(cell, model=replace(cell.model, path=None))


def test_a_model_of_the_hub_is_named_with_its_commit() -> None:
    cell = hub(fakes.resolved(model="gpt2", quant="nf4"))
    lines = ENGINE.lines(cell)
    assert f"    {cell.model.repo!r},\n    revision={cell.model.revision!r}," in lines
    assert "from transformers import AutoModelForCausalLM, BitsAndBytesConfig" in lines
