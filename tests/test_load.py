"""Random weights of any architecture, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.errors import CellFailure
from bench.model import sources
from bench.model.load import load
from tests import fakes

MIB = 2**20


@pytest.mark.parametrize("quant", ["fp32", "fp16", "bf16", "int8_nodecomp", "nf4", "nf4_double", "fp4"])
@pytest.mark.parametrize("model", ["tiny", "gpt2"])
def test_random_weights_can_be_built_in_every_quantization(model: str, quant: str) -> None:
    small = {"n_layer": 2, "n_embd": 128, "n_head": 2} if model == "gpt2" else {}
    values = fakes.group("model", model, weights="random")
    values["architecture"] |= small
    quantization = fakes.group("quant", quant)
    cell = fakes.cell(model=values, quant={k: "bf16" if v == "auto" else v for k, v in quantization.items()})
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
        "from bench.model.load import load\n"
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
    # The largest layer is the embedding (98 MiB in bf16); initializing a weight takes an fp32 copy of it.
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
def test_a_broken_folder_is_failed_with_a_sentence(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    cell = fakes.cell(model=fakes.group("model", "smollm2-135m", path=str(tmp_path)))
    with pytest.raises(CellFailure) as caught:
        load(cell, sources.fetch(cell.model))
    assert caught.value.status == "failed"
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason
