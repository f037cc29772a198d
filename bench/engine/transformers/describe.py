"""A model as plain data, read off transformers' own modules instead of a formula per architecture.

``from_config`` on torch's meta device lays a model out without any storage, so its matrices, norms
and buffers can be listed by name and shape, whatever the architecture; one forward of two tokens
through a ``DynamicCache`` on that device then shows how many keys and values a layer keeps, and how
far back. Nothing is downloaded, no weight is needed.

Matrices are the parameters with two or three dimensions (in a mixture of experts the third counts
the experts) that are no convolution, no bias and no table of positions. Which of them a scheme
replaces is asked of transformers: linear layers, but for the head, tied weights, and what the
architecture wants in fp32. Experts in three dimensions are no linear layers and stay as they are.

What prefill holds in an MLP cannot be read off a layout; it is taken from what its matrices are.
Matrices beside each other, outside of attention, are one MLP, as wide as the widest product:

* two matrices of that width are gate and up: 3 tensors with their product (Llama), 4 in layers of
  our own, whose outputs are parts of one (``own.siblings``);
* one whose half is what the next takes is both in one: it, and two of half the width, so 2 (Phi-3);
* else 4, since an activation may be written out in Python, with a tensor for each term (GPT-2);
* experts do so for each token as often as it is routed, between gathered copies of the residual
  stream: of the tokens, of the results, of these weighted, and of these in order.

The MLP that takes most counts. Left out are the states of recurrent layers, and that checkpoints
keep a few norms and routers in fp32.

Source: the prediction made of it, against peaks of torch's CPU allocator (unquantized, 2 x 512
tokens, three layers, transformers 5.23.0, 2026-11-25). It is 1.0 to 1.9 times the peak for llama,
gpt2, phi3, gemma2, mixtral, qwen2_moe, qwen3_moe, opt and gpt_neox. It is too low for bloom (down
to 0.8 times), gpt_oss (0.6), falcon and deepseek_v3 with sdpa (0.5); why was not looked into.
"""

import contextlib
import math
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, Conv1D, DynamicCache, PreTrainedModel

from bench.config.cell import Cell, Quant
from bench.engine.transformers.assignment import assigned, unknown_layers
from bench.engine.transformers.attention import sdpa_kernels
from bench.engine.transformers.device import accelerator
from bench.engine.transformers.load import configuration
from bench.engine.transformers.schemes import (
    DTYPE_BYTES,
    SCHEMES,
    checkpoint,
    packs,
    parameters_of,
    torch_dtype,
)
from bench.engine.transformers.strategies import new_cache
from bench.errors import CellFailure, ConfigError
from bench.record.description import Description, Matrix, MatrixKind

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_GATHERED = 4  # copies of the residual stream around experts
_LONGEST_REASON = 200  # characters: transformers lists all architectures that it knows


