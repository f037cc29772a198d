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
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as c
from safetensors import safe_open

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
    if is_folder:
        source = sources.made(_kept(model, ".gguf"), partial(_convert, shared, show))
    else:
        source = sources.original(model)
        if model.weights == "dithered":
            file = _kept(model, "-f32.gguf")
            source = sources.made(file, partial(write_revalued, source, shared))
    weights = source
    if kind != NATIVE:

        def write(out: Path) -> None:
            show(f"writing a GGUF of type {kind}, once")
            quantize(source, out, kind, int(cell.threads))

        weights = sources.made(_kept(model, f"-{kind}.gguf"), write)
    sources.made(_table(model, kind), lambda out: _list_tensors(weights, out))
    return Files(shared, sources.revision(model, shared), packed=weights)


def _convert(folder: Path, show: Callable[[str], None], out: Path) -> None:
    show("converting to GGUF, once")
    convert(folder, out)


def convert(folder: Path, out: Path) -> None:
    """Write a folder's model as a GGUF, by the script in llama-cpp-python's source distribution.

    Raises:
        CellFailure: ``skipped`` for a model that the script does not know; ``oom`` where memory did
            not suffice; else ``failed``.
    """
    script = Path(sys.prefix) / "source" / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise CellFailure(
            "failed",
            "the script that converts folders is not in this environment: make engine-llama_cpp",
        )
    without_code = [os.environ["BENCH_PYTHON"], "-m", "bench.engine.llama_cpp.converter"]
    command = [*without_code, str(script), str(folder)]
    done = subprocess.run(
        [*command, "--outfile", str(out), "--outtype", saved_type(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    print(done.stderr, file=sys.stderr)
    if done.returncode == 0:
        return
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    what = f"llama.cpp's converter, of {folder}"
    if "is not supported" in done.stderr or said.startswith("NotImplementedError"):
        raise CellFailure("skipped", f"{what}: {said}")
    if done.returncode == -signal.SIGKILL or said.startswith("MemoryError"):
        raise CellFailure("oom", f"{what}: memory did not suffice")
    raise CellFailure("failed", f"{what}: {said}")


def saved_type(folder: Path) -> str:
    """The converter's word for the dtype of a folder's matrices, by the files: what config.json
    says need not be so. fp32 where any has it, or where they differ; ``auto`` for packed ones."""
    kinds = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as stored:
            slices = [stored.get_slice(name) for name in stored.keys()]  # noqa: SIM118
        kinds |= {each.get_dtype() for each in slices if len(each.get_shape()) > 1}
    plain = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
    if not kinds <= plain.keys():
        return "auto"
    return plain[kinds.pop()] if len(kinds) == 1 else "f32"


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


def _table(model: Model, kind: str) -> Path:
    return _kept(model, f"-{kind}.json")


def _kept(model: Model, ending: str) -> Path:
    file = sources.kept(model, ending)
    assert file is not None, "the hub's commit is in the name of the folder that was fetched"
    return file


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
