"""Files made of a publisher's once, and kept: a GGUF as safetensors, weights with noise on them.

*Dithered* weights are for judging quantizations. The default model was published on a grid of 4
bits (Q4_1); a scheme that puts its own grid on that one loses nothing, which says nothing of other
models. So each weight of each linear layer gets noise, uniform in half a step up and down, of the
step that Q4_1 has in its group: (largest - smallest) / 15 of ``GROUP`` inputs of one output. That
is another model, which lies on no grid; what it is compared with is itself in fp32. Embedding and
head stay as they are, and so do stacked experts: schemes leave them alone.

The noise of a matrix depends on its name, its shape and its steps only: ``torch.rand`` in fp32, of
a generator on the CPU seeded by a digest of the name. So all machines make the same model, in the
dtype of the publisher's files. Another rule is another ``sources.DITHERED``.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Conv1D, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from bench.config.cell import Model
from bench.engine import hub
from bench.errors import CellFailure

GROUP = 32
_STEPS = 15  # between the 16 values of a group
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)


def convert(model: Model, gguf: Path, folder: Path) -> None:
    """A GGUF dequantized to fp32, which holds the values of every GGUF type exactly, with the
    tokenizer beside it.

    Raises:
        CellFailure: ``failed`` for what transformers cannot read.
    """
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    except _UNREADABLE as error:
        raise _unreadable(model, gguf, error) from error
    # They are ordinary tensors now; save_pretrained refuses a model that still says it is
    # quantized.
    loaded.hf_quantizer = None
    del loaded.config.quantization_config
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def dither(model: Model, published: Path, folder: Path) -> None:
    """The model of a folder with noise on its weights, and what lies beside them.

    Raises:
        CellFailure: ``skipped`` for weights that are packed, ``failed`` for what transformers
            cannot read.
    """
    disable_progress_bar()
    try:
        if hasattr(AutoConfig.from_pretrained(published), "quantization_config"):
            raise CellFailure(
                "skipped",
                f"model={model.name}: weights that are quantized already cannot be dithered; want"
                " model.weights=pretrained",
            )
        loaded, report = AutoModelForCausalLM.from_pretrained(
            published,
            dtype="auto",
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _UNREADABLE as error:
        raise _unreadable(model, published, error) from error
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:  # transformers fills them with random numbers and goes on
        raise CellFailure(
            "failed",
            f"model={model.name}: {len(absent)} tensors are missing in {published} (first"
            f" {absent[0]}); download it again",
        )
    for name, matrix in layer_matrices(loaded):
        matrix.copy_(matrix.float() + noise(matrix, name))
    folder.mkdir()
    for file in {file for pattern in hub.SMALL for file in published.glob(pattern)}:
        if file.name != hub.INDEX:  # which names the publisher's files
            shutil.copy(file, folder)
    loaded.save_pretrained(folder)


def layer_matrices(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and weight (outputs, inputs) of each linear layer but the head, without a gradient; what
    several layers share comes once."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    seen = {id(end.weight) for end in ends if end is not None}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            weight = module.weight.detach()
            yield name, weight.T if isinstance(module, Conv1D) else weight


def noise(matrix: torch.Tensor, name: str) -> torch.Tensor:
    """What is added to a matrix (outputs, inputs) of this name, in fp32; the last group may be
    short."""
    outputs, inputs = matrix.shape
    # A repeated input changes neither end of its group
    filled = functional.pad(matrix.float()[None], (0, -inputs % GROUP), "replicate")
    low, high = filled.view(outputs, -1, GROUP).aminmax(dim=2)
    steps = ((high - low) / _STEPS).repeat_interleave(GROUP, dim=1)[:, :inputs]
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    uniform = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed))
    return (uniform - 0.5) * steps


def _unreadable(model: Model, file: Path, error: Exception) -> CellFailure:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CellFailure(
        "failed",
        f"model={model.name}: transformers cannot read {file.name}: {first}; want an"
        " architecture that it converts, or a folder of safetensors",
    )