def describe(cell: Cell, source: Path | None = None) -> Description:
    """The model of a resolved cell under its quantization. ``source``: where its configuration is
    read; None: it is what the cell's architecture says.

    Raises:
        ConfigError: for an architecture that transformers cannot lay out, and for an unknown scheme
            or parameter.
        CellFailure: ``failed`` for a folder whose model it cannot lay out.
    """
    parameters_of(cell.quant)
    packed: dict[str, int] = {}
    if cell.quant.scheme == "checkpoint" and source is not None:
        cell, packed = _as_saved(cell, source)
    model = _laid_out(cell, source)
    unknown = unknown_layers(model, cell.quant)
    if unknown:
        cell = replace(cell, quant=replace(cell.quant, layers={}))
    config = model.config.get_text_config(decoder=True)
    matrices, plain_bytes = _stored(model, cell, packed)
    intermediate, mlp_copies = _widest_mlp(matrices, config, packs(cell.quant))
    dtype_bytes = DTYPE_BYTES[cell.quant.dtype]
    heads = getattr(config, "num_attention_heads", None) or 0  # none in a recurrent model
    # Compressed keys and values have a width of their own once they are expanded
    head_dim = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    cache = _filled_cache(model)
    kept = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    kv_heads = kept[0].keys.shape[1] if kept else 0
    head_dim = head_dim or (config.hidden_size // heads if heads else 0)
    kv_bytes = [(layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[2] for layer in kept]
    return Description(
        matrices=matrices,
        plain_bytes=plain_bytes,
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=config.hidden_size,
        intermediate=intermediate,
        mlp_copies=mlp_copies,
        vocabulary=config.vocab_size,
        windows=cache_windows(cache, config.num_hidden_layers),
        context_tokens=getattr(config, "max_position_embeddings", None),
        is_tied=_is_tied(model) and SCHEMES[cell.quant.scheme].head(cell.quant) is None,
        dtype_bytes=dtype_bytes,
        kv_bytes_per_token_layer=sum(kv_bytes) // len(kv_bytes) if kv_bytes else 0,
        product_bytes=SCHEMES[cell.quant.scheme].product_bytes,
        attention=_attention(model),
        # What transformers' own sdpa goes by
        shares_keys=any(getattr(m, "num_key_value_groups", 1) > 1 for m in model.modules()),
        sdpa_kernels=_sdpa_kernels(cell, heads, kv_heads, head_dim, masked=False),
        masked_sdpa_kernels=_sdpa_kernels(cell, heads, kv_heads, head_dim, masked=True),
        obstacle="; ".join(unknown) or _obstacle(matrices, model, cell),
    )


def _sdpa_kernels(
    cell: Cell, heads: int, kv_heads: int, head_dim: int, masked: bool
) -> tuple[str, ...]:
    """Empty where the model has no attention, or this machine not the cell's device."""
    has_device = cell.device == "cpu" or accelerator() is not None
    if not kv_heads or not has_device:
        return ()
    dtype = torch_dtype(cell.quant.dtype)
    return sdpa_kernels(heads, kv_heads, head_dim, dtype, cell.device, masked)


def _laid_out(cell: Cell, source: Path | None) -> PreTrainedModel:
    try:
        config = configuration(cell.model, source)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config,
                dtype=torch_dtype(cell.quant.dtype),
                attn_implementation="eager",  # the one that every architecture has
            )
    except (
        OSError,
        ArithmeticError,
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        StrictDataclassError,
    ) as error:
        # What transformers raises over a configuration depends on the architecture
        reason = textwrap.shorten(str(error) or type(error).__name__, _LONGEST_REASON)
        architecture = cell.model.architecture
        if source is not None or architecture is None:
            raise CellFailure(
                "failed", f"{cell.model.name}: cannot lay out the model in {source}: {reason}"
            ) from error
        raise ConfigError(
            [
                f"model.architecture.model_type={architecture['model_type']}:"
                f" transformers cannot lay out model={cell.model.name}: {reason}"
            ]
        ) from error


def _as_saved(cell: Cell, folder: Path) -> tuple[Cell, dict[str, int]]:
    """The cell with the dtype of the folder's files, and the bytes of what is packed, by module."""
    dtype = checkpoint.saved_dtype(folder) if cell.quant.dtype == "saved" else cell.quant.dtype
    packed = checkpoint.packed_bytes(folder, cell.device)
    if dtype is None or packed is None:
        raise CellFailure(
            "failed",
            f"{cell.model.name}: what {checkpoint.method(folder)} weights take in memory shows when"
            " they are loaded",
        )
    return replace(cell, quant=replace(cell.quant, dtype=dtype)), packed


def _stored(
    model: PreTrainedModel, cell: Cell, packed: Mapping[str, int]
) -> tuple[tuple[Matrix, ...], int]:
    """Its matrices in the order of its modules, and the bytes of all other parameters.

    Args:
        packed: bytes of what the folder has packed, by module.
    Raises:
        CellFailure: ``failed`` where the model has no matrix of such a name.
    """
    counts: Counter[Matrix] = Counter()
    plain_bytes = 0
    unplaced = set(packed)
    asked, layers = SCHEMES[cell.quant.scheme], assigned(model, cell.quant)
    for name, parameter, module in _parameters(model):
        shape = _matrix_shape(name, parameter, module, model)
        if shape is None:
            plain_bytes += parameter.nbytes
            continue
        count, outputs, inputs = shape
        scheme, quant, stored_bytes = SCHEMES["none"], cell.quant, parameter.nbytes // count
        where = name.removesuffix(".weight")
        if where in packed:
            scheme, stored_bytes = asked, packed[where] // count
            unplaced.discard(where)
        elif where in layers:
            quant = layers[where]
            scheme = SCHEMES[quant.scheme]
            stored_bytes = scheme.matrix_bytes(outputs, inputs, quant, cell.device)
        matrix = Matrix(
            name=re.sub(r"\.\d+(?=\.|$)", ".*", where),
            count=0,
            outputs=outputs,
            inputs=inputs,
            kind=_kind(parameter, model),
            stored_bytes=stored_bytes,
            workspace_bytes=scheme.workspace_bytes(outputs, inputs, quant, cell.device),
        )
        counts[matrix] += count
    if _is_tied(model) and (head := asked.head(cell.quant)) is not None:
        counts[_own_head(model, head, cell.device)] += 1
    if unplaced:
        name = cell.model.name
        raise CellFailure("failed", f"{name}: {min(unplaced)} of its files is no matrix of it")
    return tuple(replace(matrix, count=count) for matrix, count in counts.items()), plain_bytes


def _own_head(model: PreTrainedModel, quant: Quant, device: str) -> Matrix:
    """A head that was the embedding and is a quantized matrix besides it now."""
    outputs, inputs = model.get_output_embeddings().weight.shape
    scheme = SCHEMES[quant.scheme]
    size = (outputs, inputs, quant, device)
    stored, workspace = scheme.matrix_bytes(*size), scheme.workspace_bytes(*size)
    return Matrix("lm_head", 0, outputs, inputs, "head", stored, workspace)


def _obstacle(matrices: Sequence[Matrix], model: PreTrainedModel, cell: Cell) -> str | None:
    """Why the scheme can hold none of them, or not one of them."""
    scheme, plain = SCHEMES[cell.quant.scheme], SCHEMES["none"]
    if scheme is plain or cell.quant.scheme == "checkpoint":
        return None
    sizes = [(m, (m.outputs, m.inputs, cell.quant, cell.device)) for m in matrices]
    replaced = [(m, size) for m, size in sizes if m.stored_bytes != plain.matrix_bytes(*size)]
    if not replaced:
        linear = {
            type(m).__name__
            for m in model.modules()
            if isinstance(m, nn.Linear | Conv1D) and m is not model.get_output_embeddings()
        }
        return f"none of its layers is an ordinary Linear; they are {', '.join(sorted(linear))}"
    own = {type(m).__name__ for m in model.modules() if scheme.replaces(m) and _reads_its_weight(m)}
    if own:
        return f"{', '.join(sorted(own))} multiplies by its weight itself, which must be plain then"
    reasons = ((m.name, scheme.obstacle(*size)) for m, size in replaced)
    return next((f"{name}: {reason}" for name, reason in reasons if reason is not None), None)


def _reads_its_weight(layer: nn.Module) -> bool:
    """Whether a kind of Linear has its own product, like Falcon's ``input @ self.weight.T``."""
    forward = type(layer).forward
    is_own = isinstance(layer, nn.Linear) and forward is not nn.Linear.forward
    return is_own and "weight" in forward.__code__.co_names


def _parameters(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Each parameter once, also a tied one, with its name and the module that it belongs to."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        yield name, parameter, modules[name.rpartition(".")[0]]


def _matrix_shape(
    name: str, parameter: nn.Parameter, module: nn.Module, model: PreTrainedModel
) -> tuple[int, int, int] | None:
    """How many matrices a parameter is, with outputs and inputs of one; None for what is none."""
    if parameter.dim() not in (2, 3) or name.endswith("bias") or isinstance(module, _CONVOLUTIONS):
        return None
    if isinstance(module, nn.Embedding) and parameter is not model.get_input_embeddings().weight:
        return None
    count, outputs, inputs = (1, *parameter.shape)[-3:]
    if isinstance(module, Conv1D) or getattr(module, "is_transposed", False):
        return count, inputs, outputs
    return count, outputs, inputs


def _kind(parameter: nn.Parameter, model: PreTrainedModel) -> MatrixKind:
    if parameter is model.get_input_embeddings().weight:
        return "embedding"
    head = model.get_output_embeddings()
    return "head" if head is not None and parameter is head.weight else "layer"


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _filled_cache(model: PreTrainedModel) -> DynamicCache:
    """The cache of one row after a prompt of two tokens, on the meta device."""
    cache = new_cache(model)
    # GPT-2 looks at ids, which are none here
    model.base_model.warn_if_padding_and_no_attention_mask = lambda *_: None
    ids = torch.zeros((1, 2), dtype=torch.long, device="meta")
    # A model may look at values, which are none here: the layers before have filled theirs
    with torch.inference_mode(), contextlib.suppress(RuntimeError, TypeError, ValueError):
        model.eval()(ids, **cache, use_cache=True)
    return next(iter(cache.values()))


def cache_windows(cache: DynamicCache, layers: int) -> tuple[int | None, ...]:
    """Of each layer how many tokens its cache keeps, as in ``Description``."""
    kept = [
        getattr(layer, "sliding_window", None) if hasattr(layer, "keys") else 0
        for layer in cache.layers
    ]
    return tuple(kept + [0] * (layers - len(kept)))


def _widest_mlp(matrices: Sequence[Matrix], config: Any, is_own: bool) -> tuple[int, int]:
    """Width and copies of the MLP that holds most; the module's docstring has the method."""
    mlps = defaultdict(list)
    for matrix in matrices:
        if matrix.kind == "layer" and not re.search("attn|attention", matrix.name):
            mlps[matrix.name.rpartition(".")[0]].append(matrix)
    found = [(config.hidden_size, 4)]
    for place, beside in mlps.items():
        width = max(matrix.outputs for matrix in beside)
        narrower = [matrix for matrix in beside if matrix.outputs < width]
        if len(beside) - len(narrower) > 1:
            copies = 4 if is_own else 3
        else:
            copies = 2 if any(2 * matrix.inputs == width for matrix in narrower) else 4
        if re.search(r"\bexperts\b", place):
            chosen = getattr(config, "num_experts_per_tok", None) or 1
            copies = chosen * copies + math.ceil(chosen * _GATHERED * config.hidden_size / width)
        found.append((width, copies))
    return max(found, key=math.prod)


def _attention(model: PreTrainedModel) -> tuple[str, ...]:
    flash = ("flash_attention_2", "flash_attention_3") if model._supports_flash_attn else ()
    sdpa = ("sdpa",) if model._supports_sdpa else ()
    flex = ("flex_attention",) if model._supports_flex_attn else ()
    return ("eager", *sdpa, *flash, *flex)
