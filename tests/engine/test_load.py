"""Random weights of any architecture, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.config.cell import Cell
from bench.engine import sources
from bench.engine.transformers.attest import attest, mismatches
from bench.engine.transformers.load import load
from bench.errors import CellFailure
from tests import fakes

MIB = 2**20


@pytest.mark.parametrize(
    "quant", ["fp32", "fp16", "bf16", "int8_nodecomp", "nf4", "nf4_double", "fp4"]
)
@pytest.mark.parametrize("model", ["tiny", "gpt2"])
def test_random_weights_can_be_built_in_every_quantization(model: str, quant: str) -> None:
    small = {"n_layer": 2, "n_embd": 128, "n_head": 2} if model == "gpt2" else {}
    values = fakes.group("model", model, weights="random")
    values["architecture"] |= small
    quantization = fakes.group("quant", quant)
    cell = fakes.cell(
        model=values, quant={k: "bf16" if v == "auto" else v for k, v in quantization.items()}
    )
    subject = load(cell, None)
    with torch.inference_mode():
        logits = subject.model(torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0
    assert not subject.model.training


def test_random_weights_follow_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = load(fakes.cell(model="tiny", quant="fp32", seed=seed), None).model
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_tied_weights_stay_one() -> None:
    model = load(fakes.cell(model="tiny", quant="fp32"), None).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_quantized_random_model_never_holds_the_unquantized_one() -> None:
    # 24 layers of GPT-2 medium: 0.7 GB in bf16, 0.3 GB in nf4, of which the embedding is 0.1.
    code = (
        "from bench.engine.transformers.load import load\n"
        "from bench.meter.memory import reset_peaks, status_bytes\n"
        "from tests import fakes\n"
        "import bitsandbytes\n"
        "values = fakes.group('model', 'gpt2', weights='random')\n"
        "values['architecture'] |= {'n_layer': 24, 'n_embd': 1024, 'n_head': 16}\n"
        "quant = fakes.group('quant', 'nf4', dtype='bf16', compute_dtype='bf16')\n"
        "load(fakes.cell(model='tiny', quant=quant), None)\n"  # imports done
        "reset_peaks('cpu')\n"
        "before = status_bytes('VmRSS')\n"
        "model = load(fakes.cell(model=values, quant=quant), None).model\n"
        "print(status_bytes('VmHWM') - before, status_bytes('VmRSS') - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, final = map(int, done.stdout.split())
    assert final > 250 * MIB
    # The largest layer is the embedding (98 MiB in bf16); initializing a weight takes an fp32 copy
    # of it.
    assert peak < final + 2 * 98 * MIB


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no config.json in it"),
        ({"config.json": "{}"}, "no weights"),
        ({"config.json": "{}", "model.safetensors": "torn"}, "cannot load"),
        ({"config.json": '{"model_type": "llama"}', "model.safetensors": ""}, "cannot load"),
        ({"config.json": '{"model_type": "no-such"}', "model.safetensors": ""}, "cannot load"),
    ],
)
def test_a_broken_folder_is_failed_with_a_sentence(
    tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    cell = fakes.cell(model=fakes.group("model", "smollm2-135m", path=str(tmp_path)))
    with pytest.raises(CellFailure) as caught:
        load(cell, sources.fetch(cell.model))
    assert caught.value.status == "failed"
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The tiny model as a folder, with its tokenizer."""
    subject = load(fakes.cell(model="tiny", quant="fp32"), None)
    assert subject.tokenizer is not None
    subject.model.save_pretrained(tmp_path / "saved")
    subject.tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def in_folder(folder: Path, **architecture: int) -> Cell:
    values = fakes.group(
        "model", "tiny", weights="pretrained", tokenizer="pretrained", path=str(folder)
    )
    values["architecture"] |= architecture
    return fakes.cell(model=values, quant="fp32")


def test_a_local_folder_is_loaded(saved: Path) -> None:
    cell = in_folder(saved)
    subject = load(cell, sources.fetch(cell.model))
    with torch.inference_mode():
        found = attest(cell, subject.model, torch.tensor([[1, 2, 3]]))
    assert found.shape.layers == 2
    assert subject.tokenizer is not None


def test_a_folder_of_another_model_is_not_engaged(saved: Path) -> None:
    cell = in_folder(saved, num_hidden_layers=3)
    subject = load(cell, sources.fetch(cell.model))
    with torch.inference_mode():
        found = attest(cell, subject.model, torch.tensor([[1, 2, 3]]))
    assert mismatches(cell, subject.model, found) == ["num_hidden_layers is 2, model=tiny has 3"]


def test_missing_tensors_are_not_replaced_by_random_ones(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})
    cell = in_folder(saved)
    with pytest.raises(CellFailure, match=r"9 tensors are missing .* download it again"):
        load(cell, sources.fetch(cell.model))


def test_a_missing_tokenizer_is_failed_with_a_sentence(saved: Path) -> None:
    (saved / "tokenizer.json").unlink()
    (saved / "tokenizer_config.json").unlink()
    cell = in_folder(saved)
    with pytest.raises(CellFailure, match=r"cannot load .*; download the folder again"):
        load(cell, sources.fetch(cell.model))
