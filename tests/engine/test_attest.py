"""A model that is not what its cell says is refused; what is there is counted to the byte."""

import dataclasses

import pytest
import torch
from torch import nn

from bench.config.cell import Cell
from bench.engine.transformers.attest import attest, mismatches
from bench.engine.transformers.load import Subject, load
from bench.errors import CellFailure
from bench.record.result import Attestation
from tests import fakes

IDS = torch.arange(12).reshape(2, 6)


def tiny(quant: str, **changes: object) -> Cell:
    values = {k: "bf16" if v == "auto" else v for k, v in fakes.group("quant", quant).items()}
    return fakes.cell(model="tiny", quant=values, **changes)


def attested(cell: Cell, subject: Subject) -> Attestation:
    with torch.inference_mode():
        return attest(cell, subject.model, IDS)


def test_fp32_is_counted_to_the_byte() -> None:
    cell = tiny("fp32")
    found = attested(cell, load(cell, None))
    embedding, layers, norms = 320 * 64, 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128), 5 * 64
    assert found.logical_weights == embedding + layers + norms
    # And two buffers of rotary frequencies
    assert found.weight_bytes == 4 * found.logical_weights + 2 * 4 * 8
    assert found.matmul_weights == layers
    assert found.head_bytes == 4 * embedding
    assert found.gathered_bytes == 0  # tied: a step reads the embedding because it is the head
    # Layers, K and V, heads, dimensions, bytes
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert found.layers == {"Linear": 15}


@pytest.mark.parametrize(
    ("quant", "layer"),
    [("int8_nodecomp", "Linear8bitLt"), ("nf4", "Linear4bit"), ("fp4", "Linear4bit")],
)
def test_quantized_layers_are_seen_and_the_head_is_not_one(quant: str, layer: str) -> None:
    cell = tiny(quant)
    found = attested(cell, load(cell, None))
    assert found.layers == {layer: 14, "Linear": 1}
    assert found.logical_weights == attested(tiny("fp32"), load(tiny("fp32"), None)).logical_weights
    stored = {"Linear8bitLt": 1.0, "Linear4bit": 0.5}[layer] * found.matmul_weights
    assert found.bytes_by_dtype["int8" if layer == "Linear8bitLt" else "uint8"] == stored


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
    assert reason in "; ".join(doubts(tiny(claimed), load(tiny(loaded), None)))


def doubts(cell: Cell, subject: Subject) -> list[str]:
    return mismatches(cell, subject.model, attested(cell, subject))


@pytest.mark.parametrize("attn", ["eager", "sdpa", "sdpa_math", "sdpa_flash"])
def test_the_attention_that_was_asked_runs(attn: str) -> None:
    cell = tiny("fp32", attn=attn)
    subject = load(cell, None)
    found = attested(cell, subject)
    assert mismatches(cell, subject.model, found) == []
    taken = {operator.removeprefix("aten::") for operator in found.attention_operators}
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
    subject = load(tiny("fp32", attn="sdpa"), None)
    assert "attention is sdpa, want eager" in doubts(tiny("fp32", attn="eager"), subject)


def test_a_backend_that_was_not_taken_is_not_engaged() -> None:
    subject = load(tiny("fp32", attn="sdpa"), None)
    claimed = tiny("fp32", attn="sdpa_math")
    unpinned = dataclasses.replace(claimed, attn=dataclasses.replace(claimed.attn, backend=None))
    found = attested(unpinned, subject)
    assert "_scaled_dot_product_flash_attention_for_cpu" in found.attention_operators[0]
    assert mismatches(claimed, subject.model, found) == ["sdpa took flash, want math"]


def test_logits_that_are_no_numbers_are_failed() -> None:
    subject = load(tiny("fp32"), None)
    norm = subject.model.get_submodule("model.norm")
    assert isinstance(norm.weight, nn.Parameter)
    norm.weight.data.fill_(float("nan"))
    with pytest.raises(CellFailure) as caught:
        attested(tiny("fp32"), subject)
    assert caught.value.status == "failed"
