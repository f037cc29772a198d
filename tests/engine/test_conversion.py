"""Noise on published weights takes them off the grid that they were published on, as it is said to
do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from bench.config.cell import Cell, Model
from bench.config.models import own_model
from bench.config.parse import parse
from bench.driver.policy import reference_file
from bench.engine import sources
from bench.engine.conversion import GROUP, layer_matrices, noise
from bench.engine.protocol import ENGINES, engine_at
from bench.errors import CellFailure
from tests import fakes
from tests.command_line import TINY, in_process, results

ENGINE = engine_at(ENGINES["transformers"])
CONFIGS = {
    # 80 inputs are two groups and a half
    "llama": LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    # Its layers have their weights transposed
    "gpt2": GPT2Config(vocab_size=320, n_positions=64, n_embd=80, n_layer=2, n_head=4),
}


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest of 16 values from the smallest to the largest of each group, as Q4_1 has them."""
    pieces = []
    for group in matrix.split(GROUP, dim=1):
        low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
        step = (high - low) / 15
        pieces.append(low + ((group - low) / step).round() * step)
    return torch.cat(pieces, dim=1)


def lost(model: PreTrainedModel) -> float:
    """Relative error of the layers' weights after rounding."""
    weights = [weight.float() for _, weight in layer_matrices(model)]
    errors = sum(float((rounded(w) - w).square().sum()) for w in weights)
    return (errors / sum(float(w.square().sum()) for w in weights)) ** 0.5


