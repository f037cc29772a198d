"""What a cell will need: computed by hand, from a made-up description and from those of
transformers."""

from dataclasses import replace
from typing import Any

import pytest

from bench.analysis.footprint import Footprint, max_batch, predict
from bench.config.cell import Cell
from bench.engine.transformers.describe import describe
from bench.record.description import Matrix
from tests import fakes

# 36,864 weights and 512 outputs a layer in seven matrices, 6,400 in the embedding, 320 in norms, 16
# rotary frequencies.
TOY = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
PLAIN = 2 * (6400 + 320) + 4 * 16


def resolved(
    architecture: dict[str, Any], quant: str = "bf16", device: str = "cpu", **changes: Any
) -> Cell:
    """A cell of random weights with device and dtypes as they are on a machine with a GPU or
    without one."""
    model = {"name": "toy", "architecture": architecture, "weights": "random"}
    return fakes.resolved(model=model, quant=quant, device=device, **changes)


def predicted(cell: Cell) -> Footprint:
    """From the description that the engine makes."""
    return predict(cell, describe(cell))


def tokens(prompt: int, new: int) -> dict[str, Any]:
    return {"name": "few", "text": "prose", "prompt_tokens": prompt, "new_tokens": new}


@pytest.mark.parametrize(
    ("quant", "device", "expected"),
    [
        ("fp32", "cpu", 4 * (6400 + 320 + 2 * 36864) + 4 * 16),
        ("bf16", "cpu", PLAIN + 2 * 2 * 36864),
        ("int8", "cpu", PLAIN + 2 * (36864 + 4 * 512)),
        ("int8_nodecomp", "cuda", PLAIN + 2 * (36864 + 4 * 512)),
        # 576 blocks; a table of 16 fp32 a matrix
        ("nf4", "cuda", PLAIN + 2 * (18432 + 4 * 576 + 7 * 64)),
        ("fp4", "cuda", PLAIN + 2 * (18432 + 4 * 576 + 7 * 64)),
        ("nf4_double", "cuda", PLAIN + 2 * (18432 + 576 + 7 * (4 + 4 * 256 + 4) + 7 * 64)),
        ("torchao_int8", "cuda", PLAIN + 2 * (36864 + 5 * 512)),
        ("torchao_fp8", "cpu", PLAIN + 2 * (36864 + 4 * 512)),
        # 576 groups of 64 weights; on a GPU inputs are padded to 1,024, so each output has 16
        ("torchao_int4", "cpu", PLAIN + 2 * (18432 + 4 * 576)),
        ("torchao_int4", "cuda", PLAIN + 2 * (512 * 512 + 4 * 16 * 512)),
    ],
)
def test_weights_of_a_toy_are_as_computed_by_hand(quant: str, device: str, expected: int) -> None:
    assert predicted(resolved(TOY, quant, device)).weight_bytes == expected


@pytest.mark.parametrize(
    ("quant", "repacks", "scale_bytes"),
    [
        ("nf4", False, 4 * 576),
        ("nf4", True, 2 * 576),
        ("nf4_double", False, 576 + 7 * (4 + 4 * 256 + 4)),
        ("nf4_double", True, 2 * 576 + 7 * 4),
    ],
)
def test_4_bits_are_counted_as_this_processor_keeps_them(
    quant: str, repacks: bool, scale_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: repacks)
    weight_bytes = predicted(resolved(TOY, quant, "cpu")).weight_bytes
    assert weight_bytes == PLAIN + 2 * (18432 + 7 * 64 + scale_bytes)


def test_a_head_that_is_not_tied_is_a_second_table() -> None:
    tied, untied = (
        predicted(resolved(TOY | {"tie_word_embeddings": tie})) for tie in (True, False)
    )
    assert untied.weight_bytes - tied.weight_bytes == 2 * 6400


def test_double_quantization_saves_what_its_paper_says() -> None:
    # Dettmers et al. 2023, section 3: from 0.5 to 0.127 bits of scale a weight.
    architecture = fakes.group("model", "llama-2-7b")["architecture"]
    plain, double = (
        predicted(resolved(architecture, quant, "cuda")) for quant in ("nf4", "nf4_double")
    )
    matrix_weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert (plain.weight_bytes - double.weight_bytes) * 8 / matrix_weights == pytest.approx(
        0.373, abs=0.001
    )


def test_a_cache_ends_one_token_before_the_last() -> None:
    cell = resolved(TOY, batch=3, workload=tokens(8, 4))
    assert predicted(cell).kv_bytes == 3 * 11 * 2 * (2 * 2 * 16 * 2)


@pytest.mark.parametrize(
    ("windows", "kept"),
    [((None, None), 2 * 27), ((10, 10), 2 * 10), ((None, 10), 27 + 10), ((0, None), 27)],
)
def test_a_layer_keeps_no_more_than_its_window(windows: tuple[int | None, ...], kept: int) -> None:
    cell = fakes.cell(workload=tokens(24, 4))
    assert predict(cell, fakes.description(windows=windows)).kv_bytes == kept * 8


