"""Divergence: its intervals by hand, and its readings against torch's own functions on a real small
model."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.analysis.divergence import by_text, estimates, is_above_floor
from bench.analysis.metrics import derive
from bench.analysis.stats import t_quantile
from bench.config.cell import Cell, Quant
from bench.driver.process import Announce
from bench.driver.references import reference_cell, wants_reference
from bench.engine.transformers.load import Subject, load
from bench.errors import CellFailure
from bench.meter import divergence as quality
from bench.meter import reference
from bench.paths import TEXTS
from tests import fakes

FP32, BF16 = Quant("fp32", "none", "fp32"), Quant("bf16", "none", "bf16")


def quiet(phase: str, detail: str = "", kept: Any = None) -> None: ...


ANNOUNCE: Announce = quiet


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, whose weights are random but lie on disk like those of any
    other; logits spread out."""
    folder = tmp_path_factory.mktemp("tiny")
    subject = load(fakes.cell(model="tiny", quant="fp32"), None)
    with torch.no_grad():
        subject.model.get_output_embeddings().weight.mul_(20)
    subject.model.save_pretrained(folder)
    assert subject.tokenizer is not None
    subject.tokenizer.save_pretrained(folder)
    return folder


def cell_of(folder: Path, **changes: Any) -> Cell:
    model = fakes.group(
        "model", "tiny", weights="pretrained", tokenizer="pretrained", path=str(folder)
    )
    asked = fakes.group("quality", "samples", text_tokens=256, window_tokens=64, max_new_tokens=4)
    return fakes.cell(**{"model": model, "quant": "fp32", "quality": asked} | changes)