@pytest.fixture(params=CONFIGS)
def published(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a small model on a grid of 4 bits, in bf16, and a cache of its own."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    for _, weight in layer_matrices(model):
        # Powers of two as steps, so that bf16 holds the grid
        weight.copy_(torch.randint(-8, 8, weight.shape) * 2.0**-7)
        weight[:, ::GROUP], weight[:, 1::GROUP] = -8 * 2.0**-7, 7 * 2.0**-7
    folder = tmp_path / "published"
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    fakes.byte_tokenizer().save_pretrained(folder)
    return folder


def model_of(folder: Path, weights: str = "dithered") -> Model:
    return replace(parse(Model, own_model(str(folder)) or {}), weights=weights)


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def test_rounding_to_4_bits_loses_nothing_before_and_as_usual_after(published: Path) -> None:
    folder = sources.fetch(model_of(published))
    assert folder is not None
    assert lost(loaded(published)) < 1e-6
    ordinary = torch.randn(512, 64)
    usual = float((rounded(ordinary) - ordinary).norm() / ordinary.norm())
    assert 0.5 * usual < lost(loaded(folder)) < 1.5 * usual


def test_noise_is_half_a_step_and_on_layers_alone(published: Path) -> None:
    folder = sources.fetch(model_of(published))
    assert folder is not None
    before, after = loaded(published), loaded(folder)
    assert next(after.parameters()).dtype == torch.bfloat16  # as it was published
    layers = dict(layer_matrices(before))
    assert len(layers) == 2 * (4 if before.config.model_type == "gpt2" else 7)
    in_steps = []
    for (name, old), (same, new) in zip(layers.items(), layer_matrices(after), strict=True):
        assert name == same
        assert torch.equal(new, (old.float() + noise(old, name)).bfloat16())
        in_steps.append(noise(old, name).flatten() * 2**7)
    added = torch.cat(in_steps)
    assert added.abs().max() <= 0.5
    assert added.mean().abs() < 4 * (1 / 12 / len(added)) ** 0.5
    assert added.var().item() == pytest.approx(1 / 12, rel=0.02)
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{name}.weight" for name in layers}
    head, embedding = after.get_output_embeddings(), after.get_input_embeddings()
    assert head.weight is embedding.weight


def test_noise_follows_the_name_and_nothing_else() -> None:
    matrix = torch.arange(16.0).repeat(2, 2)  # in steps of 1
    once = noise(matrix, "a")
    torch.manual_seed(1)
    assert torch.equal(once, noise(matrix, "a"))
    assert torch.equal(once, noise(matrix + 5, "a"))
    assert torch.equal(once * 2, noise(matrix * 2, "a"))
    assert not torch.equal(once, noise(matrix, "b"))
    # Written down: another torch, or another machine, has to make the same model
    first = noise(matrix, "model.layers.0.mlp.up_proj")[0, :3] * 2**24
    assert first.tolist() == [-8325390, -3794728, -2837383]


def test_it_is_made_once_of_these_very_files(published: Path) -> None:
    said: list[str] = []
    model = model_of(published)
    assert sources.cached(model) is None
    folder = sources.fetch(model, said.append)
    assert folder is not None
    assert said == ["adding noise to the weights, once"]
    assert sources.fetch(model, said.append) == sources.cached(model) == folder
    assert len(said) == 1
    again = folder.rename(folder.with_name("once"))
    sources.fetch(model)
    for file in again.glob("*.safetensors"):
        assert file.read_bytes() == (folder / file.name).read_bytes()
    (published / "generation_config.json").write_text("{}")
    assert sources.fetch(model) != folder


def test_everything_that_loads_it_reads_the_folder(published: Path) -> None:
    cell = replace(fakes.resolved(quant="fp32"), model=model_of(published))
    files = ENGINE.provide(cell, lambda _: None)
    assert files.folder == sources.cached(cell.model) == sources.configuration(cell.model)
    assert files.revision == files.folder.name
    assert files.folder.name.endswith(f"-{sources.DITHERED}")
    assert repr(str(files.folder)) in ENGINE.lines(cell)
    session = ENGINE.open(cell, files)
    assert session.tokenizer is not None
    described = ENGINE.describe(cell)
    assert described == ENGINE.describe(with_weights(cell, "pretrained"))


def with_weights(cell: Cell, weights: str) -> Cell:
    return replace(cell, model=replace(cell.model, weights=weights))


def test_its_reference_is_another_one(published: Path) -> None:
    cell = replace(fakes.resolved(quant="fp32"), model=model_of(published))
    files = {
        reference_file(with_weights(cell, weights), fakes.host())
        for weights in ("pretrained", "dithered")
    }
    assert len(files) == 2


def test_before_it_is_made_its_configuration_is_the_published_one(published: Path) -> None:
    assert sources.configuration(model_of(published)) == published


def test_packed_weights_get_no_noise(published: Path) -> None:
    config = published / "config.json"
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config.write_text(json.dumps(json.loads(config.read_text()) | packed))
    with pytest.raises(CellFailure, match=r"model=published: weights that are quantized") as caught:
        sources.fetch(model_of(published))
    assert caught.value.status == "skipped"


def test_a_folder_that_lacks_tensors_is_not_filled_with_random_ones(published: Path) -> None:
    config = published / "config.json"
    text = config.read_text()
    for name in ("num_hidden_layers", "n_layer"):
        text = text.replace(f'"{name}": 2', f'"{name}": 3')
    config.write_text(text)
    with pytest.raises(CellFailure, match=r"\d+ tensors are missing in .*download it again"):
        sources.fetch(model_of(published))
    assert sources.cached(model_of(published)) is None


@pytest.mark.parametrize("published", ["llama"], indirect=True)
def test_a_sweep_compares_each_with_itself_and_tells_them_apart(
    published: Path, tmp_path: Path
) -> None:
    model = [f"model={published}", "model.weights=pretrained,dithered"]
    model += ["quant=int8_nodecomp"]  # 80 outputs are none that every processor packs in 4 bits
    model += ["workload.prompt_tokens=8"]
    quality = ["quality.prompts=null", "quality.text_tokens=64", "quality.window_tokens=32"]
    done = in_process(tmp_path, "-m", *TINY[1:], *model, *quality, "tracking=none")
    assert done.returncode == 0, done.stderr
    assert "model.weights" in done.stdout
    as_is, noisy = results(tmp_path)
    assert (as_is.cell.model.weights, noisy.cell.model.weights) == ("pretrained", "dithered")
    assert str(noisy.revision).endswith(sources.DITHERED)
    assert noisy.cell.label == "published/int8_nodecomp/sdpa/dithered/b1"
    assert as_is.divergence is not None
    assert noisy.divergence is not None
    assert len(list((tmp_path / "cache" / "references").glob("*.safetensors"))) == 2
