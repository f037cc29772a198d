"""From a cell to a model in memory, on its device, in its dtype, quantized, ready to be called.

Pretrained weights go through transformers' ``from_pretrained``, which quantizes tensor by tensor.
Random weights are built here: memory and the speed of dense kernels do not depend on the values, so
any architecture can be measured without a download. ``from_config`` would hold the whole model in
its dtype first and refuses quantization; instead the model is laid out on the meta device (no
storage), prepared by transformers' own quantizer (bitsandbytes' replaces layers), and then each
module is materialized, initialized by the model's own rule and quantized before the next one is
touched: the peak is the final size plus one layer.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.base import HfQuantizer

from bench.config.cell import Cell, Model
from bench.engine.transformers.assignment import assigned, swap
from bench.engine.transformers.own.packing import load_packed
from bench.engine.transformers.own.siblings import join
from bench.engine.transformers.packed import is_packed
from bench.engine.transformers.schemes import SCHEMES, checkpoint, packs, torch_dtype
from bench.errors import CellFailure

Made = WeakValueDictionary[int, nn.Parameter]


def load(
    cell: Cell, folder: Path | None, source: Path | None = None, packed: Path | None = None
) -> PreTrainedModel:
    """The cell's model in evaluation mode on the cell's device.

    ``requires_grad`` stays as the library leaves it: without it, and even in inference mode, torch
    2.13 does not fold the batch into one product on a CPU, and prefill of 32 x 32 tokens in fp16
    takes 3.8 s instead of 0.9 s (measured 2026-11-23, 2 threads of a Xeon with AVX512-FP16,
    smollm2-135m).

    Args:
        folder: with the weights; None: random ones.
        source: what random ones are made of, as ``configuration`` reads it.
        packed: with the weights as the cell's quantization has them, where it is one of ours.
    Raises:
        CellFailure: ``failed`` for a folder that is incomplete or not a model.
    """
    if folder is None:
        model = _random(cell, source)
    else:
        with reading(cell, folder):
            if packed is not None:
                model = load_packed(packed, cell.quant, cell.attn.implementation, cell.device)
            elif cell.quant.layers:
                model = _layer_by_layer(cell, folder)
            else:
                model = _pretrained(cell, folder)
    model.eval()  # from_config gives a model in training mode: GPT-2's dropout would be active
    if packs(cell.quant):
        join(model)
    return model


def _pretrained(cell: Cell, folder: Path) -> PreTrainedModel:
    refused = checkpoint.objection(cell, folder)
    if refused is not None:  # of a model that was not on this machine when the sweep was planned
        raise CellFailure("skipped", refused)
    configuration = SCHEMES[cell.quant.scheme].configuration(cell.quant, cell.device)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto" if cell.quant.dtype == "saved" else torch_dtype(cell.quant.dtype),
        attn_implementation=cell.attn.implementation,
        device_map={"": cell.device},
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **({} if configuration is None else {"quantization_config": configuration.made()}),
    )
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:  # transformers fills them with random numbers and goes on
        raise CellFailure(
            "failed",
            f"{cell.model.name}: {len(absent)} tensors are missing in {folder} (first {absent[0]}):"
            f" {_why_absent(cell, folder)}",
        )
    return model


def _layer_by_layer(cell: Cell, folder: Path) -> PreTrainedModel:
    """Where layers differ: unquantized in the host's memory, then each layer for itself."""
    plain = replace(cell.quant, name="none", scheme="none", parameters={}, layers={})
    model = _pretrained(replace(cell, quant=plain, device="cpu"), folder)
    swap(model, assigned(model, cell.quant), torch.device(cell.device))
    return model.to(cell.device)


def _why_absent(cell: Cell, folder: Path) -> str:
    if cell.quant.scheme == "checkpoint":
        by = checkpoint.method(folder)
        return f"transformers does not read what {by} wrote, or the download is incomplete"
    return "the download is incomplete or of another architecture; download it again"


