"""A folder that somebody else has quantized is measured as it is, or it is said why it is not.

The folders are made here, of random weights, by the libraries whose formats they are; what needs a
package that is not installed is skipped.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

from bench.config.cell import Cell, Requires
from bench.engine.protocol import ENGINES, engine_at
from bench.engine.transformers.describe import describe
from bench.engine.transformers.load import load
from bench.engine.transformers.schemes import SCHEMES, unknown_names
from bench.engine.transformers.session import open_session
from bench.errors import CellFailure
from bench.record.result import Attestation, lacking
from tests import fakes
from tests.command_line import TINY, in_process, results, sweep_folder

ENGINE = engine_at(ENGINES["transformers"])
IDS = np.arange(12).reshape(2, 6)
# Of the tiny model: 14 linear layers with 1,024 outputs together
LAYERS, OUTPUTS = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128), 2 * 512
EMBEDDING, NORMS, BUFFERS = 320 * 64, 5 * 64, 2 * 4 * 8
SHARD = "40KB"  # so that there are several files
REST = 2 * (EMBEDDING + NORMS) + BUFFERS  # bytes in 16 bits


def tiny(folder: Path, quant: Any = "checkpoint", **changes: Any) -> Cell:
    own = {"weights": "pretrained", "path": str(folder)}
    return fakes.resolved(model=fakes.group("model", "tiny", **own), quant=quant, **changes)


def plain_model(dtype: str = "bf16") -> PreTrainedModel:
    return load(fakes.cell(model="tiny", quant=dtype), None)


def linear_layers(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    head = model.get_output_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def claim(folder: Path, **quantization: Any) -> None:
    """Let config.json say that the folder is quantized."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


def quantized_by_transformers(folder: Path, configuration: Any) -> None:
    plain = folder / "plain"
    plain_model().save_pretrained(plain)
    AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=configuration, device_map={"": "cpu"}
    ).save_pretrained(folder, max_shard_size=SHARD)


def bitsandbytes(folder: Path, quant: str) -> None:
    values = fakes.resolved(model="tiny", quant=quant).quant
    configuration = SCHEMES[values.scheme].configuration(values, "cpu")
    assert configuration is not None
    quantized_by_transformers(folder, configuration.made())


