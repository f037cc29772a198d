"""May this cell run here? Decided from configuration, host and description, before anything loads.

First ``resolve`` replaces every ``auto`` by what it means on this host. Then each rule of the table
either objects with a reason or not, and the engine's own rules come last. Requirements of single
values are data in their YAML (``requires:``); the rules here are about combinations and about the
machine.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

from bench.analysis import footprint
from bench.config.cell import Attn, Cell, Decode, DtypeName, EngineChoice, LayerQuant, Quant
from bench.engine.protocol import ENGINES, Engine, engine_at
from bench.record.description import Description
from bench.record.result import Host, Outcome, lacking

Quantized = TypeVar("Quantized", Quant, LayerQuant)

USUAL_ENGINE = "transformers"  # it shows what a model as published predicts
_ANY_NAME = "scripted"  # the engine to which every name is one


def engine_of(cell: Cell) -> Engine:
    """The engine that a cell names; ``unknown_names`` has checked that there is one."""
    return engine_at(ENGINES[cell.engine.name])


def unknown_names(cell: Cell) -> list[str]:
    """A sentence for each name in an asked cell that no engine has; before anything runs.

    What only the cell's own engine lacks is no mistake: in a grid of engines that cell is skipped.
    """
    if cell.engine.name not in ENGINES:
        return [f"engine.name={cell.engine.name}: no such engine; there are {', '.join(ENGINES)}"]
    plain = replace(
        cell,
        quant=Quant("fp32", "none", "fp32"),
        attn=Attn("auto", "auto"),
        decode=Decode("loop", "loop"),
    )
    problems = engine_of(cell).unknown_names(plain)  # of its options, which are no other engine's
    for axis in ("quant", "attn", "decode"):
        asked: dict[str, Any] = {axis: getattr(cell, axis)}
        by_engine = {
            name: engine_at(place).unknown_names(replace(plain, engine=EngineChoice(name), **asked))
            for name, place in ENGINES.items()
            if name == cell.engine.name or name != _ANY_NAME
        }
        problems += by_engine[cell.engine.name] if all(by_engine.values()) else []
    return problems


def resolve(cell: Cell, host: Host) -> Cell:
    """The cell with device, dtypes and threads as they will be on this host; ``batch=max``
    stays."""
    device = host.device if cell.device == "auto" else cell.device
    default: DtypeName = "fp16" if device == "cuda" else "bf16"
    quant = _with_dtype(cell.quant, default, device)
    return replace(
        cell,
        device=device,
        quant=replace(
            quant,
            layers={
                pattern: _with_dtype(each, cast("DtypeName", quant.dtype), device)
                for pattern, each in quant.layers.items()
            },
        ),
        threads=_usable_cpus(cell, host) if cell.threads == "auto" else cell.threads,
    )


def _with_dtype(quant: Quantized, dtype: DtypeName, device: str) -> Quantized:
    """With ``dtype`` in place of every ``auto``, and what is for a CPU alone as it is there."""
    meant = {"auto": dtype, "int8_on_cpu": "int8" if device == "cpu" else "none"}
    parameters = {
        name: meant.get(value, value) if isinstance(value, str) else value
        for name, value in quant.parameters.items()
    }
    return replace(
        quant, dtype=dtype if quant.dtype == "auto" else quant.dtype, parameters=parameters
    )


def with_attention(cell: Cell, description: Description | None) -> Cell:
    """The cell with the best kernel that its architecture has instead of ``attn=auto``."""
    if cell.attn.implementation != "auto":
        return cell
    has_sdpa = description is None or "sdpa" in description.attention
    name = "sdpa" if has_sdpa else "eager"
    return replace(cell, attn=Attn(name, name))


def why_not(cell: Cell, host: Host, description: Description | None) -> Outcome | None:
    """The outcome of a resolved cell that cannot run here, or None: it may."""
    for name in engine_of(cell).unknown_names(cell):
        return Outcome("skipped", name)
    if cell.workload.prompt_tokens == "max":
        cell = cell.sized(1)  # what does not run with one token runs with none
    for rule in RULES:
        reason = rule(cell, host, description)
        if reason is not None:
            return Outcome("skipped", reason)
    return engine_of(cell).why_not(cell, host)


def _usable_cpus(cell: Cell, host: Host) -> int:
    return host.cpus if cell.cpus == "all" else min(host.cpus, len(cell.cpus))


def available_bytes(cell: Cell, host: Host) -> int | None:
    """Memory of the cell's device; None where nobody knows."""
    return host.device_memory_bytes if cell.device == "cuda" else host.memory_bytes


