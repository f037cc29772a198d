"""The file that llama.cpp reads, of the cell's type, made of the model's GGUF.

``llama_model_quantize`` writes it once. The GGUF may itself hold packed weights: llama.cpp unpacks
them to fp32, which holds those values exactly, so a file made of it is byte for byte the one that
is made of an F32 file of the same weights (a test compares them), and ``f16`` has the values of
transformers' fp16 model. Dithered weights first get into an F32 file. What is in the file stands in
a list beside it, read from its table of tensors; reading that takes seconds in Python.

The tokenizer is the shared one, from the folder that ``bench fetch`` converts: token ids are the
same for every engine. That conversion needs torch, which this environment does not have.
"""

import ctypes
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as c

from bench.config.cell import Cell, Model
from bench.engine import sources
from bench.engine.llama_cpp.native import start
from bench.engine.llama_cpp.revalued import write_revalued
from bench.engine.llama_cpp.types import FILE_TYPES, NATIVE, file_type
from bench.engine.protocol import Files
from bench.errors import CellFailure


def provide(cell: Cell, show: Callable[[str], None]) -> Files:
    """The folder with the model's tokenizer, and the file with its weights.

    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    model, kind = cell.model, file_type(cell.quant)
    if sources.is_hub(model) or (model.path is not None and not sources.is_gguf(model)):
        raise CellFailure(
            "failed",
            f"model={model.name}: engine=llama_cpp reads a GGUF, the user's or that of a Python"
            " package: the script that converts folders is not in what llama-cpp-python installs;"
            " run llama.cpp's convert_hf_to_gguf.py and give model=FILE.gguf, or take"
            " engine=transformers",
        )
    shared = sources.cached(model)
    if shared is None:
        raise CellFailure("failed", f"model={model.name}: {_not_converted(model)}")
    source = sources.original(model)
    if model.weights == "dithered":
        source = sources.made(
            shared.with_name(f"{shared.name}-f32.gguf"), partial(write_revalued, source, shared)
        )
    weights = source
    if kind != NATIVE:

        def write(out: Path) -> None:
            show(f"writing a GGUF of type {kind}, once")
            quantize(source, out, kind, int(cell.threads))

        weights = sources.made(shared.with_name(f"{shared.name}-{kind}.gguf"), write)
    sources.made(_table(shared, kind), lambda out: _list_tensors(weights, out))
    return Files(shared, sources.revision(model, shared), packed=weights)


def _not_converted(model: Model) -> str:
    """What to do where transformers has not made its folder."""
    if model.weights == "dithered":
        return (
            "its noise has not been made yet, which engine=llama_cpp cannot do; run it once with"
            " engine=transformers"
        )
    return (
        "its tokenizer has not been converted yet, which engine=llama_cpp cannot do; run `python"
        f" -m bench fetch {model.path or model.name}` once"
    )


def tensors_of(cell: Cell, shared: Path) -> list[dict[str, Any]]:
    """Name, shape, type and bytes of each tensor in the cell's file."""
    text = _table(shared, file_type(cell.quant)).read_text(encoding="utf-8")
    tensors: list[dict[str, Any]] = json.loads(text)
    return tensors


def quantize(source: Path, out: Path, kind: str, threads: int) -> None:
    """Write a GGUF's model with weights of another type.

    Raises:
        CellFailure: ``failed`` when llama.cpp cannot.
    """
    start()
    how = c.llama_model_quantize_default_params()
    how.ftype, how.nthread = FILE_TYPES[kind].number, threads
    how.allow_requantize = True
    if c.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(how)) != 0:
        raise CellFailure(
            "failed", f"llama.cpp cannot write {source} as {kind}; the cell's log says why"
        )


def _table(shared: Path, kind: str) -> Path:
    return shared.with_name(f"{shared.name}-{kind}.json")


def _list_tensors(weights: Path, out: Path) -> None:
    tensors = [
        {
            "name": tensor.name,
            "shape": [int(width) for width in tensor.shape],
            "type": tensor.tensor_type.name,
            "bytes": int(tensor.n_bytes),
        }
        for tensor in gguf.GGUFReader(weights).tensors
    ]
    out.write_text(json.dumps(tensors, indent=1), encoding="utf-8")
