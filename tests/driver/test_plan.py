"""What ``auto`` means on a host, and which cells may not run there."""

from typing import Any

import pytest

from bench.config.cell import Cell
from bench.driver.plan import RULES, resolve, why_not
from bench.record.result import Host, Outcome
from tests import fakes

CPU = fakes.host()
GPU = fakes.gpu_host()


@pytest.mark.parametrize(
    ("changes", "host", "device"),
    [
        ({"device": "auto"}, CPU, "cpu"),
        ({"device": "auto"}, GPU, "cuda"),
        ({"device": "cpu"}, GPU, "cpu"),
        ({"device": "cuda"}, CPU, "cuda"),
    ],
)
def test_device_auto_is_the_hosts(changes: dict[str, Any], host: Host, device: str) -> None:
    assert resolve(fakes.cell(**changes), host).device == device


@pytest.mark.parametrize(
    ("quant", "device", "dtype", "compute_dtype"),
    [
        ("nf4", "cpu", "bf16", "bf16"),
        ("nf4", "cuda", "fp16", "fp16"),
        ("int8", "cuda", "fp16", None),
        ("fp32", "cuda", "fp32", None),
        (fakes.group("quant", "nf4", dtype="fp32", compute_dtype="bf16"), "cuda", "fp32", "bf16"),
    ],
)
def test_dtype_auto_follows_the_device(
    quant: Any, device: str, dtype: str, compute_dtype: str | None
) -> None:
    resolved = resolve(fakes.cell(quant=quant, device=device), GPU).quant
    assert (resolved.dtype, resolved.compute_dtype) == (dtype, compute_dtype)


def test_dtype_auto_follows_the_cells_device_and_not_the_hosts() -> None:
    assert resolve(fakes.cell(quant="nf4", device="cpu"), GPU).quant.dtype == "bf16"


@pytest.mark.parametrize(
    ("threads", "cpus", "resolved"),
    [("auto", "all", 2), ("auto", [1], 1), (1, "all", 1), (5, [0, 1], 5)],
)
def test_threads_auto_is_one_for_each_cpu_that_may_be_used(
    threads: Any, cpus: Any, resolved: int
) -> None:
    assert resolve(fakes.cell(threads=threads, cpus=cpus), CPU).threads == resolved


def test_a_resolved_cell_stays_as_it_is() -> None:
    once = resolve(fakes.cell(quant="nf4", device="auto", threads="auto"), GPU)
    assert resolve(once, CPU) == once


NO_BITSANDBYTES = fakes.host(missing={"bitsandbytes": "not installed"})
LONG = {"name": "long", "text": "prose", "prompt_tokens": 8000, "new_tokens": 193}

