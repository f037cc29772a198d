"""Hugging Face transformers on torch: every model it knows, bitsandbytes' and torchao's
quantizations, and folders that others have quantized.

This file is imported by the driver too, which must not wait for torch: what needs a library is
imported in the functions that run in a measured process.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bench.config.cell import Cell, Quant, Requires
from bench.engine import sources
from bench.engine.kernels import CanaryKernels, PeakKernels
from bench.engine.protocol import Accelerator, Files, Session
from bench.engine.transformers.lines import loading_lines
from bench.engine.transformers.schemes import (
    SCHEMES,
    checkpoint,
    layer_quants,
    packs,
    parameters_of,
    unknown_names,
)
from bench.record.description import Description
from bench.record.result import Host, Outcome, lacking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bench.engine.transformers.strategies import Strategy

IMPLEMENTATIONS = (
    "auto",  # what the architecture has (``driver.plan``)
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
)
BACKENDS = ("math", "flash", "efficient", "cudnn")  # of sdpa
STRATEGIES = {  # name: the function that runs the token loop, or the class
    "loop": "bench.engine.transformers.strategies:loop",
    "generate": "bench.engine.transformers.strategies:generate",
    "static": "bench.engine.transformers.static:StaticLoop",
    "compiled": "bench.engine.transformers.static:CompiledLoop",
    "prompt_lookup": "bench.engine.transformers.lookup:PromptLookup",
}


class Transformers:
    """Models through ``from_pretrained``, or of random weights."""

    preload: tuple[str, ...] = ("bench.engine.transformers.preload",)
    packages: tuple[str, ...] = (  # a change in any of them means measuring again
        "torch",
        "transformers",
        "bitsandbytes",
        "accelerate",
        "flash-attn",
        "flash-attn-3",
        "lm_eval",
        "kernels",  # if installed, bitsandbytes and transformers take kernels from a hub
        "numpy",
        "safetensors",
        "tokenizers",
        "triton",
        *sorted(
            {name for names in checkpoint.PACKAGES.values() for name in names} - {"bitsandbytes"}
        ),
    )
    optional: tuple[str, ...] = ("bitsandbytes", "flash_attn", "flash_attn_interface", "torchao")

    def accelerator(self) -> Accelerator | None:
        from bench.engine.transformers.device import accelerator

        return accelerator()

    def unsupported(self) -> dict[str, str]:
        from bench.engine.transformers.device import unsupported

        return unsupported()

    def unknown_names(self, cell: Cell) -> list[str]:
        asked = (
            ("attn.implementation", cell.attn.implementation, IMPLEMENTATIONS),
            ("attn.backend", cell.attn.backend, (None, *BACKENDS)),
            ("decode.strategy", cell.decode.strategy, tuple(STRATEGIES)),
        )
        return [
            *unknown_names(cell.quant),
            *(
                f"engine.options.{name}: transformers has no options"
                for name in cell.engine.options
            ),
            *(
                f"{path}={name}: no such one; engine={cell.engine.name} has"
                f" {', '.join(str(each) for each in names if each)}"
                for path, name, names in asked
                if name not in names
            ),
        ]

    def why_not(self, cell: Cell, host: Host) -> Outcome | None:
        for quant in (cell.quant, *layer_quants(cell.quant)):
            for need in _needs(quant, cell, host):
                return Outcome("skipped", f"quant={quant.name} needs {need}")
        objection = _of_folder(cell, host)
        if objection is not None:
            return Outcome("skipped", objection)
        if cell.device == "cuda" and cell.attn.backend == "flash":
            # torch's flash backend takes fp32 and any processor on a CPU: no row of its YAML.
            on_cuda = Requires(capability=8.0, dtypes=("fp16", "bf16"))
            for need in lacking(on_cuda, cell, host):
                return Outcome("skipped", f"attn={cell.attn.name} needs {need}")
        if _is_emulated(cell, host):
            return Outcome(
                "skipped",
                f"quant={cell.quant.name}: {host.device_name} (compute capability"
                f" {host.capability}) has no bf16, torch emulates it; want fp16",
            )
        if (obstacle := _of_decode(cell)) is not None:
            return Outcome("skipped", f"decode={cell.decode.name} {obstacle}")
        threshold = getattr(parameters_of(cell.quant), "threshold", 0.0)
        if cell.model.weights == "random" and threshold:
            return Outcome(
                "not_engaged",
                f"quant={cell.quant.name} splits off activations above {threshold}, which random"
                " weights hardly produce: the slow path would not run; take int8_nodecomp or"
                " pretrained weights",
            )
        return None

    def describe(self, cell: Cell) -> Description | None:
        from bench.engine.transformers.describe import describe

        source = sources.configuration(cell.model)
        is_read = cell.model.weights != "random" and source is not None and source.is_dir()
        if is_read and checkpoint.objection(cell, source):
            return None
        if cell.quant.scheme == "checkpoint" and sources.cached(cell.model) is None:
            return None  # its files say what they hold
        return describe(cell, source)

    def lines(self, cell: Cell) -> str:
        return loading_lines(cell, sources.place(cell.model))

    def provide(self, cell: Cell, show: Callable[[str], None]) -> Files:
        folder = sources.fetch(cell.model, show)
        made_of = sources.configuration(cell.model) if folder is None else None
        revision, packed = sources.revision(cell.model, folder), None
        if folder is not None and packs(cell.quant):
            from bench.engine.transformers.load import reading, release_heap
            from bench.engine.transformers.own.packing import packed_folder

            with reading(cell, folder):
                packed = packed_folder(cell, folder, show)
            release_heap()  # what packing has freed would be there for the load to take
        return Files(folder, revision, made_of, packed)

    def prepare(self, cell: Cell) -> None:
        from bench.engine.transformers.device import set_flags

        set_flags(int(cell.threads))
        if packs(cell.quant) and cell.device == "cpu":
            from bench.engine.transformers.own.build import kernels

            kernels()  # compiled before the load is timed
        packages = [SCHEMES[cell.quant.scheme].package, cell.attn.requires.package]
        folder = sources.cached(cell.model)
        if folder is not None and cell.quant.scheme == "checkpoint":
            packages += checkpoint.packages(folder).values()
        for package in packages:
            if package is not None:  # before the load is timed
                importlib.import_module(package)

    def canary_kernels(self, device: str) -> CanaryKernels | None:
        from bench.engine.transformers.device import canary_kernels

        return canary_kernels(device)

    def peak_kernels(self, device: str, threads: int) -> PeakKernels | None:
        from bench.engine.transformers.device import peak_kernels

        return peak_kernels(device, threads)

    def open(self, cell: Cell, files: Files) -> Session:
        from bench.engine.transformers.session import open_session

        return open_session(cell, files.folder, files.configuration, files.packed)


def _needs(quant: Quant, cell: Cell, host: Host) -> Iterator[str]:
    """What a quantization, of the cell or of some of its layers, would need and does not have."""
    scheme = SCHEMES[quant.scheme]
    if scheme.package is not None and scheme.package in host.missing:
        yield f"the package {scheme.package} ({host.missing[scheme.package]})"
    if (need := scheme.needs(quant, cell.device)) is not None:
        yield need
    if cell.device == "cuda":
        yield from lacking(scheme.on_cuda, cell, host)
    if quant.dtype != cell.quant.dtype:
        yield (
            f"quant.dtype={quant.dtype}, as layers that stay unquantized have the cell's,"
            f" {cell.quant.dtype}; in quant.layers want none"
        )


def _of_decode(cell: Cell) -> str | None:
    """Why the cell's other choices rule its decode strategy out."""
    strategy, attn = cell.decode.strategy, cell.attn
    if strategy in ("loop", "generate"):
        return None
    if strategy == "prompt_lookup" and cell.batch != 1:
        return "advances each row by another count: batch=1"
    is_made_up = cell.model.weights == "random" and cell.model.tokenizer == "pretrained"
    if strategy == "prompt_lookup" and is_made_up:
        return "guesses from a text, random weights are asked made-up ids: pretrained ones"
    # Kernels without a mask cannot leave out what the cache has room for, or a guess's later tokens
    is_flash_on_cuda = attn.backend == "flash" and cell.device == "cuda"
    if attn.implementation not in ("sdpa", "eager") or is_flash_on_cuda:
        return f"needs a mask, which attn={attn.name} does not take: attn=sdpa or eager"
    if strategy == "prompt_lookup" and attn.packs_queries:
        return f"asks several queries in a step, attn={attn.name} packs single ones: attn=sdpa"
    if strategy == "compiled" and cell.quant.scheme == "bnb_int8":
        return (
            f"needs a step of one graph, quant={cell.quant.name}'s breaks in each layer"
            " (bitsandbytes 0.50.2 asks each whether there are outliers)"
        )
    return None


def _is_emulated(cell: Cell, host: Host) -> bool:
    """Whether a GPU would compute in a bf16 that it does not have."""
    dtypes = {cell.quant.dtype, cell.quant.parameters.get("compute_dtype")}
    return "bf16" in dtypes and not host.computes_bf16(cell.device)


def _of_folder(cell: Cell, host: Host) -> str | None:
    """Why the model's folder, if it is here, cannot be measured under the cell's quantization."""
    folder = sources.cached(cell.model)
    if folder is None and cell.model.weights != "random":
        return None  # loading says it
    objection = checkpoint.objection(cell, folder)
    if objection is not None or folder is None or cell.quant.scheme != "checkpoint":
        return objection
    return checkpoint.missing_package(cell, folder, host.versions)


def strategy(name: str, model: "PreTrainedModel") -> "Strategy":
    """The decode strategy of this name, for one model."""
    from bench.engine.transformers.strategies import Plain

    module, _, found = STRATEGIES[name].partition(":")
    make = getattr(importlib.import_module(module), found)
    made: Strategy = make(model) if isinstance(make, type) else Plain(make, model)
    return made


ENGINE = Transformers()
