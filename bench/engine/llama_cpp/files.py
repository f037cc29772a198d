"""The f16 file that llama.cpp reads, made from the GGUF in a model's package.

The publisher's GGUF may hold weights in any of llama.cpp's packed types. Here each tensor is
unpacked to fp32, which holds those values exactly, and written as llama.cpp's own converter would:
matrices in F16, vectors (norms, biases) in F32. So it has the values of transformers' fp16 model,
and no code of ours in between. The metadata (architecture, vocabulary) are copied. A list of the
tensors is kept beside it, since a GGUF's header takes seconds to read in Python.

The tokenizer beside it is the shared one, from the folder that ``bench fetch`` converts: token ids
are the same for every engine. That conversion needs torch, which this environment does not have.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bench.config.cell import Model
from bench.engine import sources
from bench.engine.protocol import Files
from bench.errors import CellFailure

WEIGHTS, TENSORS = "model.gguf", "tensors.json"
_REWRITTEN = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE)


def provide(model: Model) -> Files:
    """A folder with the model's f16 file and its tokenizer.

    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    if sources.is_hub(model) or (model.path is not None and not sources.is_gguf(model)):
        raise CellFailure(
            "failed",
            f"model={model.name}: engine=llama_cpp reads a GGUF, the user's or that of a Python"
            " package; give model=FILE.gguf, or take engine=transformers",
        )
    shared = sources.cached(model)
    if shared is None:
        raise CellFailure(
            "failed",
            f"model={model.name}: its tokenizer has not been converted yet, which engine=llama_cpp"
            f" cannot do; run `python -m bench fetch {model.path or model.name}` once",
        )
    original = sources.original(model)

    def write(folder: Path) -> None:
        folder.mkdir()
        for file in shared.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, folder)
        tensors = unpack(original, folder / WEIGHTS)
        (folder / TENSORS).write_text(json.dumps(tensors, indent=1), encoding="utf-8")

    folder = sources.made(shared.with_name(f"{shared.name}-f16-gguf"), write)
    return Files(folder, sources.revision(model, folder))


def unpack(packed: Path, out: Path) -> list[dict[str, Any]]:
    """Write a GGUF's model with matrices in F16 and vectors in F32; returns what it wrote."""
    reader = gguf.GGUFReader(packed)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for field in reader.fields.values():
        if field.name in _REWRITTEN or field.name.startswith("GGUF."):  # those of the header
            continue
        kind, *inner = field.types
        writer.add_key_value(
            field.name, field.contents(), kind, sub_type=inner[-1] if inner else None
        )
    tensors = []
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = values.astype(np.float16 if values.ndim > 1 else np.float32)
        writer.add_tensor(tensor.name, values)
        about = {"name": tensor.name, "shape": values.shape, "dtype": str(values.dtype)}
        tensors.append({**about, "bytes": values.nbytes})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
