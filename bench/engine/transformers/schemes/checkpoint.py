"""A folder whose weights somebody else has quantized: how, with which package, in how many bytes.

transformers reads the method from ``quantization_config`` in config.json. It needs no argument of
ours, and one must not be given: ``quantization_config=None`` makes it forget the folder's own, and
fp8 numbers are then taken for weights, without their scales (5.23.0). So a folder that is quantized
goes with ``quant=checkpoint`` alone, and an unquantized one does not go with it.

What is in memory afterwards is another question, which the attestation answers.
"""

import json
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.config.cell import Cell, DtypeName
from bench.engine.transformers.schemes import bitsandbytes
from bench.engine.transformers.schemes.scheme import TORCH_NAMES, Scheme

# By method, what transformers 5.23.0 asks for: distribution and import name
PACKAGES: Mapping[str, Mapping[str, str]] = {
    "aqlm": {"aqlm": "aqlm"},
    "auto-round": {"auto-round": "auto_round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed-tensors": "compressed_tensors"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum-quanto": "optimum.quanto"},
    "torchao": {"torchao": "torchao"},
}

# Their bytes in memory follow from those in the files, which a test checks to the byte.
_KNOWN_FROM_FILES = ("auto-round", "bitsandbytes", "torchao")
# Of bitsandbytes: read once, not kept
_NOT_KEPT = re.compile(r"\.(weight_format|quant_state\.bitsandbytes__\w+)$")
_NOT_PACKED = ("BOOL", "I64", "F64", "F32", "F16", "BF16")  # as safetensors calls them
_BYTES_OF_HEADER_LENGTH = 8

# That a product may unpack its weights into, of each weight; as bitsandbytes' 4 bits on a CPU
_WORKSPACE_BYTES = 8

CHECKPOINT = Scheme(
    layer_classes=(),  # of no name: the attestation looks for packed weights
    replaces=lambda layer: False,  # its files say which
    workspace_bytes=lambda outputs, inputs, quant, device: _WORKSPACE_BYTES * outputs * inputs,
)


def quantization(folder: Path) -> Mapping[str, Any] | None:
    """The folder's own ``quantization_config``; None where it has none, or cannot be read, which
    loading explains."""
    config = _config(folder)
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = [place["quantization_config"] for place in places if "quantization_config" in place]
    return found[0] if found and isinstance(found[0], dict) else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def method(folder: Path) -> str | None:
    """By what the folder is quantized, as transformers calls it; None where it is not."""
    own = quantization(folder)
    if own is None:
        return None
    is_old = own.get("load_in_8bit") or own.get("load_in_4bit")  # these two went without a method
    return "bitsandbytes" if is_old else str(own.get("quant_method", "an unnamed method"))


def saved_dtype(folder: Path) -> DtypeName | None:
    """The dtype of what is not quantized (fp32, fp16, bf16), which ``dtype="auto"`` takes; None
    where config.json names none of these."""
    config = _config(folder)
    named = config.get("dtype") or config.get("torch_dtype")
    names: tuple[DtypeName, ...] = ("fp32", "fp16", "bf16")
    return next((name for name in names if TORCH_NAMES[name] == named), None)


def objection(cell: Cell, folder: Path | None) -> str | None:
    """Why the cell's quantization and this folder do not go together; None: they do.

    Args:
        folder: None where the weights are random.
    """
    by = None if folder is None else method(folder)
    if cell.quant.scheme != "checkpoint":
        return None if by is None else f"{_already(cell, by)}: want quant=checkpoint"
    if folder is None:
        return f"quant={cell.quant.name} measures what is in a folder: want weights=pretrained"
    if by is None:
        return (
            f"quant={cell.quant.name}: model={cell.model.name} is no quantized checkpoint, its"
            " config.json has no quantization_config; want another quant, like bf16"
        )
    return None


def _already(cell: Cell, by: str) -> str:
    return f"model={cell.model.name} is a checkpoint already quantized by {by}"


def packages(folder: Path) -> Mapping[str, str]:
    """What the folder's method needs, as far as it is known: import name by distribution."""
    return PACKAGES.get(str(method(folder)), {})


def missing_package(cell: Cell, folder: Path, versions: Mapping[str, str]) -> str | None:
    """What has to be installed before this folder can be loaded, as a sentence.

    Args:
        versions: of the packages that are installed, by the name of their distribution.
    """
    absent = [name for name in packages(folder) if name not in versions]
    if not absent:
        return None
    by = str(method(folder))
    return f"{_already(cell, by)}, which needs a package: pip install {' '.join(absent)}"


def packed_bytes(folder: Path, device: str) -> dict[str, int] | None:
    """By module, the bytes of its packed weight with its scales, read off the files' headers.

    None where memory will hold something else than the files, or nobody has compared them.
    """
    by = method(folder)
    if by not in _KNOWN_FROM_FILES:
        return None
    stored: dict[str, int] = defaultdict(int)
    packed = set()
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in _header(file).items():
            if name.endswith(".bias") or _NOT_KEPT.search(name):
                continue
            # model.layers.0.mlp.up_proj of its .weight.absmax, its .qweight, its ._weight_qdata
            module = re.sub(r"\.weight(\..+)?$|\.[^.]+$", "", name)
            begin, end = tensor["data_offsets"]
            saved_bytes = end - begin
            stored[module] += (
                bitsandbytes.kept_bytes(name, tensor["dtype"], saved_bytes, device)
                if by == "bitsandbytes"
                else saved_bytes
            )
            if tensor["dtype"] not in _NOT_PACKED and len(tensor["shape"]) > 1:
                packed.add(module)
    return {module: stored[module] for module in packed}


def _header(file: Path) -> dict[str, Any]:
    """Name to dtype, shape and offsets. Source: the safetensors format, a length and then JSON."""
    with open(file, "rb") as content:
        (length,) = struct.unpack("<Q", content.read(_BYTES_OF_HEADER_LENGTH))
        header: dict[str, Any] = json.loads(content.read(length))
    header.pop("__metadata__", None)
    return header
