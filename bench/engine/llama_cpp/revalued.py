"""A GGUF with other values: the published file's metadata and tensors, the weights of a folder.

So weights that were made of a published GGUF (``model.weights=dithered``) get into llama.cpp with
all else as published; of a folder llama.cpp's own converter makes the file. Names are mapped by
llama.cpp's ``gguf`` package; besides them only the order of rows differs: llama.cpp rotates
neighbouring numbers of a head where transformers rotates its two halves (``LlamaModel.permute`` in
llama.cpp's converter).
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from bench.engine.protocol import Floats
from bench.errors import CellFailure

_ARCHITECTURE = gguf.MODEL_ARCH.LLAMA  # the one whose order of rows is known here
_COPIED_BY_WRITER = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE)


def write_revalued(published: Path, folder: Path, out: Path) -> None:
    """Write ``out``, an F32 file like ``published`` with the weights of the folder's safetensors.

    Raises:
        CellFailure: ``skipped`` for another architecture than Llama's.
    """
    reader = gguf.GGUFReader(published)
    architecture = _value(reader, gguf.Keys.General.ARCHITECTURE)
    if architecture != gguf.MODEL_ARCH_NAMES[_ARCHITECTURE]:
        raise CellFailure(
            "skipped",
            f"model.weights=dithered: engine=llama_cpp gets them into a GGUF of a llama, not of a"
            f" {architecture}; want model.weights=pretrained",
        )
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for field in reader.fields.values():
        if field.name not in _COPIED_BY_WRITER and not field.name.startswith("GGUF."):
            kind, *inner = field.types
            writer.add_key_value(
                field.name, field.contents(), kind, sub_type=inner[-1] if inner else None
            )
    values = _values(reader, folder)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, values.pop(tensor.name))
    assert not values, f"weights without a tensor: {sorted(values)}"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _values(reader: gguf.GGUFReader, folder: Path) -> dict[str, Floats]:
    """The folder's weights as the GGUF has them, by its names of them."""
    layers, heads, kv_heads = (
        _value(reader, key.format(arch=gguf.MODEL_ARCH_NAMES[_ARCHITECTURE]))
        for key in (
            gguf.Keys.LLM.BLOCK_COUNT,
            gguf.Keys.Attention.HEAD_COUNT,
            gguf.Keys.Attention.HEAD_COUNT_KV,
        )
    )
    names = gguf.get_tensor_name_map(_ARCHITECTURE, layers)
    values: dict[str, Floats] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as stored:
            for name in stored.keys():  # noqa: SIM118
                value = stored.get_tensor(name).astype(np.float32)
                if name.endswith("q_proj.weight"):
                    value = _neighbouring(value, heads)
                elif name.endswith("k_proj.weight"):
                    value = _neighbouring(value, kv_heads)
                values[names.get_name(name, try_suffixes=(".weight",))] = value
    return values


def _neighbouring(weight: Floats, heads: int) -> Floats:
    """Rows of each head's two halves in turns. Shapes: (heads * width, inputs), both."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()
