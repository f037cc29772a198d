"""A description is what transformers lays out, loads and caches, for every architecture; nothing is
downloaded for it."""

import dataclasses
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Conv1D,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from bench.analysis.footprint import predict
from bench.config.cell import Cell
from bench.config.parse import parse
from bench.engine import sources
from bench.engine.transformers.assignment import assigned, swap
from bench.engine.transformers.describe import describe
from bench.engine.transformers.packed import kind, own_tensors
from bench.engine.transformers.schemes import SCHEMES, torch_dtype
from bench.errors import CellFailure, ConfigError
from bench.paths import CONF
from bench.record.description import Description, Matrix
from tests import fakes
from tests.engine.quants import QUANTS, tried

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
TORCHAO = ("torchao_int8", "torchao_int4", "torchao_fp8")

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW = {k: v for k, v in SIZES.items() if k not in ("intermediate_size", "num_key_value_heads")}
EXPERTS = {"num_experts_per_tok": 2, "head_dim": 16}
SMALL: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"attention_bias": True, "mlp_bias": True},
    "mistral": SIZES | {"intermediate_size": 192, "head_dim": 32, "sliding_window": 10},
    "qwen2": SIZES | {"hidden_size": 128, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 100, "n_positions": 50, "n_embd": 128, "n_layer": 2, "n_head": 2}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "gemma2": SIZES | {"head_dim": 32, "sliding_window": 10},
    "phi3": SIZES,
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen3_moe": SIZES | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32},
    "gpt_oss": SIZES | EXPERTS | {"num_local_experts": 4},
    "opt": FEW | {"ffn_dim": 128, "max_position_embeddings": 50, "word_embed_proj_dim": 64},
    "falcon": FEW,
    "bloom": FEW,
}


def small(model_type: str, quant: str = "bf16", **changes: Any) -> Cell:
    return of({"model_type": model_type} | SMALL[model_type], quant, **changes)


def of(architecture: Mapping[str, Any], quant: str = "bf16", **changes: Any) -> Cell:
    model = {"name": "toy", "architecture": architecture, "weights": "random"}
    return fakes.resolved(model=model, quant=quant, **changes)


def build(cell: Cell) -> PreTrainedModel:
    """The model with random weights, as transformers makes it."""
    architecture = dict(cell.model.architecture)
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch_dtype(cell.quant.dtype)
    )
    return model


def load(cell: Cell, folder: Path) -> PreTrainedModel:
    """The model in this folder, quantized by transformers or layer by layer."""
    configuration = SCHEMES[cell.quant.scheme].configuration(cell.quant, "cpu")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch_dtype(cell.quant.dtype),
        quantization_config=None if configuration is None else configuration.made(),
        device_map={"": "cpu"},
    )
    if SCHEMES[cell.quant.scheme].is_own:
        swap(model, assigned(model, cell.quant))
    return model


def stored_bytes(cell: Cell, model: PreTrainedModel) -> int:
    """Parameters, buffers and quantization state, each storage once."""
    scheme = SCHEMES[cell.quant.scheme]
    state = [
        tensor
        for module in model.modules()
        if kind(module) in scheme.layer_classes
        for tensor in scheme.state(module)
    ]
    tensors = [*(tensor for module in model.modules() for tensor in own_tensors(module)), *state]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def check(cell: Cell, folder: Path) -> None:
    """The description against what is in memory before and after the first forward, and against the
    cache."""
    description = describe(cell, folder)
    model = load(cell, folder)
    # On a GPU bitsandbytes repacks nothing: what is stored there is here before the first use
    is_repacked = SCHEMES[cell.quant.scheme].package == "bitsandbytes"
    unpacked = describe(dataclasses.replace(cell, device="cuda" if is_repacked else "cpu"), folder)
    assert stored_bytes(cell, model) == unpacked.weight_bytes
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([[3, 4, 5, 6]]), past_key_values=cache, use_cache=True)
    assert stored_bytes(cell, model) == description.weight_bytes
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == 4 * len(description.windows) * description.kv_bytes_per_token_layer


