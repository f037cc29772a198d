"""The model as published, kept for comparison: hidden states over a text, head, answers, choices,
noise floor.

Windows are disjoint pieces of a text's tokens, each read from its own beginning: after the
tokenizer's mark for the beginning of a text where it sets one by itself, else the first token is
read and not scored. What is left at the end of the text and does not fill a window is dropped.

Beside each window stands the *noise floor*: the same published weights in 16 bits against
themselves, one row at a time with one attention kernel against four rows with another. A divergence
below it says no more than a change of the batch would.
"""

import dataclasses
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from bench.config.cell import Cell, Quant
from bench.engine.prompts import Ids, Tokenizer
from bench.engine.protocol import Announce, Floats, Session
from bench.errors import CellFailure
from bench.meter.answers import try_answers
from bench.meter.cell import begin
from bench.meter.choices import choose
from bench.meter.divergence import compare
from bench.meter.perplexity import texts_of

_FLOOR_ROWS = 4


def keep_reference(announce: Announce, place: str, cell: Cell, floor: Quant, file: str) -> None:
    """Read the cell's texts with its unquantized model, and write what is kept to ``file``.

    Args:
        floor: 16 bits, for the noise floor.

    Raises:
        CellFailure: ``failed`` when the model's logits are more than its head makes, when it has no
            tokenizer, or a text is too short.
    """
    engine, files, _ = begin(announce, place, cell)
    announce("load")
    session = engine.open(cell, files)
    if session.tokenizer is None:
        raise CellFailure("failed", f"{cell.model.name} has no tokenizer, so it reads no texts")
    announce("quality", "the reference")
    ids, windows, begins_with_bos = _windows(cell, session.tokenizer)
    head = session.head()
    if head is None:
        raise CellFailure(
            "failed",
            f"{cell.model.name} makes its logits by more than a product with its head, a scale"
            " and a cap",
        )
    hidden = [session.hidden(row[None]) for row in ids]
    answers, _ = try_answers(cell, session)  # its cells say why there are none
    choices = choose(cell, session)
    kept = {"ids": ids, "hidden": np.concatenate(hidden), "head": head.weight}
    kept |= {} if head.bias is None else {"bias": head.bias}
    kept = {name: np.ascontiguousarray(array) for name, array in kept.items()}
    announce("quality", "the noise floor")
    if cell.quant.dtype != floor.dtype:
        del session
        session = engine.open(replace(cell, quant=floor), files)
    floors = _noise_floor(session, ids)
    if not np.isfinite(floors).all():
        name = cell.model.name
        raise CellFailure("failed", f"{name} in {floor.dtype} gives logits that are not finite")
    about = {
        "reference": cell.quant.name,
        "begins_with_bos": begins_with_bos,
        "scale": head.scale,
        "cap": head.cap,
        "windows": [
            {**window, "floor_kl_nats": kl} for window, kl in zip(windows, floors, strict=True)
        ],
        "answers": [dataclasses.asdict(answer) for answer in answers],
        "choices": [dataclasses.asdict(choice) for choice in choices],
    }
    _write(Path(file), kept, {"about": json.dumps(about, allow_nan=False)})


def _write(file: Path, kept: dict[str, Any], metadata: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # On a shared disk another node may be writing the same
    aside = file.with_suffix(f".{socket.gethostname()}-{os.getpid()}.partial")
    try:
        save_file(kept, aside, metadata=metadata)
    except (SafetensorError, OSError) as error:
        if aside.is_file():
            aside.unlink()
        raise CellFailure("failed", f"{file} cannot be written ({error})") from error
    os.replace(aside, file)


def _windows(cell: Cell, tokenizer: Tokenizer) -> tuple[Ids, list[dict[str, Any]], bool]:
    """Token ids, (windows, tokens); name and scored bytes of each; and whether each begins with the
    tokenizer's mark."""
    rows, about = [], []
    quality, begin_ids = cell.quality, list(tokenizer.begins)
    for name, text, is_named in texts_of(cell):
        ids = tokenizer.encode(text, special=False)[: quality.text_tokens]
        pieces = list(_pieces(ids, quality.window_tokens - len(begin_ids)))
        if not pieces and is_named:
            raise CellFailure(
                "failed", f"the text {name} has {len(ids)} tokens, less than one window"
            )
        for piece in pieces:
            rows.append([*begin_ids, *piece])
            scored = piece if begin_ids else piece[1:]
            about.append({"text": name, "bytes": len(tokenizer.decode(scored).encode())})
    return np.array(rows, dtype=np.int64), about, bool(begin_ids)


def _pieces(ids: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids) - length + 1, length):
        yield ids[start : start + length]


def _noise_floor(session: Session, ids: Ids) -> list[float]:
    """Mean KL of each window."""
    alone = [_logits(session, row[None])[0] for row in ids]  # of hidden states that are there now
    session.alternative()
    floors = []
    for start in range(0, len(ids), _FLOOR_ROWS):
        together = _logits(session, ids[start : start + _FLOOR_ROWS])
        for offset, pieces in enumerate(together):
            window = start + offset
            compared = compare(ids[window], pieces, alone[window])
            floors.append(float(compared.kl_nats.mean()))
    return floors


def _logits(session: Session, ids: Ids) -> list[Iterator[Floats]]:
    rows = session.logits(ids)
    assert rows is not None, "a model that shows its head shows its logits"
    return rows