@contextlib.contextmanager
def reading(cell: Cell, folder: Path) -> Iterator[None]:
    """What the libraries raise over files, as sentences."""
    is_checkpoint = cell.quant.scheme == "checkpoint"
    try:
        yield
    except ImportError as error:
        if is_checkpoint:  # transformers names the package that the method needs
            raise CellFailure("skipped", f"{cell.model.name}: {_first_line(error)}") from error
        raise
    except RuntimeError as error:
        # transformers wraps what quantization raises and hides its text: the allocator knows
        # whether it was memory.
        if cell.device == "cuda" and torch.cuda.memory_stats().get("num_ooms"):
            raise CellFailure(
                "oom", "the device's memory was full while the weights were loaded"
            ) from error
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        advice = "; download the folder again, or measure speed alone with model.weights=random"
        raise CellFailure(
            "failed",
            f"{cell.model.name}: cannot load {folder}: {_first_line(error)}"
            f"{'' if is_checkpoint else advice}",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def configuration(model: Model, source: Path | None) -> PreTrainedConfig:
    """What transformers builds: read from a folder or file like ``config.json``; None: the model's
    YAML says it."""
    if source is None:
        assert model.architecture is not None, "what has no source has an architecture"
        architecture = dict(model.architecture)
        return AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        source, trust_remote_code=False, local_files_only=True
    )
    return config


def _random(cell: Cell, source: Path | None) -> PreTrainedModel:
    config = configuration(cell.model, source)
    dtype = torch_dtype(cell.quant.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=cell.attn.implementation
        )
    quantizer, layers = None, {}
    quantization = SCHEMES[cell.quant.scheme].configuration(cell.quant, cell.device)
    if cell.quant.layers or packs(cell.quant):
        layers = assigned(model, cell.quant)
    elif quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization.made(), pre_quantized=False)
        quantizer.validate_environment(device_map={"": cell.device})
        quantizer.preprocess_model(model, device_map={"": cell.device})
    model.tie_weights()
    torch.manual_seed(cell.seed)
    # By identity on the meta device, so that tied weights stay one; gone with the last layer
    made: Made = WeakValueDictionary()
    # By name: the generator remembers each module, and with it what was swapped
    for name in [name for name, _ in model.named_modules()]:
        module = model.get_submodule(name)
        laid_out = getattr(module, "weight", None)
        _materialize(model, module, made, dtype, torch.device(cell.device))
        if quantizer is not None and _quantize(quantizer, model, name, module):
            made[id(laid_out)] = module.weight  # nothing keeps what it was made of
        if name in layers:
            swap(model, {name: layers[name]}, torch.device(cell.device))
            del module  # the plain layer, of which the heap keeps a hole
            release_heap()
    return model


def _quantize(quantizer: HfQuantizer, model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    """Whether the layer was quantized in its place; bitsandbytes' have been by being moved."""
    weight = f"{name}.weight"
    if is_packed(module) or not quantizer.param_needs_quantization(model, weight):
        return False
    quantizer.get_quantize_ops().convert(
        {weight: [module.weight]}, model=model, full_layer_name=weight, missing_keys=set()
    )
    return True


def _materialize(
    model: PreTrainedModel,
    module: nn.Module,
    made: Made,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give the module's own parameters and buffers storage and values on the device, quantized.

    The device draws the values: a CPU takes minutes for 7 billion.
    """
    fresh: dict[str, nn.Parameter] = {}
    for name, meta in list(module.named_parameters(recurse=False)):
        parameter = made.get(id(meta))
        if parameter is None:
            # bitsandbytes lays its layers out in fp32 whatever the model's dtype is.
            parameter = _same_kind(meta, torch.empty(meta.shape, dtype=dtype, device=device))
            fresh[name] = made[id(meta)] = parameter
        setattr(module, name, parameter)
    buffers = dict(module.named_buffers(recurse=False))
    for name, buffer in buffers.items():
        setattr(module, name, torch.empty_like(buffer, device=device))
    if fresh or buffers:
        with torch.no_grad():
            model._init_weights(module)
    for name, parameter in fresh.items():
        if type(parameter) is not nn.Parameter:  # bitsandbytes', which moving quantizes
            from bitsandbytes.nn import Int8Params  # touches CUDA, so only where it is in use

            if isinstance(parameter, Int8Params):  # from a CPU only
                parameter.data = parameter.data.to("cpu")
            setattr(module, name, parameter.to(device))
    if fresh:
        release_heap()  # quantizing leaves holes: 0.06 GB for each layer of mistral-7b in nf4


def release_heap() -> None:
    """Give back what loading has freed and the C library keeps: else the peak of running depends on
    how loading went."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


def _same_kind(meta: nn.Parameter, storage: torch.Tensor) -> nn.Parameter:
    """A parameter of the class of ``meta`` (bitsandbytes has its own) with the same settings over
    ``storage``."""
    if type(meta) is nn.Parameter:
        return nn.Parameter(storage)
    return type(meta)(storage, requires_grad=False, **meta.__dict__)