def test_a_prompt_of_unknown_length_is_estimated() -> None:
    asked = {"name": "few", "prompt": "x" * 100, "prompt_tokens": None, "new_tokens": 4}
    cells = [fakes.cell(workload=workload) for workload in (asked, tokens(20, 4))]
    estimated, exact = (predict(cell, fakes.description()) for cell in cells)
    assert estimated == exact


def test_what_prefill_holds_is_as_computed_by_hand() -> None:
    stream, mlp, attention = 6 * 8 * 64 * 2, 3 * 8 * 128 * 2, 3 * 8 * (4 + 2 + 2) * 16 * 2
    scores, repeated = 8 * 8 * (4 * 10 + 2), 2 * 8 * 64 * 2
    assert predicted(resolved(TOY)).activation_bytes == stream + max(mlp, attention)
    assert (
        predicted(resolved(TOY, attn="eager")).activation_bytes
        == stream + attention + scores + repeated
    )
    assert predicted(resolved(TOY, attn="sdpa_math")) == predicted(resolved(TOY, attn="eager"))
    wide = predicted(resolved(TOY | {"vocab_size": 10_000}, decode="generate"))
    assert wide.activation_bytes == stream + 10_000 * (2 + 4)


def test_sdpa_keeps_scores_where_only_its_math_kernel_takes_the_attention() -> None:
    cell = resolved(TOY)
    fused, math = (
        fakes.description(sdpa_kernels=names) for names in (("math", "flash"), ("math",))
    )
    eager = predict(replace(cell, attn=fakes.cell(attn="eager").attn), fused)
    assert predict(cell, math) == eager
    assert predict(cell, fused).activation_bytes < eager.activation_bytes


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"mlp_copies": 13}, 10 * 8 * 10 * 2),
        ({"product_bytes": 12}, 8 * 10 * 12),
        ({"matrices": (Matrix("up", 2, 10, 4, "layer", 500, workspace_bytes=320),)}, 320),
    ],
)
def test_what_the_architecture_and_the_scheme_need_in_prefill_counts(
    changes: dict[str, Any], more: int
) -> None:
    cell = fakes.cell()
    narrow = {"heads": 0, "kv_heads": 0, "vocabulary": 1}  # so that the MLP holds most
    plain, other = (
        predict(cell, fakes.description(**narrow | each)).activation_bytes for each in ({}, changes)
    )
    assert other - plain == more


def test_a_prompt_beyond_its_window_is_held_until_the_first_decode_step() -> None:
    cell = fakes.cell(workload=tokens(24, 4))
    there, absent = (
        predict(cell, fakes.description(windows=windows)).activation_bytes
        for windows in ((10, 10), (None, None))
    )
    assert there - absent == 2 * 14 * 8


def test_loading_holds_one_unquantized_matrix_and_is_apart_from_running() -> None:
    found = predicted(resolved(TOY, "nf4"))
    assert found.load_peak_bytes == found.weight_bytes + 2 * 8192
    assert found.total_bytes == max(
        found.load_peak_bytes, found.weight_bytes + found.kv_bytes + found.activation_bytes
    )
    assert found.least_bytes == found.weight_bytes + found.kv_bytes


@pytest.mark.parametrize("quant", ["bf16", "nf4"])
def test_the_largest_batch_fits_and_one_more_does_not(quant: str) -> None:
    available = 2_000_000
    cell = resolved(TOY, quant)
    description = describe(cell)

    def total_bytes(batch: int) -> int:
        return predict(replace(cell, batch=batch), description).total_bytes

    largest = max_batch(cell, description, available)
    assert largest > 50
    assert total_bytes(largest) <= available < total_bytes(largest + 1)
    assert max_batch(replace(cell, batch="max"), description, available) == largest


@pytest.mark.parametrize("missing_bytes", [0, 1])
def test_a_single_row_fits_to_the_byte(missing_bytes: int) -> None:
    cell = fakes.cell(workload=tokens(500, 4))
    one, two = (
        predict(replace(cell, batch=batch), fakes.description()).total_bytes for batch in (1, 2)
    )
    assert one < two
    assert max_batch(cell, fakes.description(), one - missing_bytes) == 1 - missing_bytes


def test_no_batch_fits_into_nothing() -> None:
    assert max_batch(fakes.cell(), fakes.description(), 0) == 0


def test_shares_of_a_description_add_up() -> None:
    tied = fakes.description()
    assert (tied.weight_bytes, tied.head_bytes, tied.layer_weights) == (1000, 800, 80)
    head = Matrix("head", 1, 100, 4, "head", stored_bytes=700, workspace_bytes=0)
    untied = replace(tied, matrices=(*tied.matrices, head), is_tied=False)
    assert (untied.weight_bytes, untied.head_bytes) == (1700, 700)