def _device(cell: Cell, host: Host, description: Description | None) -> str | None:
    if cell.device == "cuda" and host.device != "cuda":
        others = "".join(f"; {name} {why}" for name, why in host.unsupported.items())
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        # Set by the user, or by device=cuda:N
        among = "" if visible is None else f" (visible: {visible})"
        return f"device=cuda: engine={cell.engine.name} sees no CUDA device here{among}{others}"
    return None


def _requirements(cell: Cell, host: Host, description: Description | None) -> str | None:
    for axis, value in (("attn", cell.attn), ("quant", cell.quant), ("decode", cell.decode)):
        for need in lacking(value.requires, cell, host):
            return f"{axis}={value.name} needs {need}"
    return None


def _tasks(cell: Cell, host: Host, description: Description | None) -> str | None:
    if cell.quality.tasks and "lm_eval" in host.missing:
        reason = host.missing["lm_eval"]
        return f"quality.tasks needs the package lm_eval ({reason}); pip install lm-eval"
    return None


def _context(cell: Cell, host: Host, description: Description | None) -> str | None:
    positions = None if description is None else description.context_tokens
    tokens = cell.workload.least_tokens
    if positions is not None and tokens > positions:
        workload, model = cell.workload.name, cell.model.name
        return f"workload={workload} takes {tokens} positions, model={model} has {positions}"
    return None


def _attention(cell: Cell, host: Host, description: Description | None) -> str | None:
    wanted, name = cell.attn.implementation, f"attn={cell.attn.name}: model={cell.model.name}"
    if description is None or not description.attention:
        return None
    if wanted not in description.attention:
        return f"{name} has no {wanted} attention; it has {', '.join(description.attention)}"
    if cell.attn.packs_queries and not description.shares_keys:
        return f"{name} has keys of its own for each head, so there is nothing to pack: attn=sdpa"
    return None


def _sdpa(cell: Cell, host: Host, description: Description | None) -> str | None:
    backend = cell.attn.backend
    if backend is None or description is None or not description.kv_heads:
        return None
    if backend in description.sdpa_kernels_for(cell.workload.least_tokens):
        return None
    has_mask = backend in description.sdpa_kernels
    return (
        f"attn={cell.attn.name}: torch's {backend} kernel does not take model={cell.model.name}'s"
        f" attention here ({description.heads} heads, {description.kv_heads} of keys and values,"
        f" {description.head_dim} wide, {cell.quant.dtype}"
        f"{', a mask for its sliding window' if has_mask else ''})"
    )


def _quantization(cell: Cell, host: Host, description: Description | None) -> str | None:
    if description is None or description.obstacle is None:
        return None
    return f"quant={cell.quant.name} cannot hold model={cell.model.name}: {description.obstacle}"


def _cpus(cell: Cell, host: Host, description: Description | None) -> str | None:
    absent = [] if cell.cpus == "all" else sorted(set(cell.cpus) - set(host.cpu_ids))
    if cell.cpus != "all" and not hasattr(os, "sched_setaffinity"):
        return f"cpus={list(cell.cpus)}: this system pins no process to CPUs; want cpus=all"
    if absent:
        return f"cpus={list(cell.cpus)}: this machine lets us use {list(host.cpu_ids)}"
    available = _usable_cpus(cell, host)
    if cell.device == "cpu" and int(cell.threads) > available:
        return f"threads={cell.threads}: only {available} CPUs can be used"
    return None


def _memory(cell: Cell, host: Host, description: Description | None) -> str | None:
    """Only what is certain counts, weights and cache: a cell that may just fit is tried, and is
    ``oom`` if it does not."""
    available = available_bytes(cell, host)
    if description is None or available is None:
        return None
    least = cell.sized(1) if cell.is_to_be_sized else cell
    needs = footprint.predict(least, description)
    if needs.least_bytes <= available:
        return None
    largest = footprint.max_batch(cell, description, available)
    place = host.device_name if cell.device == "cuda" else "this machine"
    return (
        f"weights ({needs.weight_bytes / 2**30:.1f} GiB) and KV cache"
        f" ({needs.kv_bytes / 2**30:.1f} GiB) take {needs.least_bytes / 2**30:.1f} GiB at batch"
        f" {least.batch}, {place} has {available / 2**30:.1f} GiB; "
        + (f"a batch of {largest} should fit" if largest else "not even one row fits")
    )


RULES: tuple[Callable[[Cell, Host, Description | None], str | None], ...] = (
    _device,
    _requirements,
    _tasks,
    _context,
    _attention,
    _sdpa,
    _quantization,
    _cpus,
    _memory,
)
