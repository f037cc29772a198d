"""A model that is not what its cell says is refused; what is there is counted to the byte."""

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.config.cell import Cell
from bench.engine.transformers.attention import attention_mismatches, attention_remarks
from bench.engine.transformers.describe import describe
from bench.engine.transformers.session import open_session
from bench.engine.transformers.strategies import loop
from bench.errors import CellFailure
from bench.record.result import Attestation
from tests import fakes
from tests.gpu.test_cells import ATTNS, OPERATORS

IDS = np.arange(12).reshape(2, 6)


OWN = {
    "torchao_int4_32": fakes.group("quant", "torchao_int4", parameters={"group_size": 32}),
    "torchao_int8_fp32": fakes.group("quant", "torchao_int8", dtype="fp32"),
}


def tiny(quant: str, **changes: object) -> Cell:
    return fakes.resolved(model="tiny", quant=OWN.get(quant, quant), **changes)


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
    ("quant", "tensor", "dtype"),
    [
        ("torchao_int8", "Int8Tensor", "int8"),
        ("torchao_fp8", "Float8Tensor", "float8_e4m3fn"),
        ("torchao_int4", "Int4OpaqueTensor", "uint8"),
    ],
)
def test_layers_whose_weight_is_another_tensor_are_seen(
    quant: str, tensor: str, dtype: str
) -> None:
    pytest.importorskip("torchao")
    cell = tiny(quant)
    found = attested(cell)
    assert found.mismatches == ()
    assert found.is_quantized
    assert found.executed_dtype == "bf16"
    assert found.details["product_dtypes"].keys() == {"bf16"}
    assert found.details["layers"] == {f"Linear of {tensor}": 14, "Linear": 1}
    assert found.logical_weights == attested(tiny("fp32")).logical_weights
    assert found.weight_bytes == describe(cell).weight_bytes
    bits = 4 if quant == "torchao_int4" else 8
    # int8 has a zero point for each of 1,024 outputs too
    beside = 2 * 512 if quant == "torchao_int8" else 0
    stored = found.matmul_weights * bits // 8 + beside
    assert found.details["bytes_by_dtype"][dtype] == stored


@pytest.mark.parametrize(
    ("loaded", "claimed", "reason"),
    [
        ("bf16", "torchao_fp8", "14 layers are Linear, want Linear of Float8Tensor"),
        ("torchao_int8", "bf16", "14 layers are Linear of Int8Tensor, want Linear"),
        ("torchao_int8", "torchao_fp8", "14 layers are Linear of Int8Tensor, want Linear of"),
        ("torchao_int4", "torchao_int4_32", "'group_size': 64}, want {'dtype': 'bf16',"),
        ("torchao_int8_fp32", "torchao_int8", "a Linear of Int8Tensor layer has {'dtype': 'fp32'"),
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
    if "torchao" in loaded:
        pytest.importorskip("torchao")
    assert reason in "; ".join(attested(tiny(claimed), tiny(loaded)).mismatches)


@pytest.mark.parametrize("attn", ["eager", "sdpa", "sdpa_packed", "sdpa_math", "sdpa_flash"])
def test_the_attention_that_was_asked_runs(attn: str) -> None:
    found = attested(tiny("fp32", attn=attn))
    assert found.mismatches == ()
    taken = {name.removeprefix("aten::") for name in found.details["attention_operators"]}
    assert (
        taken
        == {
            "eager": set(),
            "sdpa": {"scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"},
            "sdpa_packed": {
                "scaled_dot_product_attention",
                "_scaled_dot_product_flash_attention_for_cpu",
            },
            "sdpa_math": {"scaled_dot_product_attention", "_scaled_dot_product_attention_math"},
            "sdpa_flash": {
                "scaled_dot_product_attention",
                "_scaled_dot_product_flash_attention_for_cpu",
            },
        }[attn]
    )


def test_each_attention_is_tried_on_a_gpu() -> None:
    assert set(ATTNS) == set(OPERATORS)


def test_an_attention_under_a_wrong_name_is_not_engaged() -> None:
    found = attested(tiny("fp32", attn="eager"), tiny("fp32", attn="sdpa"))
    assert "attention is sdpa, want eager" in found.mismatches


def test_a_backend_that_was_not_taken_is_not_engaged() -> None:
    claimed = tiny("fp32", attn="sdpa_math").attn
    ran = [
        "aten::scaled_dot_product_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    ]
    found = attention_mismatches(claimed, "sdpa", ran, 0)
    assert list(found) == ["sdpa took flash, want math"]


@pytest.mark.parametrize(
    ("attn", "in_force", "mismatch"),
    [
        ("flex", "flex_attention", "want flex_attention, but nothing compiled ran"),
        (
            "flash2",
            "flash_attention_2",
            "want flash_attention_2, but no operator of flash_attn ran",
        ),
    ],
)
def test_a_kernel_that_did_not_run_is_not_engaged(attn: str, in_force: str, mismatch: str) -> None:
    claimed = fakes.cell(attn=attn).attn
    assert list(attention_mismatches(claimed, in_force, [], 0)) == [mismatch]
    operator = {"flex": "CompiledFxGraph", "flash2": "flash_attn::_flash_attn_forward"}[attn]
    assert list(attention_mismatches(claimed, in_force, [operator], 0)) == []


def test_the_kernel_that_keeps_all_scores_is_remarked_on_where_nobody_asked_for_it() -> None:
    ran = ["aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math"]
    (remark,) = attention_remarks(fakes.cell(attn="sdpa").attn, ran)
    assert remark.startswith("sdpa took its math kernel, which keeps all scores")
    assert list(attention_remarks(fakes.cell(attn="sdpa_math").attn, ran)) == []
    assert list(attention_remarks(fakes.cell(attn="sdpa").attn, ran[:1])) == []


def test_a_step_that_did_not_pack_its_queries_is_not_engaged() -> None:
    found = attested(tiny("fp32", attn="sdpa_packed"))
    assert found.mismatches == ()
    packs = tiny("fp32", attn="sdpa_packed").attn
    ran = ["aten::scaled_dot_product_attention"]
    (mismatch,) = attention_mismatches(packs, "sdpa", ran, 30)
    assert mismatch == "30 calls of sdpa in a decode step had one query a head, want them packed"
    session = open_session(tiny("fp32", attn="sdpa"), None)
    session.cell = tiny("fp32", attn="sdpa_packed")
    session.request = types.MethodType(plain_request, session)
    unpacked = session.attest(IDS, 2).mismatches
    assert unpacked == (mismatch.replace("30", "2"),)  # layers


def plain_request(self: Any, ids: Any, new_tokens: int, clock: Any) -> Any:
    """As of a session whose model does not ask the interface that is swapped."""
    with torch.inference_mode():
        return loop(self.model, torch.from_numpy(ids), new_tokens, clock).numpy()


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
