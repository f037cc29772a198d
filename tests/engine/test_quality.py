"""Divergence on a real small model: readings against torch's own functions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.analysis.divergence import is_above_floor
from bench.config.cell import Attn, Cell, Quant
from bench.engine.prompts import load_tokenizer
from bench.engine.protocol import ENGINES
from bench.engine.transformers.load import load
from bench.engine.transformers.session import TransformersSession, open_session
from bench.meter.answers import answer_cell
from bench.meter.divergence import evaluate
from bench.meter.perplexity import read_with_stride
from bench.meter.reference import keep_reference
from bench.paths import CHOICE_SETS, TEXTS
from tests import fakes
from tests.architectures import save_spread

BF16 = Quant("bf16", "none", "bf16")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder; its logits are spread out."""
    return save_spread(tmp_path_factory.mktemp("tiny"))


def cell_of(folder: Path, quant: str = "fp32") -> Cell:
    own = {"weights": "pretrained", "tokenizer": "pretrained", "path": str(folder)}
    asked = fakes.group("quality", "samples", text_tokens=256, window_tokens=64, max_new_tokens=4)
    return fakes.resolved(model=fakes.group("model", "tiny", **own), quant=quant, quality=asked)


@pytest.fixture(scope="module")
def reference(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cache") / "reference.safetensors"
    place = ENGINES["transformers"]
    keep_reference(lambda *_: None, place, cell_of(saved), BF16, str(file))
    return file


def session(folder: Path, quant: str = "fp32") -> TransformersSession:
    return open_session(cell_of(folder, quant), folder)


def test_a_model_does_not_diverge_from_itself(saved: Path, reference: Path) -> None:
    found = evaluate(session(saved), reference)
    assert found is not None
    assert [(window.text, window.tokens) for window in found.windows] == [("alice", 63)] * 4
    for window in found.windows:
        assert abs(window.kl_nats) < 1e-9
        assert window.top1_agreement == 1.0
        assert window.nll_nats == pytest.approx(window.reference_nll_nats)
        assert window.floor_kl_nats > 0
    assert not is_above_floor(found)


def test_another_dtype_diverges_and_the_numbers_are_torchs_own(
    saved: Path, reference: Path
) -> None:
    ours = session(saved, "bf16")
    found = evaluate(ours, reference)
    assert found is not None
    plain: Any = load(cell_of(saved), saved)
    with safe_open(reference, framework="pt") as stored:
        ids, about = stored.get_tensor("ids"), json.loads(stored.metadata()["about"])
    text = TEXTS["alice"].read_text(encoding="utf-8")
    assert ours.tokenizer is not None
    assert ours.tokenizer.decode(ids.flatten().tolist()) == text[:256]  # a byte is a token
    assert len(about["answers"]) == 8
    with torch.inference_mode():
        for window, row in zip(found.windows, ids, strict=True):
            p = plain(row[None]).logits[0, :-1].double().log_softmax(-1)
            q = ours.model(row[None]).logits[0, :-1].double().log_softmax(-1)
            kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
            nll = torch.nn.functional.nll_loss
            assert window.kl_nats == pytest.approx(kl.mean().item(), rel=1e-4)
            assert window.kl_median_nats == pytest.approx(kl.quantile(0.5).item(), rel=1e-3)
            assert window.kl_p99_nats == pytest.approx(kl.quantile(0.99).item(), rel=1e-3)
            assert window.nll_nats == pytest.approx(nll(q, row[1:]).item(), rel=1e-6)
            assert window.reference_nll_nats == pytest.approx(nll(p, row[1:]).item(), rel=1e-6)
            same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
            assert window.top1_agreement == pytest.approx(same)
            assert window.kl_nats > 0


def test_fewer_bits_diverge_more(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    folder, file = tmp_path / "model", tmp_path / "reference.safetensors"
    shutil.copytree(saved, folder)
    tensors = load_file(folder / "model.safetensors")  # whose layers hardly matter
    for name in [name for name in tensors if "proj" in name]:
        tensors[name] *= 10
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    keep_reference(lambda *_: None, ENGINES["transformers"], cell_of(folder), BF16, str(file))
    kl_nats = []
    for quant in ("torchao_int8", "torchao_fp8", "torchao_int4"):
        found = evaluate(session(folder, quant), file)
        assert found is not None
        assert is_above_floor(found)
        kl_nats.append(np.mean([window.kl_nats for window in found.windows]))
    assert 0 < 3 * kl_nats[0] < kl_nats[1] < kl_nats[2] / 3
    answers = session(folder, "torchao_int4").complete([[1, 2, 3], [4, 5]], most=4)
    assert [0 < len(answer) <= 4 for answer in answers] == [True, True]


def test_what_happens_to_logits_after_the_head_is_seen(saved: Path) -> None:
    for change, wanted in (
        (lambda logits: logits, 1.0),
        (lambda logits: logits / 2, 0.5),
        (lambda logits: logits**3, None),
    ):
        scaled = session(saved)
        forward = scaled.model.forward

        def changed(
            *arguments: Any, change: Any = change, forward: Any = forward, **given: Any
        ) -> Any:
            out = forward(*arguments, **given)
            out.logits = change(out.logits)
            return out

        scaled.model.forward = changed
        head = scaled.head()
        assert (None if head is None else head.scale) == (wanted and pytest.approx(wanted))
        assert (scaled.logits(np.array([[1, 2, 3]])) is None) == (wanted is None)


def test_a_chat_template_that_raises_takes_the_answers_and_no_divergence_along(
    saved: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "model", tmp_path / "reference.safetensors"
    shutil.copytree(saved, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    place, cell = ENGINES["transformers"], cell_of(folder)
    keep_reference(lambda *_: None, place, cell, BF16, str(file))
    found = answer_cell(lambda *_: None, place, cell, str(file))
    assert found.outcome.status == "ok"
    assert found.samples == ()
    assert found.without == (
        "the model's chat template does not take line 1 of the prompts:"
        " TemplateError: roles must alternate"
    )
    assert found.divergence is not None
    assert len(found.divergence.windows) == 4


def test_a_model_without_sdpa_is_its_own_reference_in_eager(
    saved: Path, reference: Path, tmp_path: Path
) -> None:
    eager = replace(cell_of(saved), attn=Attn("eager", "eager"))
    file = tmp_path / "reference.safetensors"
    keep_reference(lambda *_: None, ENGINES["transformers"], eager, BF16, str(file))
    found = evaluate(session(saved), file)
    assert found is not None
    assert all(abs(window.kl_nats) < 1e-6 for window in found.windows)
    assert all(window.floor_kl_nats >= 0 for window in found.windows)


def test_choices_are_torchs_own_and_a_model_changes_none_of_its_own(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = CHOICE_SETS["shipped"].read_text(encoding="utf-8").splitlines()[::32]
    (tmp_path / "few.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setitem(CHOICE_SETS, "shipped", tmp_path / "few.jsonl")
    cell = cell_of(saved)
    cell = replace(cell, quality=replace(cell.quality, choices="shipped", prompts=None))
    place, file = ENGINES["transformers"], tmp_path / "reference.safetensors"
    keep_reference(lambda *_: None, place, cell, BF16, str(file))
    found = answer_cell(lambda *_: None, place, cell, str(file))
    assert found.divergence is not None
    assert found.choices == found.divergence.choices
    assert len(found.choices) == len(lines) == 8
    plain: Any = load(cell, saved)
    tokenizer = load_tokenizer(cell.model, saved)
    assert tokenizer is not None
    # One row at a time, where nothing is filled up
    for item, choice in zip(map(json.loads, lines), found.choices, strict=True):
        context = torch.tensor(tokenizer.encode(item["context"], special=False))
        for continuation, nats in zip(
            item["continuations"], choice.log_likelihood_nats, strict=True
        ):
            own = torch.tensor(tokenizer.encode(continuation, special=False))
            with torch.inference_mode():
                logits = plain(torch.cat([context, own])[None]).logits[0, len(context) - 1 : -1]
            likely = logits.double().log_softmax(-1)
            assert nats == pytest.approx(likely[range(len(own)), own].sum().item(), rel=1e-5)
    quantized = replace(cell, quant=cell_of(saved, "bf16").quant)
    other = answer_cell(lambda *_: None, place, quantized, str(file))
    assert other.choices != found.choices
    assert [choice.right for choice in other.choices] == [choice.right for choice in found.choices]


def test_perplexity_with_a_stride_is_that_of_hugging_faces_guide(saved: Path) -> None:
    cell = cell_of(saved)
    quality = replace(cell.quality, strided_perplexity=True, text_tokens=700, prompts=None)
    ours = session(saved)
    ours.context_tokens = 256
    (found,) = read_with_stride(replace(cell, quality=quality), ours)
    assert ours.tokenizer is not None
    text = TEXTS["alice"].read_text(encoding="utf-8")
    ids = torch.tensor([ours.tokenizer.encode(text, special=False)[:700]])
    total, before = 0.0, 0
    for begin in range(0, 700, 128):
        end = min(begin + 256, 700)
        labels = ids[:, begin:end].clone()
        labels[:, : before - begin] = -100  # scored already
        with torch.inference_mode():
            mean = ours.model(ids[:, begin:end], labels=labels).loss
        total += mean.item() * (labels[:, 1:] != -100).sum().item()
        before = end
        if end == 700:
            break
    assert found.tokens == 699
    assert found.nll_nats == pytest.approx(total / 699, rel=1e-5)
