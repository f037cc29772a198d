"""The unquantized model that a cell's predictions and answers are compared with: made once, kept in
the cache.

fp32 on a CPU and 16 bits on a GPU, as far as that fits; an unquantized ``baseline.quant`` is taken
instead. A cell without a reference is measured all the same.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.config.cell import Attn, Cell, Decode, DtypeName, Quant, digest
from bench.driver import plan
from bench.driver import process as isolate
from bench.driver.resume import measuring_digest, weights_of
from bench.errors import CellFailure
from bench.paths import TEXTS, cache_folder
from bench.record.result import Host, Result, is_complete

_BF16_CAPABILITY = 8.0


def find_references(
    records: Sequence[Result], asked: str | None, show: Callable[[str], None]
) -> dict[str, str]:
    """By cell_id, the file of its reference, for cells that are still to run and are asked for more
    than speed."""
    files: dict[str, str | None] = {}
    found = {}
    for record in records:
        if is_complete(record) or not wants_reference(record.cell):
            continue
        reference = reference_cell(record.cell, record.host, asked)
        if reference is None:
            _say(
                f"{record.cell.model.name} fits unquantized in no dtype: no reference, so no"
                " divergence"
            )
            continue
        file = str(_file(reference, record.host))
        if file not in files:
            files[file] = (
                file if Path(file).is_file() else _make(reference, record.host, file, show)
            )
        if (made := files[file]) is not None:
            found[record.cell_id] = made
    return found


def wants_reference(cell: Cell) -> bool:
    """Random weights predict nothing."""
    return bool(cell.quality.texts) and cell.model.weights == "pretrained"


def reference_cell(cell: Cell, host: Host, asked: str | None) -> Cell | None:
    """The cell whose model is the reference of this one; None when none fits here."""
    sixteen = _sixteen_bits(cell, host)
    wanted: list[DtypeName] = ["fp32", sixteen] if cell.device == "cpu" else [sixteen]
    wanted = [dtype for dtype in ("fp32", "fp16", "bf16") if dtype == asked] + wanted
    for dtype in wanted:
        plain = replace(
            cell,
            quant=_plain(dtype),
            attn=Attn("sdpa", "sdpa"),
            decode=Decode("loop", "loop"),
            batch=1,
        )
        if plan.why_not(plain, host) is None:
            return plain
    return None


def _plain(dtype: DtypeName) -> Quant:
    return Quant(dtype, "none", dtype)


def _sixteen_bits(cell: Cell, host: Host) -> DtypeName:
    return "bf16" if cell.device == "cpu" or (host.capability or 0) >= _BF16_CAPABILITY else "fp16"


def _file(reference: Cell, host: Host) -> Path:
    texts = [
        hashlib.sha256(TEXTS[name].read_bytes()).hexdigest() for name in reference.quality.texts
    ]
    versions = {name: host.versions.get(name) for name in ("torch", "transformers")}
    what = [reference.model, reference.quant, reference.quality, reference.device, host.device_name]
    key = digest([*what, texts, versions, measuring_digest(), weights_of(reference)])
    return (
        cache_folder()
        / "references"
        / f"{reference.model.name}-{reference.quant.name}-{key}.safetensors"
    )


def _make(reference: Cell, host: Host, file: str, show: Callable[[str], None]) -> str | None:
    label = f"{reference.model.name} in {reference.quant.name}, to compare with"
    show(label)
    task = make, (reference, _plain(_sixteen_bits(reference, host)), file)
    try:
        isolate.run_isolated(
            *task,
            reference.measure.limits_s,
            lambda phase, detail: show(f"{label}: {detail or phase}"),
            Path(os.devnull),
        )
    except CellFailure as failure:
        _say(f"no reference, so no divergence: {failure.status}: {failure.reason}")
        return None
    return file


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def make(announce: isolate.Announce, reference: Cell, floor: Quant, file: str) -> None:
    """The task of that process."""
    from bench.meter.reference import make_reference  # imports torch: not in this process

    make_reference(announce, reference, floor, file)
