"""Random weights of any architecture, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.config.cell import Cell
from bench.engine import sources
from bench.engine.transformers.load import load
from bench.engine.transformers.session import TransformersSession, open_session
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
    model = load(fakes.resolved(model=values, quant=quant), None)
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0
    assert not model.training


def test_random_weights_follow_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = load(fakes.cell(model="tiny", quant="fp32", seed=seed), None)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_tied_weights_stay_one() -> None:
    model = load(fakes.cell(model="tiny", quant="fp32"), None)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("quant", ["nf4", "int4_g64"])
def test_a_quantized_random_model_never_holds_the_unquantized_one(quant: str) -> None:
    # 8 layers of GPT-2 medium with a small vocabulary: 194 MiB in bf16, 52 MiB in 4 bits.
    code = (
        "from bench.engine.transformers.load import load\n"
        "from bench.meter.memory import reset_peak, rss_bytes\n"
        "from tests import fakes\n"
        "import bitsandbytes\n"
        "values = fakes.group('model', 'gpt2', weights='random')\n"
        "values['architecture'] |= {'n_layer': 8, 'n_head': 16, 'n_embd': 1024}\n"
        "values['architecture'] |= {'vocab_size': 999}\n"
        f"load(fakes.resolved(model='tiny', quant='{quant}'), None)\n"  # imports done
        "reset_peak()\n"
        "before = rss_bytes()\n"
        f"model = load(fakes.resolved(model=values, quant='{quant}'), None)\n"
        "peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]\n"
        "print(int(peak.split()[1]) * 1024 - before, rss_bytes() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, final = map(int, done.stdout.split())
    assert final > 40 * MIB
    # The largest matrix has 8 MiB in bf16, and 16 in the fp32 copies of which a few are alive
    assert peak < final + 7 * 16 * MIB < 194 * MIB


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
        opened(cell)
    assert caught.value.status == "failed"
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The tiny model as a folder, with a tokenizer of one token a byte."""
    folder = tmp_path / "saved"
    load(fakes.cell(model="tiny", quant="fp32"), None).save_pretrained(folder)
    fakes.byte_tokenizer().save_pretrained(folder)
    return folder


def opened(cell: Cell) -> TransformersSession:
    return open_session(cell, sources.fetch(cell.model))


def in_folder(folder: Path, **architecture: int) -> Cell:
    values = fakes.group(
        "model", "tiny", weights="pretrained", tokenizer="pretrained", path=str(folder)
    )
    values["architecture"] |= architecture
    return fakes.cell(model=values, quant="fp32")


def test_a_local_folder_is_loaded(saved: Path) -> None:
    session = opened(in_folder(saved))
    found = session.attest(np.array([[1, 2, 3]]), 4)
    assert found.shape.layers == 2
    assert found.mismatches == ()
    assert session.tokenizer is not None


def test_a_folder_of_another_model_is_not_engaged(saved: Path) -> None:
    session = opened(in_folder(saved, num_hidden_layers=3))
    found = session.attest(np.array([[1, 2, 3]]), 4)
    (mismatch,) = found.mismatches
    advice = "give a folder of another model as model=FOLDER"
    assert mismatch == f"num_hidden_layers is 2, model=tiny has 3; {advice}"


def test_missing_tensors_are_not_replaced_by_random_ones(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})
    cell = in_folder(saved)
    with pytest.raises(CellFailure, match=r"9 tensors are missing .* download it again"):
        opened(cell)


def test_a_broken_tokenizer_is_failed_with_a_sentence(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{")
    cell = in_folder(saved)
    with pytest.raises(CellFailure, match=r"cannot load .*; download the folder again"):
        opened(cell)


def test_without_a_tokenizer_prompts_are_made_up(saved: Path) -> None:
    (saved / "tokenizer.json").unlink()
    (saved / "tokenizer_config.json").unlink()
    session = opened(in_folder(saved))
    assert session.tokenizer is None
