"""A model that is not what its cell says is refused; what is there is counted to the byte."""

import dataclasses

import numpy as np
import pytest
from torch import nn

from bench.config.cell import Cell
from bench.engine.transformers.attention import attention_mismatches
from bench.engine.transformers.session import open_session
from bench.errors import CellFailure
from bench.record.result import Attestation
from tests import fakes

IDS = np.arange(12).reshape(2, 6)


def tiny(quant: str, **changes: object) -> Cell:
    return fakes.resolved(model="tiny", quant=quant, **changes)


def attested(cell: Cell, loaded: Cell | None = None) -> Attestation:
    """What the engine says of a cell, or of a model that was loaded for another one."""
    session = open_session(loaded or cell, None)
    session.cell = cell
    return session.attest(IDS, 4)


def test_fp32_is_counted_to_the_byte() -> None:
    cell = tiny("fp32")
    found = attested(cell)
    embedding, layers, norms = 320 * 64, 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128), 5 * 64
    assert found.logical_weights == embedding + layers + norms
    # And two buffers of rotary frequencies
    assert found.weight_bytes == 4 * found.logical_weights + 2 * 4 * 8
    assert found.matmul_weights == layers
    assert found.head_bytes == 4 * embedding
    assert found.gathered_bytes == 0  # tied: a step reads the embedding because it is the head
    # Layers, K and V, heads, dimensions, bytes
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert found.details["layers"] == {"Linear": 15}


@pytest.mark.parametrize(
    ("quant", "layer"),
    [("int8_nodecomp", "Linear8bitLt"), ("nf4", "Linear4bit"), ("fp4", "Linear4bit")],
)
def test_quantized_layers_are_seen_and_the_head_is_not_one(quant: str, layer: str) -> None:
    cell = tiny(quant)
    found = attested(cell)
    assert found.details["layers"] == {layer: 14, "Linear": 1}
    assert found.logical_weights == attested(tiny("fp32")).logical_weights
    stored = {"Linear8bitLt": 1.0, "Linear4bit": 0.5}[layer] * found.matmul_weights
    assert found.details["bytes_by_dtype"]["int8" if layer == "Linear8bitLt" else "uint8"] == stored


@pytest.mark.parametrize(
    ("loaded", "claimed", "reason"),
    [
        ("fp32", "fp16", "unquantized weights are torch.float32, want fp16"),
        ("bf16", "nf4", "14 layers are Linear, want Linear4bit"),
        ("nf4", "bf16", "14 layers are Linear4bit, want Linear"),
        ("fp4", "nf4", "'quant_type': 'fp4'"),
        ("nf4", "nf4_double", "'double_quant': False"),
        ("nf4", "int8_nodecomp", "14 layers are Linear4bit, want Linear8bitLt"),
    ],
)
def test_a_quantization_under_a_wrong_name_is_not_engaged(
    loaded: str, claimed: str, reason: str
) -> None:
    assert reason in "; ".join(attested(tiny(claimed), tiny(loaded)).mismatches)


@pytest.mark.parametrize("attn", ["eager", "sdpa", "sdpa_math", "sdpa_flash"])
def test_the_attention_that_was_asked_runs(attn: str) -> None:
    found = attested(tiny("fp32", attn=attn))
    assert found.mismatches == ()
    taken = {name.removeprefix("aten::") for name in found.details["attention_operators"]}
    assert (
        taken
        == {
            "eager": set(),
            "sdpa": {"scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"},
            "sdpa_math": {"scaled_dot_product_attention", "_scaled_dot_product_attention_math"},
            "sdpa_flash": {
                "scaled_dot_product_attention",
                "_scaled_dot_product_flash_attention_for_cpu",
            },
        }[attn]
    )


def test_an_attention_under_a_wrong_name_is_not_engaged() -> None:
    found = attested(tiny("fp32", attn="eager"), tiny("fp32", attn="sdpa"))
    assert "attention is sdpa, want eager" in found.mismatches


def test_a_backend_that_was_not_taken_is_not_engaged() -> None:
    claimed = tiny("fp32", attn="sdpa_math").attn
    ran = [
        "aten::scaled_dot_product_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    ]
    assert list(attention_mismatches(claimed, "sdpa", ran)) == ["sdpa took flash, want math"]


def test_logits_that_are_no_numbers_are_failed() -> None:
    session = open_session(tiny("fp32"), None)
    norm = session.model.get_submodule("model.norm")
    assert isinstance(norm.weight, nn.Parameter)
    norm.weight.data.fill_(float("nan"))
    with pytest.raises(CellFailure) as caught:
        session.attest(IDS, 4)
    assert caught.value.status == "failed"


def test_threads_that_are_not_the_cells_are_not_engaged() -> None:
    found = attested(dataclasses.replace(tiny("fp32"), threads=63))
    assert any("want 63" in mismatch for mismatch in found.mismatches)
