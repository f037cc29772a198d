"""The file that llama.cpp reads, of the cell's type, made of the model's GGUF. Where the model is a
folder or on the hub, llama.cpp's own converter makes that one first.

``llama_model_quantize`` writes it once. The GGUF may itself hold packed weights: llama.cpp unpacks
them to fp32, which holds those values exactly, so a file made of it is byte for byte the one that
is made of an F32 file of the same weights (a test compares them), and ``f16`` has the values of
transformers' fp16 model. Dithered weights first get into an F32 file. What is in the file stands in
a list beside it, read from its table of tensors; reading that takes seconds in Python.

The tokenizer is the shared one, from the model's folder or the one that ``bench fetch`` makes of a
GGUF: token ids are the same for every engine. Making that folder, and the converter, need torch,
which this environment does not have: the driver's has it.
"""

import ctypes
import json
import os
import subprocess
import sys
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
    is_folder = sources.is_folder(model)
    plain = model.weights == "pretrained"
    shared = sources.fetch(model, show) if is_folder and plain else sources.cached(model)
    if shared is None:
        raise CellFailure("failed", f"model={model.name}: {_not_converted(model)}")
    source = _converted(model, show) if is_folder else sources.original(model)
    if model.weights == "dithered":
        source = sources.made(_file(model, "f32"), partial(write_revalued, source, shared))
    weights = source
    if kind != NATIVE:

        def write(out: Path) -> None:
            show(f"writing a GGUF of type {kind}, once")
            quantize(source, out, kind, int(cell.threads))

        weights = sources.made(_file(model, kind), write)
    sources.made(_table(model, kind), lambda out: _list_tensors(weights, out))
    return Files(shared, sources.revision(model, shared), packed=weights)


def _converted(model: Model, show: Callable[[str], None]) -> Path:
    """The GGUF of a folder's weights, in the dtype that they are saved in."""
    published = sources.as_published(model)
    folder = sources.fetch(published, show)
    assert folder is not None, "random weights are skipped"

    def write(out: Path) -> None:
        show("converting to GGUF, once")
        convert(folder, out)

    return sources.made(sources.kept(published, ".gguf"), write)


def convert(folder: Path, out: Path) -> None:
    """Write a folder's model as a GGUF, by the script in llama-cpp-python's source distribution.

    Raises:
        CellFailure: ``skipped`` for a model that the script does not know; ``failed`` without it.
    """
    script = Path(sys.prefix) / "source" / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise CellFailure(
            "failed",
            "the script that converts folders is not in this environment; delete"
            " .engines/llama_cpp and run: make engine-llama_cpp",
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    saved = str(config.get("dtype") or config.get("torch_dtype"))
    kind = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(saved, "auto")
    command = [os.environ["BENCH_PYTHON"], str(script), str(folder)]
    done = subprocess.run(
        [*command, "--outfile", str(out), "--outtype", kind],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr, file=sys.stderr)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CellFailure("skipped", f"llama.cpp's converter does not take {folder}: {said[-1]}")


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


def tensors_of(cell: Cell) -> list[dict[str, Any]]:
    """Name, shape, type and bytes of each tensor in the cell's file."""
    text = _table(cell.model, file_type(cell.quant)).read_text(encoding="utf-8")
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


def _file(model: Model, kind: str) -> Path:
    return sources.kept(model, f"-{kind}.gguf")


def _table(model: Model, kind: str) -> Path:
    return sources.kept(model, f"-{kind}.json")


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
