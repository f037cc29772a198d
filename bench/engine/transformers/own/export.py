"""A cell's weights as a checkpoint of compressed-tensors, which transformers and vLLM load.

Format ``pack-quantized`` (compressed-tensors 0.20): 4-bit groups and 8-bit rows lie densely in
int32, the first number in the lowest bits, shifted by half their range; zero points likewise, along
the outputs. Activations are not in it: whoever loads it multiplies in 16 bits. What we have and it
has no place for is refused, scheme by scheme. What was written is loaded again by transformers and
compared with the cell's own model.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from bench.config.cell import Cell
from bench.engine.protocol import Announce, Files
from bench.engine.transformers import ENGINE
from bench.engine.transformers.load import load
from bench.engine.transformers.own.grids import unpacked_int4
from bench.engine.transformers.own.layers import Int4Linear, Int8Linear
from bench.engine.transformers.packed import is_packed
from bench.errors import CellFailure

# Else it keeps weights packed, and takes zero points for unpacked (transformers 5.23.0 with
# compressed-tensors 0.20.0, pack_quantized/base.py: the meta device's branch does not pack them)
_READ = CompressedTensorsConfig(dequantize=True)
_SAME = 1e-3  # of the logits' norm: sums in another order, in fp32
_PROBE_TOKENS = 64

Group = tuple[int, int | None]  # bits, inputs of a group; None: a scale a row


def export_cell(announce: Announce, cell: Cell, target: str) -> str:
    """Write the checkpoint of a resolved cell into a new folder, and load it again; a sentence of
    how near it is.

    Raises:
        CellFailure: ``failed`` where the format cannot hold it, or what is loaded is another model.
    """
    announce("prepare")
    files = ENGINE.provide(cell, lambda what: announce("prepare", what))
    if files.packed is None or files.folder is None:
        raise CellFailure(
            "failed",
            f"quant={cell.quant.name}: only pretrained weights that this project quantizes are"
            " exported: int8_channel, int4_g32, int4_g64, int4_g128, int4_row, int4_g64_gptq",
        )
    ENGINE.prepare(cell)
    announce("load")
    model = _in_fp32(cell, files)
    announce("quality", "writing the checkpoint")
    folder = Path(target)
    tensors, groups = _as_compressed(model, cell)
    folder.mkdir(parents=True)
    _write(folder, model, tensors, groups, files.folder)
    announce("quality", "loading it again")
    error = _difference(model, folder)
    if not error < _SAME:
        raise CellFailure(
            "failed", f"{folder}: its logits differ by {error:.1e} of their norm, want {_SAME}"
        )
    return f"{folder}: transformers loads it, its logits differ by {error:.1e} of their norm"


def _in_fp32(cell: Cell, files: Files) -> PreTrainedModel:
    """The cell's weights, multiplied as exactly as possible."""
    layers = {
        pattern: replace(each, parameters={**each.parameters, "activations": "none"})
        for pattern, each in cell.quant.layers.items()
    }
    parameters = {**cell.quant.parameters, "activations": "none"}
    exact = replace(cell.quant, dtype="fp32", parameters=parameters, layers=layers)
    precise = replace(cell, quant=exact, device="cpu")
    return load(precise, files.folder, packed=files.packed)


def _as_compressed(
    model: PreTrainedModel, cell: Cell
) -> tuple[dict[str, Tensor], dict[Group, list[str]]]:
    """Tensors by name, and which modules have which numbers."""
    tensors: dict[str, Tensor] = {}
    groups: dict[Group, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear | Int8Linear):
            if module.input_scale is not None:
                raise _refusal(cell, f"the inputs of {name} are scaled (AWQ), each layer's apart")
            own, group = _four_bits(module) if isinstance(module, Int4Linear) else _bytes(module)
            size = group[1]
            if size is not None and module.in_features % size:
                raise _refusal(
                    cell, f"{name} has {module.in_features} inputs, no multiple of {size}"
                )
            groups[group].append(name)
            tensors |= {f"{name}.{key}": value.contiguous() for key, value in own.items()}
            if module.bias is not None:
                tensors[f"{name}.bias"] = module.bias
        elif is_packed(module):
            raise _refusal(cell, f"{name} is quantized by another library")
    if len(groups) > 1:  # 5.23.0, integrations/compressed_tensors.py: get_dense_scheme
        kinds = " and ".join(sorted(f"{bits} bits" for bits, _ in groups))
        raise _refusal(cell, f"transformers reads one kind of numbers from it, these are {kinds}")
    seen = {tensor.data_ptr() for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if name not in tensors and parameter.data_ptr() not in seen:
            seen.add(parameter.data_ptr())
            tensors[name] = parameter.detach()
    return tensors, groups


def _refusal(cell: Cell, why: str) -> CellFailure:
    return CellFailure(
        "failed", f"quant={cell.quant.name} does not fit compressed-tensors' format: {why}"
    )


def _four_bits(layer: Int4Linear) -> tuple[dict[str, Tensor], Group]:
    matrix = layer.matrix()
    q, zeros = unpacked_int4(matrix, layer.in_features)
    tensors = {
        "weight_packed": _in_int32(q, 4),
        "weight_scale": matrix.scale,
        "weight_zero_point": _in_int32(zeros.T, 4).T,
        "weight_shape": torch.tensor(q.shape),
    }
    return tensors, (4, matrix.group_size if matrix.group_size in (32, 64, 128) else None)


def _bytes(layer: Int8Linear) -> tuple[dict[str, Tensor], Group]:
    matrix = layer.matrix()
    q = matrix.weight[:, : layer.in_features]
    tensors = {
        "weight_packed": _in_int32(q.int() + 128, 8),
        "weight_scale": matrix.scale[:, None],
        "weight_shape": torch.tensor(q.shape),
    }
    return tensors, (8, None)


def _in_int32(numbers: Tensor, bits: int) -> Tensor:
    """Unsigned numbers of a row densely in int32. Shapes: (n, m) gives (n, ceil(m * bits / 32))."""
    each = 32 // bits
    wide = torch.nn.functional.pad(numbers.long(), (0, -numbers.shape[1] % each))
    words = (wide.unflatten(1, (-1, each)) << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _write(
    folder: Path,
    model: PreTrainedModel,
    tensors: Mapping[str, Tensor],
    groups: Mapping[Group, list[str]],
    source: Path,
) -> None:
    config = model.config.to_dict()
    quantized = {name for names in groups.values() for name in names}
    plain = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in quantized
    ]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": plain,
        "config_groups": {
            f"group_{index}": {"targets": sorted(names), "weights": _arguments(*group)}
            for index, (group, names) in enumerate(sorted(groups.items(), key=str))
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    kinds = (".json", ".txt", ".model", ".jinja")  # the tokenizer's, and how answers are generated
    for file in source.iterdir():
        is_new = not (folder / file.name).exists() and not file.name.endswith(".index.json")
        if file.suffix in kinds and is_new:
            (folder / file.name).write_bytes(file.read_bytes())


def _arguments(bits: int, size: int | None) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": bits == 8,
        "strategy": "channel" if size is None else "group",
        "group_size": size,
    }


def _difference(model: PreTrainedModel, folder: Path) -> float:
    """Of the logits of what transformers loads, relative to their norm."""
    try:
        again = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=_READ
        ).eval()
    except ImportError as error:
        raise CellFailure("failed", f"{folder} is written but not tried: {error}") from error
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, _PROBE_TOKENS + 1)[None] % vocabulary
    with torch.inference_mode():
        ours, theirs = model(ids).logits, again(ids).logits
    return float((ours - theirs).norm() / ours.norm())