LLAMA_7B = fakes.group("model", "llama-2-7b", weights="random")
OBJECTIONS: list[tuple[str, Cell, Host, Outcome]] = [
    (
        "_memory",
        fakes.cell(model=LLAMA_7B, quant="bf16"),
        CPU,
        Outcome(
            "skipped",
            "weights (12.6 GiB) and KV cache (0.0 GiB) take 12.6 GiB at batch 1, this machine has"
            " 7.5 GiB; not even one row fits",
        ),
    ),
    (
        "_device",
        fakes.cell(device="cuda"),
        CPU,
        Outcome("skipped", "device=cuda: torch sees no CUDA device here"),
    ),
    (
        "_requirements",
        fakes.cell(attn="sdpa_efficient"),
        CPU,
        Outcome("skipped", "attn=sdpa_efficient needs device cuda, this cell runs on cpu"),
    ),
    (
        "_requirements",
        fakes.cell(quant=fakes.group("quant", "bf16", requires={"device": "cpu"}), device="cuda"),
        GPU,
        Outcome("skipped", "quant=bf16 needs device cpu, this cell runs on cuda"),
    ),
    (
        "_requirements",
        fakes.cell(attn="flash3", device="cuda"),
        fakes.gpu_host(capability=8.9),
        Outcome("skipped", "attn=flash3 needs compute capability 9.0, Some GPU has 8.9"),
    ),
    (
        "_requirements",
        fakes.cell(attn="flash2", quant="fp32", device="cuda"),
        GPU,
        Outcome("skipped", "attn=flash2 needs dtype fp16 or bf16, quant=fp32 computes in fp32"),
    ),
    (
        "_requirements",
        fakes.cell(attn="flash2", device="cuda"),
        fakes.gpu_host(missing={"flash_attn": "not installed"}),
        Outcome("skipped", "attn=flash2 needs the package flash_attn (not installed)"),
    ),
    (
        "_requirements",
        fakes.cell(attn="flex"),
        fakes.host(compiler=False),
        Outcome("skipped", "attn=flex needs a C++ compiler (g++ or clang++), none was found"),
    ),
    (
        "_library",
        fakes.cell(quant="int8_nodecomp"),
        NO_BITSANDBYTES,
        Outcome("skipped", "quant=int8_nodecomp needs the package bitsandbytes (not installed)"),
    ),
    (
        "_tasks",
        fakes.cell(quality=fakes.group("quality", "none", tasks=["hellaswag"])),
        fakes.host(missing={"lm_eval": "not installed"}),
        Outcome(
            "skipped",
            "quality.tasks needs the package lm_eval (not installed); pip install lm-eval",
        ),
    ),
    (
        "_context",
        fakes.cell(workload=LONG),
        CPU,
        Outcome("skipped", "workload=long takes 8193 positions, model=smollm2-135m has 8192"),
    ),
    (
        "_context",
        fakes.cell(model="gpt2", workload="summarize"),
        CPU,
        Outcome("skipped", "workload=summarize takes 1152 positions, model=gpt2 has 1024"),
    ),
    (
        "_cpus",
        fakes.cell(threads=3),
        CPU,
        Outcome("skipped", "threads=3: only 2 CPUs can be used"),
    ),
    (
        "_cpus",
        fakes.cell(threads=2, cpus=[1]),
        CPU,
        Outcome("skipped", "threads=2: only 1 CPUs can be used"),
    ),
    (
        "_cpus",
        fakes.cell(threads=1, cpus=[1, 7]),
        CPU,
        Outcome("skipped", "cpus=[1, 7]: this machine lets us use [0, 1]"),
    ),
    (
        "_sdpa_flash",
        fakes.cell(attn="sdpa_flash", quant="fp32", device="cuda"),
        GPU,
        Outcome("skipped", "attn=sdpa_flash needs dtype fp16 or bf16, quant=fp32 computes in fp32"),
    ),
    (
        "_sdpa_flash",
        fakes.cell(attn="sdpa_flash", quant="fp16", device="cuda"),
        fakes.gpu_host(capability=7.5),
        Outcome("skipped", "attn=sdpa_flash needs compute capability 8.0, Some GPU has 7.5"),
    ),
    (
        "_outliers",
        fakes.cell(model="tiny", quant="int8"),
        CPU,
        Outcome(
            "not_engaged",
            "quant=int8 splits off activations above 6.0, which random weights hardly produce: the"
            " slow path would not run; take int8_nodecomp or pretrained weights",
        ),
    ),
]


def test_every_rule_objects_to_something_below() -> None:
    assert {name for name, *_ in OBJECTIONS} == {rule.__name__ for _, rule in RULES}


@pytest.mark.parametrize(("name", "cell", "host", "outcome"), OBJECTIONS)
def test_a_rule_objects_with_the_reason(
    name: str, cell: Cell, host: Host, outcome: Outcome
) -> None:
    assert why_not(resolve(cell, host), host) == outcome


@pytest.mark.parametrize(("name", "cell", "host", "outcome"), OBJECTIONS)
def test_no_other_rule_objects_to_the_same_cell(
    name: str, cell: Cell, host: Host, outcome: Outcome
) -> None:
    resolved = resolve(cell, host)
    assert [rule.__name__ for _, rule in RULES if rule(resolved, host) is not None] == [name]


@pytest.mark.parametrize(
    ("cell", "host"),
    [
        (fakes.cell(), CPU),
        (fakes.cell(), NO_BITSANDBYTES),
        (fakes.cell(device="cpu"), GPU),
        (fakes.cell(quant="int8"), CPU),
        (fakes.cell(model="tiny", quant="int8_nodecomp"), CPU),
        (fakes.cell(model="tiny", quant="nf4"), CPU),
        (fakes.cell(attn="flex"), CPU),
        (fakes.cell(attn="flex", device="cuda"), fakes.gpu_host(compiler=False)),
        (fakes.cell(attn="sdpa_flash", quant="fp32"), CPU),
        (fakes.cell(attn="flash2", quant="nf4", device="cuda"), fakes.gpu_host(capability=8.0)),
        (fakes.cell(attn="flash3", quant="fp16", device="cuda"), fakes.gpu_host(capability=12.0)),
        (fakes.cell(workload=LONG | {"new_tokens": 192}), CPU),
        (fakes.cell(threads=2), CPU),
        (fakes.cell(threads=3, device="cuda"), GPU),
    ],
)
def test_a_cell_that_may_run_meets_no_objection(cell: Cell, host: Host) -> None:
    assert why_not(resolve(cell, host), host) is None


def test_the_first_objection_is_the_one_that_is_told() -> None:
    cell = fakes.cell(model="tiny", quant="int8", attn="flash2", device="cuda")
    assert why_not(resolve(cell, CPU), CPU) == Outcome(
        "skipped", "device=cuda: torch sees no CUDA device here"
    )
