"""Any architecture that transformers knows, from a folder, with nothing written about it.

Tiny random models: they run, what is counted is what was predicted, and the divergence of a model
from itself is nothing, whatever it does to its logits.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.config.cell import Cell, Model
from bench.config.models import own_model
from bench.config.parse import parse
from bench.driver.plan import resolve, why_not, with_attention
from bench.engine.clock import HostClock, Untimed
from bench.engine.protocol import ENGINES
from bench.engine.transformers import ENGINE
from bench.engine.transformers.schemes import bitsandbytes
from bench.engine.transformers.session import TransformersSession
from bench.errors import BenchError
from bench.meter.divergence import evaluate
from bench.meter.reference import keep_reference
from bench.record.description import Description
from bench.record.result import Attestation
from tests import fakes
from tests.architectures import save_tiny

PEOPLES = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "mistral",
    "mixtral",
    "opt",
    "gpt2",
    "gpt_neox",
    "bloom",
    "falcon",
    "olmo2",
    "granite",
    "smollm3",
    "lfm2",
    "mamba2",
]
IDS = np.random.default_rng(0).integers(1, 300, (2, 16))
TEXT = {"name": "text", "texts": ["alice"], "text_tokens": 96, "window_tokens": 32}


def cell_of(folder: Path, quant: str = "fp32") -> Cell:
    """As ``model=FOLDER attn=auto`` has it here, with a tokenizer of one token a byte."""
    model = replace(parse(Model, own_model(str(folder)) or {}), tokenizer="bytes")
    cell = fakes.cell(quant=quant, attn="auto", quality=TEXT, threads=torch.get_num_threads())
    return resolve(replace(cell, model=model), fakes.host())


def obstacle(cell: Cell) -> str:
    """Why it is skipped."""
    described = ENGINE.describe(cell)
    found = why_not(with_attention(cell, described), fakes.host(), described)
    assert found is not None
    assert found.status == "skipped"
    return str(found.reason)


def run(cell: Cell) -> tuple[TransformersSession, Description, Attestation]:
    """The cell opened, after a request."""
    description = ENGINE.describe(cell)
    assert description is not None
    cell = with_attention(cell, description)
    assert why_not(cell, fakes.host(), description) is None
    session: Any = ENGINE.open(cell, ENGINE.provide(cell, lambda _: None))
    assert session.request(IDS, 4, HostClock()).shape == (2, 4)
    return session, description, session.attest(IDS, 4)


@pytest.mark.parametrize("name", PEOPLES)
def test_it_runs_as_described_and_does_not_diverge_from_itself(name: str, tmp_path: Path) -> None:
    # Enough to bend the logits of those that scale or cap them
    given: dict[str, dict[str, Any]] = {
        "gemma2": {"final_logit_softcapping": 0.3},
        "granite": {"logits_scaling": 4.0},
    }
    cell = cell_of(save_tiny(tmp_path / name, name, **given.get(name, {})))
    session, description, attestation = run(cell)
    assert attestation.mismatches == ()
    assert attestation.weight_bytes == description.weight_bytes
    kept = sum(window != 0 for window in description.windows)
    assert attestation.kv_bytes_per_token == kept * description.kv_bytes_per_token_layer
    tokens = torch.from_numpy(IDS[:1])
    again = torch.from_numpy(session.request(IDS[:1], 4, Untimed()))
    with torch.inference_mode():  # without a cache
        whole = session.model(torch.cat([tokens, again], dim=1), use_cache=False).logits
    assert whole[0, 15:19].argmax(-1).tolist() == again[0].tolist()

    head = session.head()
    assert head is not None
    wanted = {"gemma2": (1.0, 0.3), "granite": (0.25, None)}
    assert (head.scale, head.cap) == wanted.get(name, (1.0, None))

    file = tmp_path / "reference.safetensors"
    keep_reference(lambda *_: None, ENGINES["transformers"], session.cell, cell.quant, str(file))
    found = evaluate(session, file)
    assert found is not None
    ids = [*fakes_text(96)]
    for index, window in enumerate(found.windows):
        row = torch.tensor([ids[32 * index : 32 * index + 32]])
        with torch.inference_mode():
            logits = session.model(row).logits[0, :-1].double().log_softmax(-1)
        nll = -logits[torch.arange(31), row[0, 1:]].mean().item()
        assert window.nll_nats == pytest.approx(nll, rel=1e-5)
        assert abs(window.kl_nats) < 1e-7


def fakes_text(tokens: int) -> bytes:
    """What the byte tokenizer reads of the quality text."""
    from bench.paths import TEXTS

    return TEXTS["alice"].read_text(encoding="utf-8").encode()[:tokens]


def test_an_architecture_takes_the_best_attention_that_it_has(tmp_path: Path) -> None:
    bloom, llama = (cell_of(save_tiny(tmp_path / name, name)) for name in ("bloom", "llama"))
    described = ENGINE.describe(bloom)
    assert with_attention(bloom, described).attn.implementation == "eager"
    assert with_attention(llama, ENGINE.describe(llama)).attn.implementation == "sdpa"
    asked = replace(bloom, attn=fakes.cell(attn="sdpa").attn)
    assert obstacle(asked).startswith("attn=sdpa: model=bloom has no sdpa attention; it has eager")


def test_a_model_that_keeps_no_cache_is_not_engaged(tmp_path: Path) -> None:
    _, _, attestation = run(cell_of(save_tiny(tmp_path / "gpt", "openai-gpt")))
    assert attestation.mismatches == (
        "the model keeps no cache, so its decode steps do not see the prompt",
    )


def test_layers_that_a_scheme_cannot_hold_are_told_before_they_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falcon = cell_of(save_tiny(tmp_path / "falcon", "falcon"), "nf4")
    assert "none of its layers is an ordinary Linear; they are FalconLinear" in obstacle(falcon)

    odd = cell_of(save_tiny(tmp_path / "odd", "llama", intermediate_size=100), "nf4")
    for repacks in (False, True):
        monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda r=repacks: r)
        described = ENGINE.describe(odd)
        assert described is not None
        assert (described.obstacle is None) == (not repacks)
    assert "mlp.gate_proj: bitsandbytes packs 4-bit weights" in obstacle(odd)
    assert "in blocks of 32 outputs" in obstacle(odd)
    assert bitsandbytes.FOUR_BIT.obstacle(128, 64, odd.quant, "cpu") is None


@pytest.mark.slow
def test_nine_of_ten_architectures_run(tmp_path: Path) -> None:
    """Of 30 that are drawn from transformers' registry; the others have a sentence."""
    drawn = random.Random(0).sample(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), 30)
    ran, reasons = [], {}
    for name in drawn:
        try:
            cell = cell_of(save_tiny(tmp_path / name, name), "bf16")
            mismatches = run(cell)[2].mismatches
        except (BenchError, AttributeError, KeyError) as error:
            reasons[name] = f"{type(error).__name__}: {error}"
            continue
        ran += [name] if not mismatches else []
        reasons |= {name: "; ".join(mismatches)} if mismatches else {}
    print(f"{len(ran)} of 30 ran; {reasons}")
    assert len(ran) >= 27
