"""Weights of our own, packed once and kept in the cache, and the models that are made of them.

A packed folder has the model's configuration and one safetensors file with every tensor as it lies
in memory afterwards, what is not ours in the dtype of the files. Loading lays the model out without
storage, puts empty layers of ours in their places, and takes the tensors as they are.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from bench.config.cell import Cell, Quant
from bench.engine.prompts import load_tokenizer
from bench.engine.sources import made
from bench.engine.transformers.assignment import assigned, swap
from bench.engine.transformers.own.build import kernels
from bench.engine.transformers.own.cache import packed_place
from bench.engine.transformers.own.calibration import calibrate, is_calibrated
from bench.engine.transformers.schemes import SCHEMES, checkpoint, torch_dtype
from bench.errors import CellFailure
from bench.paths import CALIBRATION_TEXT

_WEIGHTS = "packed.safetensors"


def packed_folder(cell: Cell, folder: Path, show: Callable[[str], None]) -> Path:
    """The cell's weights as its quantization has them, made unless the cache has them.

    Args:
        folder: with the unquantized weights.
        show: is told what takes a while.
    Raises:
        CellFailure: ``skipped`` where somebody else has quantized them already.
    """
    refused = checkpoint.objection(cell, folder)
    if refused is not None:  # of a model that was not on this machine when the sweep was planned
        raise CellFailure("skipped", refused)
    place = packed_place(cell.quant, folder)
    if not place.exists():
        show("quantizing, once")
    return made(place, lambda aside: _pack(cell, folder, aside, show))


def _pack(cell: Cell, folder: Path, aside: Path, show: Callable[[str], None]) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager", trust_remote_code=False
    ).eval()
    own = _own(assigned(model, cell.quant))
    if calibrated := {name: quant for name, quant in own.items() if is_calibrated(quant)}:
        calibrate(model, _calibration_ids(cell, folder), calibrated, show)
    head = model.get_output_embeddings()
    if any(model.get_submodule(name) is head for name in own):
        model.config.tie_word_embeddings = False  # a head of ours is no embedding any more
    swap(model, own)
    aside.mkdir()
    model.config.save_pretrained(aside)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(aside)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(_each_once(tensors), aside / _WEIGHTS)


def _calibration_ids(cell: Cell, folder: Path) -> list[int]:
    tokenizer = load_tokenizer(cell.model, folder)
    if tokenizer is None:
        raise CellFailure("failed", f"{cell.model.name} has no tokenizer, so it reads no texts")
    return tokenizer.encode(CALIBRATION_TEXT.read_text(encoding="utf-8"), special=False)


def _own(layers: Mapping[str, Quant]) -> dict[str, Quant]:
    return {name: quant for name, quant in layers.items() if SCHEMES[quant.scheme].is_own}


def _each_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the second names of tied weights, which safetensors refuses."""
    seen: dict[int, str] = {}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if seen.setdefault(tensor.data_ptr(), name) == name
    }


def load_packed(
    packed: Path, quant: Quant, attn_implementation: str, device: str
) -> PreTrainedModel:
    """The model of a packed folder.

    Args:
        quant: the one that it was packed with, or with other activations.
    Raises:
        CellFailure: ``failed`` where a tensor is missing.
    """
    config = AutoConfig.from_pretrained(packed, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=torch_dtype(quant.dtype),
            attn_implementation=attn_implementation,
        )
    layers = assigned(model, quant)
    if device == "cpu":
        kernels()  # what is missing for them is said at once
    swap(model, _own(layers))  # on the meta device: layouts
    tensors = load_file(packed / _WEIGHTS, device=device)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    # Copies on a CPU: what is still a part of the mapped file keeps all of it in memory
    state = {
        name: tensor.to(dtypes.get(name, tensor.dtype), copy=device == "cpu")
        for name, tensor in tensors.items()
    }
    del tensors
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    _fill_buffers(model, torch.device(device))
    absent = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if absent:
        raise CellFailure("failed", f"{packed} has no {absent[0]}; delete that folder")
    if (packed / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(packed)
    swap(model, layers)  # those that libraries quantize
    return model


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """What no file has, like the frequencies of rotary embeddings, by the model's own rule."""
    for module in model.modules():
        empty = [name for name, each in module.named_buffers(recurse=False) if each.is_meta]
        for name in empty:
            buffer = getattr(module, name)
            setattr(module, name, torch.empty_like(buffer, device=device))
        if empty:
            with torch.no_grad():
                model._init_weights(module)