def torchao(folder: Path, name: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantized_by_transformers(folder, TorchAoConfig(getattr(quantization, name)()))


def auto_round(folder: Path, group: int = 32) -> None:
    """Four bits, packed by its own layers; the values do not matter."""
    pytest.importorskip("auto_round.inference")
    from auto_round_extension.torch.qlinear_torch import QuantLinear

    model = plain_model("fp16")
    for name, linear in linear_layers(model):
        packed = QuantLinear(4, group, linear.in_features, linear.out_features, bias=False)
        scales = linear.weight.data.float().unflatten(1, (-1, group)).abs().amax(-1) / 7.5
        packed.pack(linear, scales, 8, device="cpu")
        model.set_submodule(name, packed)
    model.save_pretrained(folder, max_shard_size=SHARD)
    own = {"bits": 4, "group_size": group, "sym": True, "data_type": "int"}
    claim(folder, quant_method="auto-round", packing_format="auto_round:auto_gptq", **own)


def compressed_tensors(folder: Path, group: int = 32) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = group
    model = plain_model()
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config)
    for _, linear in linear_layers(model):
        largest = linear.weight.data.unflatten(1, (-1, group)).abs().amax(-1)
        linear.weight_scale.data.copy_(largest / 7.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def quanto(folder: Path) -> None:
    library = pytest.importorskip("optimum.quanto")
    made = library.QuantizedModelForCausalLM.quantize(
        plain_model(), weights=library.qint8, exclude="lm_head"
    )
    made.save_pretrained(folder)
    claim(folder, quant_method="quanto", weights="int8", modules_to_not_convert=["lm_head"])


def fp8(folder: Path, block: int = 32) -> None:
    """As DeepSeek publishes them: a number of 8 bits for each weight, a scale for each block."""
    plain_model().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in list(tensors.items()):
        if "proj" in name:
            tensors[name] = (weight.float() * 256).to(torch.float8_e4m3fn)
            blocks = [size // block for size in weight.shape]
            tensors[f"{name}_scale_inv"] = torch.full(blocks, 1 / 256)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    own = {"activation_scheme": "dynamic", "weight_block_size": [block, block]}
    claim(folder, quant_method="fp8", modules_to_not_convert=["lm_head"], **own)


def mxfp4(folder: Path, block: int = 32) -> None:
    """As gpt-oss is published: experts in blocks of 32 weights in 16 bytes, a scale for each."""
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    few = {"num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0, "eos_token_id": 2}
    config = AutoConfig.for_model("gpt_oss", **sizes, **few)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = (experts, outputs, inputs // block)
        tensors[f"{name}_blocks"] = torch.full((*blocks, block // 2), 0x21, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.full(blocks, 120, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    claim(folder, quant_method="mxfp4", modules_to_not_convert=["self_attn", "router", "lm_head"])


def attested(cell: Cell, folder: Path) -> Attestation:
    return open_session(cell, folder).attest(IDS, 4)


@pytest.mark.parametrize("quant", ["int8", "nf4", "nf4_double"])
def test_what_bitsandbytes_saved_is_what_it_makes_of_the_plain_model(
    quant: str, tmp_path: Path
) -> None:
    bitsandbytes(tmp_path, quant)
    found = attested(tiny(tmp_path), tmp_path)
    ours = attested(tiny(tmp_path / "plain", quant), tmp_path / "plain")
    assert found.mismatches == ()
    assert found.is_quantized
    assert found.weight_bytes == ours.weight_bytes
    assert (found.logical_weights, found.matmul_weights) == (EMBEDDING + NORMS + LAYERS, LAYERS)
    assert found.logical_weights == ours.logical_weights
    assert found.details["layers"] == ours.details["layers"]
    assert found.executed_dtype == ours.executed_dtype == ("int8" if quant == "int8" else "bf16")
    assert found.details["quantized_by"] == "bitsandbytes"


def test_a_product_of_four_bits_in_another_dtype_is_seen(tmp_path: Path) -> None:
    bitsandbytes(tmp_path, "nf4")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    claim(tmp_path, **config | {"bnb_4bit_compute_dtype": "float32"})
    # With AVX512-BF16 the library's kernel takes inputs of any dtype in bf16
    expected = "bf16" if has_avx512bf16() else "fp32"
    assert attested(tiny(tmp_path), tmp_path).executed_dtype == expected


@pytest.mark.parametrize(
    ("configuration", "executed"),
    [("Int8WeightOnlyConfig", "bf16"), ("Int8DynamicActivationInt8WeightConfig", "int8")],
)
def test_tensors_within_a_tensor_are_counted(
    configuration: str, executed: str, tmp_path: Path
) -> None:
    torchao(tmp_path, configuration)
    found = attested(tiny(tmp_path), tmp_path)
    assert found.mismatches == ()
    assert found.is_quantized
    assert found.details["layers"] == {"Linear of Int8Tensor": 14, "Linear": 1}
    # For each output a scale in fp32 and a zero point
    assert found.weight_bytes == LAYERS + 5 * OUTPUTS + REST
    assert found.logical_weights == EMBEDDING + NORMS + LAYERS
    assert found.head_bytes == 2 * EMBEDDING
    assert found.executed_dtype == executed
    assert found.details["quantized_by"] == "torchao"


def test_layers_that_are_no_linear_ones_are_counted(tmp_path: Path) -> None:
    auto_round(tmp_path)
    found = attested(tiny(tmp_path), tmp_path)
    assert found.mismatches == ()
    assert found.is_quantized
    assert found.details["layers"] == {"QuantLinear": 14, "Linear": 1}
    groups = LAYERS // 32
    assert found.weight_bytes == LAYERS // 2 + 2 * groups + groups // 2 + REST
    assert (found.logical_weights, found.matmul_weights) == (EMBEDDING + NORMS + LAYERS, LAYERS)
    assert found.executed_dtype == "fp16"
    assert found.details["quantized_by"] == "auto-round"


def test_a_dtype_that_the_library_overrules_is_not_engaged(tmp_path: Path) -> None:
    auto_round(tmp_path)
    cell = tiny(tmp_path, fakes.group("quant", "checkpoint", dtype="fp32"))
    found = attested(cell, tmp_path)
    assert found.mismatches == ("unquantized weights are fp16, want fp32",)


@pytest.mark.parametrize(
    ("make", "method"),
    [(fp8, "fp8"), (compressed_tensors, "compressed-tensors")],  # at the load, at the first forward
)
def test_weights_that_transformers_dequantizes_in_silence_are_not_engaged(
    make: Callable[[Path], None], method: str, tmp_path: Path
) -> None:
    make(tmp_path)
    found = attested(tiny(tmp_path), tmp_path)
    assert not found.is_quantized
    assert found.mismatches == (
        f"transformers has dequantized the {method} weights: no kernel for them runs here, all 15"
        " layers are plain bf16",
    )


def test_experts_that_are_dequantized_for_want_of_a_kernel_are_not_engaged(tmp_path: Path) -> None:
    mxfp4(tmp_path)
    (mismatch,) = attested(tiny(tmp_path, attn="eager"), tmp_path).mismatches
    assert mismatch.startswith("transformers has dequantized the mxfp4 weights: ")


def test_weights_that_are_dequantized_later_are_not_engaged_either(tmp_path: Path) -> None:
    bitsandbytes(tmp_path, "nf4")
    session = open_session(tiny(tmp_path), tmp_path)
    session.model = session.model.dequantize()
    (mismatch,) = session.attest(IDS, 4).mismatches
    assert mismatch.startswith("transformers has dequantized the bitsandbytes weights: ")


def test_what_transformers_cannot_read_is_failed_and_says_so(tmp_path: Path) -> None:
    quanto(tmp_path)
    with pytest.raises(CellFailure) as caught:
        open_session(tiny(tmp_path), tmp_path)
    assert caught.value.status == "failed"
    assert "transformers does not read what quanto wrote" in caught.value.reason


# What goes together


def refusal(cell: Cell) -> str | None:
    installed = {"bitsandbytes": "1", "torchao": "1"}
    outcome = ENGINE.why_not(cell, fakes.host(versions=installed))
    assert outcome is None or outcome.status == "skipped"
    return None if outcome is None else outcome.reason


@pytest.fixture
def unquantized(tmp_path: Path) -> Path:
    plain_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("quant", ["bf16", "nf4", "int8"])
def test_another_quantization_of_a_quantized_folder_is_refused(
    quant: str, unquantized: Path
) -> None:
    assert refusal(tiny(unquantized, quant)) is None
    claim(unquantized, quant_method="torchao")
    sentence = "model=tiny is a checkpoint already quantized by torchao: want quant=checkpoint"
    assert refusal(tiny(unquantized, quant)) == sentence
    assert refusal(tiny(unquantized)) is None
    with pytest.raises(CellFailure) as caught:  # of a hub's model it is known only here
        open_session(tiny(unquantized, quant), unquantized)
    assert (caught.value.status, caught.value.reason) == ("skipped", sentence)
    assert ENGINE.describe(tiny(unquantized, quant)) is None


def test_a_folder_that_is_not_quantized_is_no_checkpoint(unquantized: Path) -> None:
    for broken in (None, "{", "[]"):
        if broken is not None:
            (unquantized / "config.json").write_text(broken)
        sentence = str(refusal(tiny(unquantized)))
        assert sentence.startswith("quant=checkpoint: model=tiny is no quantized checkpoint, ")
    assert str(refusal(fakes.resolved(model="tiny", quant="checkpoint"))).endswith(
        "want weights=pretrained"
    )


@pytest.mark.parametrize(
    ("own", "packages"),
    [
        ({"quant_method": "gptq"}, "gptqmodel optimum"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, None),  # dequantized without one
        ({"load_in_4bit": True}, None),  # bitsandbytes, before it had a name
    ],
)
def test_a_missing_package_is_named(
    own: dict[str, Any], packages: str | None, unquantized: Path
) -> None:
    claim(unquantized, **own)
    found = refusal(tiny(unquantized))
    if packages is None:
        assert found is None
    else:
        assert str(found).endswith(f", which needs a package: pip install {packages}")


def test_what_transformers_itself_asks_for_is_named_at_the_load(unquantized: Path) -> None:
    claim(unquantized, quant_method="fbgemm_fp8")
    with pytest.raises(CellFailure) as caught:
        open_session(tiny(unquantized), unquantized)
    assert caught.value.status == "skipped"
    assert re.match(r"tiny: .*fbgemm.* requires a GPU or .*", caught.value.reason)


def test_the_dtype_of_the_files_goes_with_a_checkpoint_alone() -> None:
    nf4 = fakes.cell(model="tiny", quant="nf4").quant
    (sentence,) = unknown_names(replace(nf4, dtype="saved"))
    assert sentence.startswith("quant.dtype=saved: goes with quant=checkpoint")
    saved = fakes.resolved(model="tiny", quant="checkpoint")
    assert saved.quant.dtype == "saved"
    # Which one that is, loading tells
    assert list(lacking(Requires(dtypes=("fp16",)), saved, fakes.host())) == []


# Before it is loaded


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda folder: bitsandbytes(folder, "int8"), id="int8"),
        pytest.param(lambda folder: bitsandbytes(folder, "nf4"), id="nf4"),
        pytest.param(lambda folder: bitsandbytes(folder, "nf4_double"), id="nf4_double"),
        pytest.param(lambda folder: torchao(folder, "Int8WeightOnlyConfig"), id="torchao"),
        pytest.param(auto_round, id="auto-round"),
    ],
)
def test_memory_is_described_by_the_headers_of_the_files(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = describe(tiny(tmp_path), tmp_path)
    counted = attested(tiny(tmp_path), tmp_path)
    assert found.weight_bytes == counted.weight_bytes
    assert found.layer_weights == LAYERS
    assert found.dtype_bytes == 2


def test_where_memory_will_hold_something_else_nothing_is_described(tmp_path: Path) -> None:
    fp8(tmp_path)
    with pytest.raises(CellFailure, match="weights take in memory shows when they are loaded"):
        describe(tiny(tmp_path), tmp_path)


def test_the_lines_load_the_same_model(tmp_path: Path) -> None:
    bitsandbytes(tmp_path, "nf4")
    cell = tiny(tmp_path)
    names: dict[str, Any] = {}
    lines = ENGINE.lines(cell)
    assert "dtype='auto'" in lines
    assert "quantization_config" not in lines
    exec(lines, names)
    ours, theirs = load(cell, tmp_path), names["model"]
    assert [type(m) for m in theirs.modules()] == [type(m) for m in ours.modules()]
    expected = ours.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in theirs.state_dict().items())


def test_a_sweep_measures_it_and_says_why_nothing_is_compared(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    bitsandbytes(folder, "nf4")
    fakes.byte_tokenizer().save_pretrained(folder)
    own = [f"model.path={folder}", "model.weights=pretrained", "model.tokenizer=pretrained"]
    done = in_process(tmp_path, "-m", *TINY, *own, "quant=checkpoint,bf16", "tracking=none")
    assert done.returncode == 0, done.stderr
    checkpoint, other = sorted(results(tmp_path), key=lambda r: r.cell.quant.name, reverse=True)
    assert (checkpoint.outcome.status, other.outcome.status) == ("ok", "skipped")
    assert checkpoint.attestation is not None
    assert checkpoint.attestation.is_quantized
    assert checkpoint.predicted_bytes is not None
    assert checkpoint.answers is not None
    assert checkpoint.samples
    assert checkpoint.divergence is None
    already = "model=tiny is a checkpoint already quantized by bitsandbytes: want quant=checkpoint"
    assert checkpoint.answers.no_reference == already
    report = (sweep_folder(tmp_path) / "report.md").read_text()
    assert f"no divergence, nothing to compare with: {already}" in report
    assert f"skipped: {already}" in report
