"""The model as published, kept for comparison: final hidden states over the windows of a text,
head, answers.

Windows are disjoint pieces of a text's tokens, each read from its own beginning: after the
tokenizer's mark for the beginning of a text where it sets one by itself, else the first token is
read and not scored. What is left at the end of the text and does not fill a window is dropped.

Beside each window stands the *noise floor*: the same published weights in 16 bits against
themselves, one row at a time with sdpa against four rows with eager attention. A divergence below
it says no more than a change of the batch would.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.config.cell import Cell, Quality, Quant
from bench.driver.process import Announce
from bench.engine.transformers.load import load, release_heap
from bench.errors import CellFailure
from bench.meter.answers import answer_samples
from bench.meter.divergence import compare, final_hidden
from bench.meter.host import begin_task
from bench.paths import TEXTS

_FLOOR_ROWS = 4
_SAME = 1e-2  # of logits: two ways through one head differ by less, a missing scale or cap by more


def make_reference(announce: Announce, cell: Cell, floor: Quant, file: str) -> None:
    """Read the cell's texts with its unquantized model, and write what is kept to ``file``.

    Args:
        floor: 16 bits, for the noise floor.

    Raises:
        CellFailure: ``failed`` when the model's logits are more than a product with its head, or a
            text is too short.
    """
    folder, _ = begin_task(announce, cell)
    announce("load", "")
    subject = load(cell, folder)
    assert subject.tokenizer is not None, "texts need a tokenizer"
    announce("quality", "the reference")
    ids, windows, begins_with_bos = _windows(cell.quality, subject.tokenizer)
    ids = ids.to(subject.model.device)
    with torch.inference_mode():
        _check_head(subject.model, ids[:1])
        hidden = torch.cat([final_hidden(subject.model, row[None]) for row in ids])
    answers = answer_samples(cell, subject) if cell.quality.prompts is not None else ()
    head = subject.model.get_output_embeddings()
    kept = {"ids": ids, "hidden": hidden, "head": head.weight} | (
        {} if head.bias is None else {"bias": head.bias}
    )
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in kept.items()}
    announce("quality", "the noise floor")
    if cell.quant.dtype != floor.dtype:
        del subject, head, hidden
        release_heap()
        subject = load(replace(cell, quant=floor), folder)
    floors = _noise_floor(subject.model, ids)
    if not np.isfinite(floors).all():
        raise CellFailure(
            "failed", f"{cell.model.name} in {floor.dtype} gives logits that are not finite numbers"
        )
    about = {
        "reference": cell.quant.name,
        "begins_with_bos": begins_with_bos,
        "windows": [
            {**window, "floor_kl_nats": kl} for window, kl in zip(windows, floors, strict=True)
        ],
        "answers": [dataclasses.asdict(answer) for answer in answers],
    }
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    # One sweep at a time: what a killed one has left is written over
    aside = Path(f"{file}.partial")
    try:
        save_file(kept, aside, metadata={"about": json.dumps(about, allow_nan=False)})
    except SafetensorError as error:
        aside.unlink(missing_ok=True)
        raise CellFailure("failed", f"{file} cannot be written ({error})") from error
    os.replace(aside, file)


def _windows(
    quality: Quality, tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, list[dict[str, Any]], bool]:
    """Token ids, (windows, tokens); name and scored bytes of each; and whether each begins with the
    tokenizer's mark."""
    rows, about = [], []
    begin = tokenizer("", add_special_tokens=True).input_ids[:1]
    for name in quality.texts:
        ids = tokenizer(
            TEXTS[name].read_text(encoding="utf-8"), add_special_tokens=False, verbose=False
        ).input_ids
        pieces = list(_pieces(ids[: quality.text_tokens], quality.window_tokens - len(begin)))
        if not pieces:
            raise CellFailure(
                "failed", f"the text {name} has {len(ids)} tokens, less than one window"
            )
        for piece in pieces:
            rows.append([*begin, *piece])
            scored = piece if begin else piece[1:]
            about.append({"text": name, "bytes": len(tokenizer.decode(scored).encode())})
    return torch.tensor(rows), about, bool(begin)


def _pieces(ids: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids) - length + 1, length):
        yield ids[start : start + length]


def _check_head(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Some models scale or cap their logits after the head."""
    made = model.get_output_embeddings()(final_hidden(model, ids)[:, -1:]).float()
    logits = model(ids, use_cache=False, logits_to_keep=1).logits.float()
    if not torch.allclose(made, logits, rtol=_SAME, atol=_SAME):
        raise CellFailure(
            "failed",
            f"{type(model).__name__} makes its logits by more than a product with its head",
        )


def _noise_floor(model: PreTrainedModel, ids: torch.Tensor) -> list[float]:
    """Mean KL of each window."""
    head = model.get_output_embeddings()
    with torch.inference_mode():
        alone = [final_hidden(model, row[None])[0] for row in ids]
        model.set_attn_implementation("eager")
        together = [row for rows in ids.split(_FLOOR_ROWS) for row in final_hidden(model, rows)]
        return [
            float(compare(tokens, other, head, one, head).kl_nats.mean())
            for tokens, one, other in zip(ids, alone, together, strict=True)
        ]