@pytest.fixture(scope="module")
def made(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = str(tmp_path_factory.mktemp("cache") / "reference.safetensors")
    reference.make_reference(ANNOUNCE, cell_of(saved), BF16, file)
    return file


def test_a_model_does_not_diverge_from_itself(saved: Path, made: str) -> None:
    cell = cell_of(saved)
    found = quality.evaluate(cell, load(cell, saved), made)
    assert [(window.text, window.tokens) for window in found.windows] == [("alice", 63)] * 4
    for window in found.windows:
        assert abs(window.kl_nats) < 1e-9
        assert window.top1_agreement == 1.0
        assert window.nll_nats == pytest.approx(window.reference_nll_nats)
    assert not is_above_floor(found)


def test_another_dtype_diverges_and_the_numbers_are_torch_s_own(saved: Path, made: str) -> None:
    cell = cell_of(saved, quant="bf16")
    subject = load(cell, saved)
    found = quality.evaluate(cell, subject, made)
    plain = load(cell_of(saved), saved)
    with safe_open(made, framework="pt") as stored:
        ids = stored.get_tensor("ids")
    with torch.inference_mode():
        for window, row in zip(found.windows, ids, strict=True):
            p = plain.model(row[None]).logits[0, :-1].double().log_softmax(-1)
            q = subject.model(row[None]).logits[0, :-1].double().log_softmax(-1)
            kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
            assert window.kl_nats == pytest.approx(kl.mean().item(), rel=1e-4)
            assert window.kl_median_nats == pytest.approx(kl.quantile(0.5).item(), rel=1e-3)
            assert window.kl_p99_nats == pytest.approx(kl.quantile(0.99).item(), rel=1e-3)
            assert window.nll_nats == pytest.approx(
                torch.nn.functional.nll_loss(q, row[1:]).item(), rel=1e-6
            )
            assert window.reference_nll_nats == pytest.approx(
                torch.nn.functional.nll_loss(p, row[1:]).item(), rel=1e-6
            )
            assert window.top1_agreement == pytest.approx(
                (p.argmax(-1) == q.argmax(-1)).double().mean().item()
            )
            assert window.kl_nats > 0


def test_the_windows_are_the_text_one_after_the_other(saved: Path, made: str) -> None:
    text = TEXTS["alice"].read_text(encoding="utf-8")
    with safe_open(made, framework="pt") as stored:
        ids, about = stored.get_tensor("ids"), json.loads(stored.metadata()["about"])
    subject = load(cell_of(saved), saved)
    assert subject.tokenizer is not None
    assert subject.tokenizer.decode(ids.flatten()) == text[:256]  # a byte is a token
    assert about["begins_with_bos"] is False
    assert [window["bytes"] for window in about["windows"]] == [63] * 4
    assert all(window["floor_kl_nats"] > 0 for window in about["windows"])
    assert len(about["answers"]) == 8


def test_a_text_shorter_than_a_window_is_refused(saved: Path, tmp_path: Path) -> None:
    cell = cell_of(saved)
    cell = replace(cell, quality=replace(cell.quality, window_tokens=300))
    with pytest.raises(CellFailure, match="less than one window"):
        reference.make_reference(ANNOUNCE, cell, BF16, str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_a_model_that_scales_its_logits_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(cell: Cell, folder: Path) -> Subject:
        subject = load(cell, folder)
        subject.model.get_output_embeddings().register_forward_hook(lambda module, ids, out: out)
        forward = subject.model.forward

        def capped(*arguments: Any, **options: Any) -> Any:
            out = forward(*arguments, **options)
            out.logits = out.logits / 2
            return out

        subject.model.forward = capped
        return subject

    monkeypatch.setattr(reference, "load", scaled)
    with pytest.raises(CellFailure, match="more than a product with its head"):
        reference.make_reference(ANNOUNCE, cell_of(saved), BF16, str(tmp_path / "none"))


def test_a_head_with_a_bias_is_kept_with_it(made: str, tmp_path: Path, saved: Path) -> None:
    tensors = load_file(made)
    bias = torch.linspace(0, 5, tensors["head"].shape[0])
    with safe_open(made, framework="pt") as stored:
        metadata = stored.metadata()
    save_file(tensors | {"bias": bias}, tmp_path / "biased", metadata=metadata)
    cell = cell_of(saved)
    subject = load(cell, saved)
    plain = quality.evaluate(cell, subject, made)
    biased = quality.evaluate(cell, subject, str(tmp_path / "biased"))
    assert biased.windows[0].reference_nll_nats != pytest.approx(
        plain.windows[0].reference_nll_nats, rel=1e-4
    )
    assert biased.windows[0].nll_nats == plain.windows[0].nll_nats


def test_intervals_are_student_s_over_windows_and_paired() -> None:
    found = fakes.divergence(
        fakes.window(kl_nats=0.1, nll_nats=1.2, reference_nll_nats=1.0),
        fakes.window(kl_nats=0.3, nll_nats=3.2, reference_nll_nats=3.0),
    )
    half = t_quantile(0.975, 1) * math.sqrt(0.02) / math.sqrt(2)
    kl = estimates(found)["kl_nats"]
    assert (kl.value, kl.low, kl.high, kl.n) == (
        pytest.approx(0.2),
        pytest.approx(0.2 - half),
        pytest.approx(0.2 + half),
        2,
    )
    # 0.2 nats in each window, however different the windows are
    ratio = estimates(found)["perplexity_ratio"]
    assert (ratio.low, ratio.high) == (pytest.approx(math.exp(0.2)), pytest.approx(math.exp(0.2)))


def test_above_the_floor_is_told_window_by_window() -> None:
    # The floor moves with the window: unpaired, these would overlap.
    clear = fakes.divergence(
        *(fakes.window(kl_nats=base + 0.01, floor_kl_nats=base) for base in (0.1, 0.5, 0.9))
    )
    unclear = fakes.divergence(
        *(fakes.window(kl_nats=0.1 + d, floor_kl_nats=0.1) for d in (-0.05, 0.02, 0.06))
    )
    assert is_above_floor(clear)
    assert not is_above_floor(unclear)


def test_texts_are_told_apart_where_there_are_several() -> None:
    two = fakes.divergence(fakes.window(kl_nats=0.2), fakes.window(text="code", kl_nats=0.6))
    assert {text: values["kl_nats"].value for text, values in by_text(two).items()} == {
        "alice": 0.2,
        "code": 0.6,
    }
    metrics = derive(fakes.result(divergence=two))
    assert (metrics["kl_nats"], metrics["kl_nats_alice"], metrics["kl_nats_code"]) == (
        pytest.approx(0.4),
        0.2,
        0.6,
    )
    assert by_text(fakes.divergence()) == {}


def test_one_window_has_no_interval() -> None:
    metrics = derive(fakes.result(divergence=fakes.divergence(fakes.window())))
    assert metrics["kl_nats"] == 0.5
    assert "kl_nats_low" not in metrics


def test_the_reference_is_the_unquantized_model_in_the_widest_type_that_fits() -> None:
    nf4 = fakes.cell(quant="nf4", batch=32, attn="sdpa_math")
    found = reference_cell(nf4, fakes.host(), None)
    assert found is not None
    assert (found.quant, found.attn.name, found.batch) == (FP32, "sdpa", 1)
    assert found.quality == nf4.quality
    asked = reference_cell(nf4, fakes.host(), "fp16")
    assert asked is not None
    assert asked.quant.name == "fp16"
    # A quantized baseline of speed is no reference of quality
    other = reference_cell(nf4, fakes.host(), "nf4")
    assert other is not None
    assert other.quant == FP32
    small = reference_cell(nf4, fakes.host(memory_bytes=400_000_000), None)
    assert small is not None
    assert small.quant == BF16
    assert reference_cell(nf4, fakes.host(memory_bytes=1_000_000), None) is None


@pytest.mark.parametrize(("capability", "dtype"), [(7.5, "fp16"), (9.0, "bf16")])
def test_on_a_gpu_the_reference_has_16_bits(capability: float, dtype: str) -> None:
    found = reference_cell(
        fakes.cell(quant="nf4", device="cuda"), fakes.gpu_host(capability=capability), None
    )
    assert found is not None
    assert found.quant.name == dtype


def test_random_weights_are_not_evaluated(saved: Path) -> None:
    assert wants_reference(cell_of(saved))
    assert not wants_reference(fakes.cell(model="tiny", quality="samples"))
    assert not wants_reference(fakes.cell(quality="none"))
