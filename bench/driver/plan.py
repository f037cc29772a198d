"""May this cell run here? Decided from the configuration and the host alone, before anything loads.

First ``resolve`` replaces every ``auto`` by what it means on this host, since two machines that
resolve it differently measure different things. Then each rule of the table either objects with a
reason or not. Requirements of single values are data in their YAML (``requires:``); the rules here
are about combinations and about the machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.analysis import footprint
from bench.config.cell import Cell, DtypeName, Requires, estimated_tokens
from bench.record.result import Host, Outcome, Status


def resolve(cell: Cell, host: Host) -> Cell:
    """The cell with device, dtypes and threads as they will be on this host."""
    device = host.device if cell.device == "auto" else cell.device
    default: DtypeName = "fp16" if device == "cuda" else "bf16"
    dtype = default if cell.quant.dtype == "auto" else cell.quant.dtype
    compute_dtype = default if cell.quant.compute_dtype == "auto" else cell.quant.compute_dtype
    allowed = host.cpus if cell.cpus == "all" else min(host.cpus, len(cell.cpus))
    return replace(
        cell,
        device=device,
        quant=replace(cell.quant, dtype=dtype, compute_dtype=compute_dtype),
        threads=allowed if cell.threads == "auto" else cell.threads,
    )


def why_not(cell: Cell, host: Host) -> Outcome | None:
    """The outcome of a resolved cell that cannot run here, or None: it may."""
    for status, rule in RULES:
        reason = rule(cell, host)
        if reason is not None:
            return Outcome(status, reason)
    return None


def _device(cell: Cell, host: Host) -> str | None:
    if cell.device == "cuda" and host.device != "cuda":
        return "device=cuda: torch sees no CUDA device here"
    return None


def _requirements(cell: Cell, host: Host) -> str | None:
    for axis, value in (("attn", cell.attn), ("quant", cell.quant)):
        for lacking in _lacking(value.requires, cell, host):
            return f"{axis}={value.name} needs {lacking}"
    return None


def _lacking(requires: Requires, cell: Cell, host: Host) -> Iterator[str]:
    if requires.device is not None and cell.device != requires.device:
        yield f"device {requires.device}, this cell runs on {cell.device}"
    if requires.capability is not None and (host.capability or 0) < requires.capability:
        yield f"compute capability {requires.capability}, {host.device_name} has {host.capability}"
    if requires.dtypes and cell.quant.dtype not in requires.dtypes:
        yield (
            f"dtype {' or '.join(requires.dtypes)}, quant={cell.quant.name} computes in"
            f" {cell.quant.dtype}"
        )
    if requires.package is not None and requires.package in host.missing:
        yield f"the package {requires.package} ({host.missing[requires.package]})"
    if requires.compiler and cell.device == "cpu" and not host.compiler:
        yield "a C++ compiler (g++ or clang++), none was found"


def _sdpa_flash(cell: Cell, host: Host) -> str | None:
    """torch's flash backend takes fp32 and any processor on a CPU, which ``requires`` in its YAML
    cannot say."""
    if cell.device != "cuda" or cell.attn.backend != "flash":
        return None
    on_cuda = Requires(capability=8.0, dtypes=("fp16", "bf16"))
    return next(
        (f"attn={cell.attn.name} needs {lacking}" for lacking in _lacking(on_cuda, cell, host)),
        None,
    )


def _library(cell: Cell, host: Host) -> str | None:
    if cell.quant.scheme != "none" and "bitsandbytes" in host.missing:
        return (
            f"quant={cell.quant.name} needs the package bitsandbytes"
            f" ({host.missing['bitsandbytes']})"
        )
    return None


def _tasks(cell: Cell, host: Host) -> str | None:
    if cell.quality.tasks and "lm_eval" in host.missing:
        return (
            f"quality.tasks needs the package lm_eval ({host.missing['lm_eval']}); pip install"
            " lm-eval"
        )
    return None


def _context(cell: Cell, host: Host) -> str | None:
    positions = cell.model.architecture.get(
        "max_position_embeddings"
    ) or cell.model.architecture.get("n_positions")
    prompt_tokens = cell.workload.prompt_tokens or estimated_tokens(cell.workload.prompt or "")
    tokens = prompt_tokens + cell.workload.new_tokens
    if positions is not None and tokens > positions:
        return (
            f"workload={cell.workload.name} takes {tokens} positions, model={cell.model.name} has"
            f" {positions}"
        )
    return None


def _cpus(cell: Cell, host: Host) -> str | None:
    absent = [] if cell.cpus == "all" else sorted(set(cell.cpus) - set(host.cpu_ids))
    if absent:
        return f"cpus={list(cell.cpus)}: this machine lets us use {list(host.cpu_ids)}"
    available = host.cpus if cell.cpus == "all" else min(host.cpus, len(cell.cpus))
    if cell.device == "cpu" and int(cell.threads) > available:
        return f"threads={cell.threads}: only {available} CPUs can be used"
    return None


def _memory(cell: Cell, host: Host) -> str | None:
    """Only what is certain counts, weights and cache: a cell that may just fit is tried, and is
    ``oom`` if it does not."""
    found = footprint.predict(cell)
    on_gpu = cell.device == "cuda"
    available = host.device_memory_bytes if on_gpu else host.memory_bytes
    if found is None or available is None or found.least_bytes <= available:
        return None
    largest = footprint.max_batch(cell, available)
    return (
        f"weights ({found.weight_bytes / 2**30:.1f} GiB) and KV cache ({found.kv_bytes / 2**30:.1f}"
        f" GiB) take {found.least_bytes / 2**30:.1f} GiB at batch {cell.batch},"
        f" {host.device_name if on_gpu else 'this machine'} has {available / 2**30:.1f} GiB; "
        + (f"a batch of {largest} should fit" if largest else "not even one row fits")
    )


def _outliers(cell: Cell, host: Host) -> str | None:
    if cell.model.weights == "random" and cell.quant.threshold:
        return (
            f"quant={cell.quant.name} splits off activations above {cell.quant.threshold}, which"
            " random weights hardly produce: the slow path would not run; take int8_nodecomp or"
            " pretrained weights"
        )
    return None


RULES: tuple[tuple[Status, Callable[[Cell, Host], str | None]], ...] = (
    ("skipped", _device),
    ("skipped", _requirements),
    ("skipped", _sdpa_flash),
    ("skipped", _library),
    ("skipped", _tasks),
    ("skipped", _context),
    ("skipped", _cpus),
    ("skipped", _memory),
    ("not_engaged", _outliers),
)