@pytest.mark.parametrize(
    ("model_type", "quant"),
    [
        *tried(QUANTS, "llama"),
        *(
            each
            for model in SMALL
            if model != "llama"
            for each in tried(
                ("bf16", "int8_nodecomp", "nf4_double", *(TORCHAO if model != "falcon" else ())),
                model,
            )
        ),
    ],
)
def test_small_models_are_stored_and_cached_as_described_to_the_byte(
    model_type: str, quant: str, tmp_path: Path
) -> None:
    cell = small(model_type, quant)
    build(cell).save_pretrained(tmp_path)
    check(cell, tmp_path)


# A load and its quantization take up to ten seconds each.
@pytest.mark.parametrize(
    "quant",
    tried(QUANTS, slow={*QUANTS} - {"bf16", "nf4_double", "torchao_int4"}),
)
def test_smollm2_is_stored_and_cached_as_described_to_the_byte(quant: str) -> None:
    cell = fakes.resolved(model="smollm2-135m", quant=quant)
    folder = sources.fetch(cell.model)
    assert folder is not None
    check(cell, folder)
    assert describe(cell, folder) == describe(cell)


@pytest.mark.parametrize("model", MODELS)
def test_weights_of_every_shipped_model_are_those_of_transformers_own_layout(model: str) -> None:
    cell = fakes.resolved(model=fakes.group("model", model))
    with torch.device("meta"):
        built = build(cell)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    buffers = sum(buffer.nbytes for buffer in built.buffers())
    assert describe(cell).weight_bytes == 2 * parameters + buffers


def names(description: Description, kind: str = "layer") -> dict[str, tuple[int, int, int]]:
    """Count, outputs and inputs by name."""
    return {m.name: (m.count, m.outputs, m.inputs) for m in description.matrices if m.kind == kind}


def test_matrices_have_the_models_own_names_with_a_star_for_the_layer() -> None:
    found = describe(small("llama"))
    attention, mlp = "model.layers.*.self_attn", "model.layers.*.mlp"
    assert names(found) == {
        f"{attention}.q_proj": (2, 64, 64),
        f"{attention}.k_proj": (2, 32, 64),
        f"{attention}.v_proj": (2, 32, 64),
        f"{attention}.o_proj": (2, 64, 64),
        f"{mlp}.gate_proj": (2, 128, 64),
        f"{mlp}.up_proj": (2, 128, 64),
        f"{mlp}.down_proj": (2, 64, 128),
    }
    assert found.layer_weights == 2 * 36_864
    biases, norms = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64), 5 * 64
    assert found.plain_bytes == 2 * (biases + norms)
    assert found.buffer_bytes == 2 * 4 * 8  # rotary frequencies, twice


def test_gpt2s_convolutions_are_matrices_that_lie_across_and_positions_are_none() -> None:
    found = describe(small("gpt2"))
    assert names(found) == {
        "transformer.h.*.attn.c_attn": (2, 384, 128),
        "transformer.h.*.attn.c_proj": (2, 128, 128),
        "transformer.h.*.mlp.c_fc": (2, 512, 128),
        "transformer.h.*.mlp.c_proj": (2, 128, 512),
    }
    assert names(found, "embedding") == {"transformer.wte": (1, 100, 128)}
    norms, biases = 5 * 2 * 128, 2 * (384 + 128 + 512 + 128)
    assert found.plain_bytes == 2 * (50 * 128 + norms + biases)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_tied_head_is_counted_once(is_tied: bool) -> None:
    found = describe(of({"model_type": "llama"} | SIZES | {"tie_word_embeddings": is_tied}, "nf4"))
    assert found.is_tied == is_tied
    assert names(found, "embedding") == {"model.embed_tokens": (1, 100, 64)}
    assert names(found, "head") == ({} if is_tied else {"lm_head": (1, 100, 64)})
    assert found.head_bytes == 2 * 100 * 64  # not quantized


