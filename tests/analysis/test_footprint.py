"""What a cell will need: computed by hand, counted in loaded models, and as transformers lays
models out."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.analysis import cost
from bench.analysis.footprint import Footprint, layout_of, max_batch, predict, stored_bytes
from bench.config.cell import Cell
from bench.driver.plan import resolve
from bench.engine import sources
from bench.engine.transformers.attest import attest
from bench.engine.transformers.load import load
from bench.paths import CONF
from tests import fakes

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
QUANTS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))

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
SMALL: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
    }
    | {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral-7b": {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
    }
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "qwen2.5-3b": {
        "vocab_size": 100,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
    }
    | {"num_attention_heads": 4, "num_key_value_heads": 1},
    "gpt2": {"vocab_size": 100, "n_positions": 50, "n_embd": 128, "n_layer": 2, "n_head": 2},
}


def resolved(
    architecture: dict[str, Any], quant: str = "bf16", device: str = "cpu", **changes: Any
) -> Cell:
    """A cell of random weights with device and dtypes as they are on a machine with a GPU or
    without one."""
    model = {"name": "toy", "architecture": architecture, "weights": "random"}
    host = fakes.host() if device == "cpu" else fakes.gpu_host()
    return resolve(fakes.cell(model=model, quant=quant, device=device, **changes), host)


def predicted(cell: Cell) -> Footprint:
    found = predict(cell)
    assert found is not None
    return found


def tokens(prompt: int, new: int) -> dict[str, Any]:
    return {"name": "few", "text": "prose", "prompt_tokens": prompt, "new_tokens": new}


def repacks() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


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
        # The scales before they are repacked
        ("nf4", "cpu", PLAIN + 2 * (18432 + 4 * 576 + 7 * 64)),
    ],
)
def test_weights_of_a_toy_are_as_computed_by_hand(quant: str, device: str, expected: int) -> None:
    assert predicted(resolved(TOY, quant, device)).weight_bytes == expected


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


def test_repacked_nested_scales_are_larger_and_count_on_a_cpu() -> None:
    architecture = fakes.group("model", "llama-2-7b")["architecture"]
    on_cpu, on_gpu = (
        predicted(resolved(architecture, "nf4_double", device)) for device in ("cpu", "cuda")
    )
    blocks = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) // 64
    assert on_cpu.weight_bytes - on_gpu.weight_bytes == pytest.approx(blocks, rel=0.05)


def test_a_cache_ends_one_token_before_the_last() -> None:
    cell = resolved(TOY, batch=3, workload=tokens(8, 4))
    assert predicted(cell).kv_bytes == 3 * 11 * 2 * (2 * 2 * 16 * 2)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"model_type": "mistral", "sliding_window": 10}, 2 * 10),
        ({"model_type": "mistral", "sliding_window": None}, 2 * 27),
        ({"model_type": "mistral"}, 2 * 27),  # transformers' default is 4,096
        ({"model_type": "qwen2", "sliding_window": 10}, 2 * 27),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 10,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            27 + 10,
        ),
        ({"model_type": "llama"}, 2 * 27),
    ],
)
def test_windows_are_those_that_transformers_fills_in(changes: dict[str, Any], kept: int) -> None:
    architecture = TOY | changes
    assert (
        predicted(resolved(architecture, workload=tokens(24, 4))).kv_bytes == kept * 2 * 2 * 16 * 2
    )
    rest = {key: value for key, value in architecture.items() if key != "model_type"}
    config = AutoConfig.for_model(architecture["model_type"], **rest)
    layout = layout_of(architecture)
    assert layout is not None
    kinds = (
        getattr(config, "layer_types", None)
        or ["sliding_attention" if getattr(config, "sliding_window", 0) else ""] * 2
    )
    sliding = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    assert list(layout.windows) == sliding


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


def test_a_prompt_beyond_its_window_is_held_until_the_first_decode_step() -> None:
    sliding = TOY | {"model_type": "mistral", "sliding_window": 10}
    there, absent = (predicted(resolved(a, workload=tokens(24, 4))) for a in (sliding, TOY))
    assert there.activation_bytes - absent.activation_bytes == 2 * 14 * 2 * 2 * 16 * 2


def test_loading_holds_one_unquantized_matrix_and_is_apart_from_running() -> None:
    found = predicted(resolved(TOY, "nf4"))
    assert found.load_peak_bytes == found.weight_bytes + 2 * 8192
    assert found.total_bytes == max(
        found.load_peak_bytes, found.weight_bytes + found.kv_bytes + found.activation_bytes
    )
    assert found.least_bytes == found.weight_bytes + found.kv_bytes


@pytest.mark.parametrize(
    "changes", [{"model_type": "mamba"}, {"num_key_value_heads": None}, {"hidden_size": None}]
)
def test_nothing_is_predicted_of_what_is_not_known(changes: dict[str, Any]) -> None:
    assert predict(resolved(TOY | changes)) is None
    assert max_batch(resolved(TOY | changes), 10**9) is None


@pytest.mark.parametrize("quant", ["bf16", "nf4"])
def test_the_largest_batch_fits_and_one_more_does_not(quant: str) -> None:
    available = 2_000_000
    largest = max_batch(resolved(TOY, quant), available)
    assert largest is not None
    assert largest > 50
    assert predicted(resolved(TOY, quant, batch=largest)).total_bytes <= available
    assert predicted(resolved(TOY, quant, batch=largest + 1)).total_bytes > available


@pytest.mark.parametrize("missing_bytes", [0, 1])
def test_a_single_row_fits_to_the_byte(missing_bytes: int) -> None:
    one, two = (
        predicted(resolved(TOY, workload=tokens(500, 4), batch=batch)).total_bytes
        for batch in (1, 2)
    )
    assert one < two
    assert (
        max_batch(resolved(TOY, workload=tokens(500, 4)), one - missing_bytes) == 1 - missing_bytes
    )


def test_no_batch_fits_into_nothing() -> None:
    assert max_batch(resolved(TOY), 0) == 0


def compare(cell: Cell) -> None:
    """The prediction against what is in memory after the first forward."""
    subject = load(cell, sources.fetch(cell.model))
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        found = attest(cell, subject.model, ids)
    layout = layout_of(cell.model.architecture)
    assert layout is not None
    assert stored_bytes(layout, cell, repacks()) == found.weight_bytes
    foreseen = predicted(cell)
    assert foreseen.kv_bytes == cost.kv_bytes(found, 8 + 4 - 1, cell.batch)
    real = found.weight_bytes + foreseen.kv_bytes
    assert real <= foreseen.least_bytes
    if layout.hidden > 500:  # a table for each matrix is much for the matrices of a toy
        assert foreseen.least_bytes <= 1.1 * real


@pytest.mark.parametrize(
    ("model", "quant"),
    [("tiny", quant) for quant in QUANTS]
    + [(m, q) for m in SMALL for q in ("bf16", "int8_nodecomp", "nf4_double")],
)
def test_small_models_are_stored_as_predicted_to_the_byte(model: str, quant: str) -> None:
    compare(
        resolved(fakes.group("model", model)["architecture"] | SMALL.get(model, {}), quant, batch=2)
    )


# A load and its quantization take up to ten seconds each.
@pytest.mark.parametrize(
    "quant",
    [q if q in ("bf16", "nf4_double") else pytest.param(q, marks=pytest.mark.slow) for q in QUANTS],
)
def test_smollm2_is_stored_as_predicted_to_the_byte(quant: str) -> None:
    compare(resolve(fakes.cell(model="smollm2-135m", quant=quant, batch=2), fakes.host()))


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_those_of_transformers_own_layout(model: str) -> None:
    architecture = fakes.group("model", model)["architecture"]
    rest = {key: value for key, value in architecture.items() if key != "model_type"}
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(architecture["model_type"], **rest)
        )
    parameters = sum(parameter.numel() for parameter in built.parameters())
    buffers = sum(buffer.nbytes for buffer in built.buffers())
    assert predicted(resolved(architecture)).weight_bytes == 2 * parameters + buffers
