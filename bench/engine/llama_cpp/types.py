"""Which types of weights, and of keys and values, llama.cpp has here, and what a cell's names mean.

The driver asks it about names, so nothing here needs llama.cpp. ``quant=fp32``, ``fp16`` and
``bf16`` are its F32, F16 and BF16; the scheme ``gguf`` names a packed type, or ``native``: the file
as its publisher made it.
"""

from dataclasses import dataclass
from typing import Literal

from bench.config.cell import Cell, Quant
from bench.config.parse import parse
from bench.config.parse import problems as parsing_problems

NATIVE = "native"


@dataclass(frozen=True, slots=True)
class FileType:
    """A type that ``llama_model_quantize`` makes files of."""

    number: int  # of llama_ftype in llama.h
    tensor: str  # ggml's name of the type that most weights of the layers have then


@dataclass(frozen=True, slots=True)
class KvType:
    """A type of keys and values."""

    number: int  # of ggml_type in ggml.h
    block_bytes: int
    block: int  # numbers


FILE_TYPES = {
    "f32": FileType(0, "F32"),
    "f16": FileType(1, "F16"),
    "bf16": FileType(32, "BF16"),
    "q8_0": FileType(7, "Q8_0"),
    "q6_k": FileType(18, "Q6_K"),
    "q5_k_m": FileType(17, "Q5_K"),
    "q5_1": FileType(9, "Q5_1"),
    "q5_0": FileType(8, "Q5_0"),
    "q4_k_m": FileType(15, "Q4_K"),
    "q4_1": FileType(3, "Q4_1"),
    "q4_0": FileType(2, "Q4_0"),
}
KV_TYPES = {"f16": KvType(1, 2, 1), "q8_0": KvType(8, 34, 32), "q4_0": KvType(2, 18, 32)}
_PLAIN = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
# What a product multiplies: ggml rounds activations to the weights' own type, and those beside
# packed weights to blocks of 8-bit numbers
_PRODUCTS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True, slots=True)
class Gguf:
    """Parameters of the scheme ``gguf``."""

    type: Literal["native", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0"]


@dataclass(frozen=True, slots=True)
class Options:
    """The engine's own."""

    kv: Literal["f16", "q8_0", "q4_0"] = "f16"  # of keys and values in the cache


def file_type(quant: Quant) -> str:
    """The key of ``FILE_TYPES`` that a quantization means, or ``native``."""
    if quant.scheme == "none":
        return _PLAIN[quant.dtype]
    return parse(Gguf, quant.parameters, "quant.parameters").type


def kv_type(cell: Cell) -> str:
    """The key of ``KV_TYPES`` that a cell asks for."""
    return parse(Options, cell.engine.options, "engine.options").kv


def product_dtype(tensor: str) -> str:
    """In which dtype weights of this type of ggml's are multiplied."""
    return _PRODUCTS.get(tensor, "int8")


def unknown_types(cell: Cell) -> list[str]:
    """A sentence for each type in the cell that does not exist."""
    quant = cell.quant
    problems: list[str] = []
    if quant.scheme not in ("none", "gguf"):
        problems.append(
            f"quant.scheme={quant.scheme}: no such one; engine=llama_cpp has none, gguf"
        )
    elif quant.layers:
        problems.append("quant.layers: llama.cpp quantizes a file as a whole; want none")
    elif quant.dtype not in ((*_PLAIN, "auto") if quant.scheme == "none" else ("fp32",)):
        problems.append(
            f"quant.dtype={quant.dtype}: want fp32, which everything between the products of packed"
            " weights is in llama.cpp, or quant=fp16, bf16"
        )
    if quant.scheme == "gguf":
        problems += parsing_problems(Gguf, quant.parameters, "quant.parameters")
    return [*problems, *parsing_problems(Options, cell.engine.options, "engine.options")]