@pytest.mark.parametrize(
    ("model_type", "outputs", "inputs"),
    [("mixtral", 2 * 128, 64), ("qwen3_moe", 2 * 32, 64), ("gpt_oss", 2 * 128, 64)],
)
def test_experts_are_matrices_of_their_layer_that_no_scheme_replaces(
    model_type: str, outputs: int, inputs: int
) -> None:
    found = describe(small(model_type, "nf4"))
    experts = [m for m in found.matrices if ".experts." in m.name]
    assert [(m.count, m.outputs, m.inputs) for m in experts] == [
        (2 * 4, outputs, inputs),
        (2 * 4, inputs, outputs // 2),
    ]
    assert all(m.stored_bytes == 2 * m.weights and m.workspace_bytes == 0 for m in experts)
    others = [m for m in found.matrices if m.kind == "layer" and "proj" in m.name]
    assert all(m.stored_bytes < m.weights for m in others if m not in experts)


@pytest.mark.parametrize("model_type", SMALL)
def test_what_stays_unquantized_is_what_transformers_leaves(
    model_type: str, tmp_path: Path
) -> None:
    cell = small(model_type, "int8_nodecomp")
    build(cell).save_pretrained(tmp_path)
    model = load(cell, tmp_path)
    quantized = [m for m in model.modules() if type(m).__name__ == "Linear8bitLt"]
    # Falcon's layers are of a subclass, which transformers passes over
    assert (not quantized) == (model_type == "falcon")
    in_int8 = [m for m in describe(cell).matrices if m.stored_bytes == m.weights + 4 * m.outputs]
    assert sum(m.count for m in in_int8) == len(quantized)
    assert sum(m.count * m.weights for m in in_int8) == sum(m.weight.numel() for m in quantized)
    left = [m for m in model.modules() if type(m) in (nn.Linear, Conv1D)]
    head = model.get_output_embeddings()
    assert all(m is head for m in left)


@pytest.mark.parametrize(
    ("model_type", "width", "copies"),
    [
        ("llama", 128, 3),  # gate, up, and their product
        ("gpt2", 512, 4),  # its GELU is written out in Python, with a tensor for each term
        ("phi3", 256, 2),  # gate and up in one, and two of half its width
        ("mixtral", 256, 2 * 2 + 2),  # two experts a token; gathered copies of 2 * 4 * 64
        ("opt", 128, 4),
    ],
)
def test_the_widest_mlp_counts(model_type: str, width: int, copies: int) -> None:
    found = describe(small(model_type))
    assert (found.intermediate, found.mlp_copies) == (width, copies)


def windows() -> Iterator[tuple[dict[str, Any], tuple[int | None, ...]]]:
    yield {"model_type": "llama"}, (None, None)
    yield {"model_type": "mistral"}, (4096, 4096)
    yield {"model_type": "mistral", "sliding_window": 10}, (10, 10)
    yield {"model_type": "mistral", "sliding_window": None}, (None, None)
    yield {"model_type": "qwen2", "sliding_window": 10}, (None, None)
    sliding = {"sliding_window": 10, "use_sliding_window": True, "max_window_layers": 1}
    yield {"model_type": "qwen2"} | sliding, (None, 10)
    yield {"model_type": "gemma2", "sliding_window": 10}, (10, None)


@pytest.mark.parametrize(("changes", "expected"), list(windows()))
def test_windows_are_those_that_transformers_fills_in(
    changes: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    assert describe(of(SIZES | changes)).windows == expected


def test_layers_without_keys_keep_nothing_for_a_token() -> None:
    found = describe(of({"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 64}))
    assert (found.windows, found.kv_bytes_per_token_layer, found.heads) == ((0, 0), 0, 0)
    assert predict(of({"model_type": "mamba"}), found).kv_bytes == 0


def test_heads_are_those_that_are_cached() -> None:
    assert describe(small("falcon")).kv_heads == 1  # its configuration does not say so
    compressed = of(
        {"model_type": "deepseek_v3", "num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
        | {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    )
    found = describe(compressed)
    # DeepSeek-V3's technical report, section 4.2: 512 compressed dimensions and 64 rotary ones
    assert found.kv_bytes_per_token_layer == 2 * (512 + 64)


@pytest.mark.parametrize(
    ("model_type", "context_tokens", "attention"),
    [
        ("gpt2", 50, {"sdpa", "flash_attention_2", "flash_attention_3"}),
        (
            "llama",
            2048,  # as transformers fills it in
            {"sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"},
        ),
        ("bloom", None, set()),
    ],
)
def test_limits_of_an_architecture_are_transformers_own(
    model_type: str, context_tokens: int | None, attention: set[str]
) -> None:
    found = describe(small(model_type))
    assert found.context_tokens == context_tokens
    assert found.attention[0] == "eager"
    assert set(found.attention[1:]) == attention


def test_torch_is_asked_which_kernels_take_the_attention() -> None:
    found = describe(small("llama"))
    # On a CPU: the efficient and cuDNN's kernels are CUDA's
    assert found.sdpa_kernels == found.masked_sdpa_kernels == ("math", "flash")
    assert describe(fakes.resolved(model="tiny", device="cuda")).sdpa_kernels == ()  # none here


@pytest.mark.parametrize("quant", TORCHAO)
def test_layers_that_torchao_cannot_replace_are_told(quant: str) -> None:
    own = "FalconLinear multiplies by its weight itself, which must be plain then"
    assert describe(small("falcon", quant)).obstacle == own
    across = "none of its layers is an ordinary Linear; they are Conv1D"
    assert describe(small("gpt2", quant)).obstacle == across
    assert describe(small("llama", quant)).obstacle is None


class OddConfig(LlamaConfig):
    model_type = "odd"
    rank: int = 8


class OddForCausalLM(LlamaForCausalLM):
    """A llama whose layers have a matrix more, which is no linear layer, and a table."""

    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.odd = nn.Parameter(torch.zeros(config.rank, config.hidden_size))
            layer.mlp.table = nn.Embedding(7, config.hidden_size)


def test_an_architecture_that_was_made_up_is_described_like_any_other() -> None:
    AutoConfig.register("odd", OddConfig, exist_ok=True)
    AutoModelForCausalLM.register(OddConfig, OddForCausalLM, exist_ok=True)
    found = describe(of({"model_type": "odd"} | SIZES, "int8"))
    llama = describe(of({"model_type": "llama"} | SIZES, "int8"))
    odd = Matrix("model.layers.*.mlp.odd", 2, 8, 64, "layer", 2 * 8 * 64, 0)
    assert set(found.matrices) == {*llama.matrices, odd}
    assert found.plain_bytes == llama.plain_bytes + 2 * 2 * 7 * 64


def test_a_folder_says_what_its_model_is(tmp_path: Path) -> None:
    build(small("gemma2")).config.save_pretrained(tmp_path)  # no weights beside it
    claimed = small("llama")
    assert describe(claimed, tmp_path) == describe(small("gemma2"))


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"model_type": "no-such"}', '{"model_type": "t5"}', None]
)
def test_a_folder_that_cannot_be_laid_out_is_failed_with_a_sentence(
    text: str | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CellFailure, match="toy: cannot lay out the model in ") as caught:
        describe(small("llama"), tmp_path)
    assert caught.value.status == "failed"
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no-such"},
        {"model_type": "t5"},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
    ],
)
def test_an_architecture_that_cannot_be_laid_out_is_a_mistake_in_one_sentence(
    changes: dict[str, Any],
) -> None:
    architecture = {"model_type": "llama"} | SIZES | changes
    with pytest.raises(ConfigError) as caught:
        describe(of(architecture))
    (sentence,) = caught.value.problems
    assert sentence.startswith(f"model.architecture.model_type={architecture['model_type']}: ")
    assert "\n" not in sentence
    assert len(sentence) < 400


def test_an_unknown_scheme_is_a_mistake() -> None:
    cell = small("llama")
    with pytest.raises(ConfigError, match=r"quant\.scheme=foo: no such scheme"):
        describe(dataclasses.replace(cell, quant=dataclasses.replace(cell.quant, scheme="foo")))


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cell = fakes.resolved(model=fakes.group("model", "llama-2-7b"), quant="nf4")  # gated
    with torch.device("meta"):
        build(cell).config.save_pretrained(tmp_path)
    assert describe(cell, tmp_path) == describe(cell)


def test_a_description_survives_the_way_through_json() -> None:
    found = describe(small("gemma2", "nf4"))
    assert parse(Description, json.loads(json.dumps(dataclasses.asdict(found)))) == found
