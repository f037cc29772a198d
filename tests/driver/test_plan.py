"""What ``auto`` means on a host, and which cells may not run there."""

from typing import Any

import pytest

from bench.config.cell import Cell
from bench.driver.plan import resolve, unknown_names, why_not
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
    ],
)
def test_dtype_auto_follows_the_device(
    quant: Any, device: str, dtype: str, compute_dtype: str | None
) -> None:
    resolved = resolve(fakes.cell(quant=quant, device=device), GPU).quant
    assert (resolved.dtype, resolved.parameters.get("compute_dtype")) == (dtype, compute_dtype)


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


LONG = {"name": "long", "text": "prose", "prompt_tokens": 900, "new_tokens": 101}
SCRIPTED = {"name": "scripted"}


def skipped(reason: str) -> Outcome:
    return Outcome("skipped", reason)


OBJECTIONS: list[tuple[Cell, Host, Outcome]] = [
    (
        fakes.cell(device="cuda"),
        CPU,
        skipped("device=cuda: engine=transformers sees no CUDA device here"),
    ),
    (
        fakes.cell(device="cuda", engine=SCRIPTED),
        CPU,
        skipped("device=cuda: engine=scripted sees no CUDA device here"),
    ),
    (
        fakes.cell(attn="sdpa_efficient"),
        CPU,
        skipped("attn=sdpa_efficient needs device cuda, this cell runs on cpu"),
    ),
    (
        fakes.cell(quant=fakes.group("quant", "bf16", requires={"device": "cpu"}), device="cuda"),
        GPU,
        skipped("quant=bf16 needs device cpu, this cell runs on cuda"),
    ),
    (
        fakes.cell(decode=fakes.group("decode", "loop", requires={"package": "flash_attn"})),
        CPU,
        skipped("decode=loop needs the package flash_attn (not installed)"),
    ),
    (
        fakes.cell(attn="flash3", device="cuda"),
        fakes.gpu_host(capability=8.9),
        skipped("attn=flash3 needs compute capability 9.0, Some GPU has 8.9"),
    ),
    (  # FlashAttention-3 is written for Hopper alone
        fakes.cell(attn="flash3", quant="fp16", device="cuda"),
        fakes.gpu_host(capability=12.0),
        skipped("attn=flash3 needs compute capability below 10.0, Some GPU has 12.0"),
    ),
    (
        fakes.cell(attn="flash2", quant="fp32", device="cuda"),
        GPU,
        skipped("attn=flash2 needs dtype fp16 or bf16, quant=fp32 computes in fp32"),
    ),
    (
        fakes.cell(attn="flex"),
        fakes.host(compiler=False),
        skipped("attn=flex needs a C++ compiler (g++ or clang++), none was found; apt install g++"),
    ),
    (
        fakes.cell(quality=fakes.group("quality", "none", tasks=["hellaswag"])),
        fakes.host(missing={"lm_eval": "not installed"}),
        skipped("quality.tasks needs the package lm_eval (not installed); pip install lm-eval"),
    ),
    (fakes.cell(threads=3), CPU, skipped("threads=3: only 2 CPUs can be used")),
    (fakes.cell(threads=2, cpus=[1]), CPU, skipped("threads=2: only 1 CPUs can be used")),
    (
        fakes.cell(threads=1, cpus=[1, 7]),
        CPU,
        skipped("cpus=[1, 7]: this machine lets us use [0, 1]"),
    ),
    (
        fakes.cell(attn="flex", quant="fp16", device="cuda"),
        fakes.gpu_host(triton="a C compiler (gcc or clang); apt install gcc"),
        skipped(
            "attn=flex needs Triton to compile its kernels, which needs a C compiler (gcc or"
            " clang); apt install gcc"
        ),
    ),
    # The engine's own rules
    (
        fakes.cell(quant="bf16", device="cuda"),
        fakes.gpu_host(capability=7.5),
        skipped(
            "quant=bf16: Some GPU (compute capability 7.5) has no bf16, torch emulates it; want"
            " fp16"
        ),
    ),
    (
        fakes.cell(
            quant=fakes.group(
                "quant",
                "nf4",
                parameters={"quant_type": "nf4", "double_quant": False, "compute_dtype": "bf16"},
            ),
            device="cuda",
        ),
        fakes.gpu_host(capability=7.0),
        skipped(
            "quant=nf4: Some GPU (compute capability 7.0) has no bf16, torch emulates it; want fp16"
        ),
    ),
    (
        fakes.cell(quant="int8_nodecomp"),
        fakes.host(missing={"bitsandbytes": "not installed"}),
        skipped("quant=int8_nodecomp needs the package bitsandbytes (not installed)"),
    ),
    (
        fakes.cell(attn="sdpa_flash", quant="fp32", device="cuda"),
        GPU,
        skipped("attn=sdpa_flash needs dtype fp16 or bf16, quant=fp32 computes in fp32"),
    ),
    (
        fakes.cell(attn="sdpa_flash", quant="fp16", device="cuda"),
        fakes.gpu_host(capability=7.5),
        skipped("attn=sdpa_flash needs compute capability 8.0, Some GPU has 7.5"),
    ),
    (
        fakes.cell(model="tiny", quant="int8"),
        CPU,
        Outcome(
            "not_engaged",
            "quant=int8 splits off activations above 6.0, which random weights hardly produce: the"
            " slow path would not run; take int8_nodecomp or pretrained weights",
        ),
    ),
]


@pytest.mark.parametrize(("cell", "host", "outcome"), OBJECTIONS)
def test_a_rule_objects_with_the_reason(cell: Cell, host: Host, outcome: Outcome) -> None:
    assert why_not(resolve(cell, host), host, None) == outcome


@pytest.mark.parametrize(
    ("cell", "host"),
    [
        (fakes.cell(), CPU),
        (fakes.cell(), fakes.host(missing={"bitsandbytes": "not installed"})),
        (fakes.cell(device="cpu"), GPU),
        (fakes.cell(quant="int8"), CPU),
        (fakes.cell(model="tiny", quant="int8_nodecomp"), CPU),
        (fakes.cell(model="tiny", quant="int8", engine=SCRIPTED), CPU),
        (fakes.cell(attn="flex", device="cuda"), fakes.gpu_host(compiler=False)),
        (fakes.cell(attn="sdpa_flash", quant="fp32"), CPU),
        (fakes.cell(attn="flash2", quant="nf4", device="cuda"), fakes.gpu_host(capability=8.0)),
        (fakes.cell(attn="flash3", quant="fp16", device="cuda"), fakes.gpu_host(capability=9.0)),
        (fakes.cell(threads=2), CPU),
        (fakes.cell(threads=3, device="cuda"), GPU),
        (fakes.cell(batch="max"), CPU),
    ],
)
def test_a_cell_that_may_run_meets_no_objection(cell: Cell, host: Host) -> None:
    assert why_not(resolve(cell, host), host, fakes.description()) is None


def test_the_first_objection_is_the_one_that_counts() -> None:
    cell = fakes.cell(model="tiny", quant="int8", attn="flash2", device="cuda", threads=99)
    found = why_not(resolve(cell, CPU), CPU, None)
    assert found == skipped("device=cuda: engine=transformers sees no CUDA device here")


def test_a_prompt_must_fit_the_context_as_far_as_it_is_known() -> None:
    cell = fakes.resolved(workload=LONG)
    assert why_not(cell, CPU, fakes.description()) == skipped(
        "workload=long takes 1001 positions, model=smollm2-135m has 1000"
    )
    for context in (1001, None):
        assert why_not(cell, CPU, fakes.description(context_tokens=context)) is None
    of_a_text = {"name": "asked", "prompt": "x" * 5000, "new_tokens": 4}  # about 1000 tokens
    assert why_not(fakes.resolved(workload=of_a_text), CPU, fakes.description()) == skipped(
        "workload=asked takes 1004 positions, model=smollm2-135m has 1000"
    )


def test_a_pinned_kernel_must_take_the_models_attention() -> None:
    grouped = fakes.description(sdpa_kernels=("math", "flash", "cudnn"), masked_sdpa_kernels=())
    for attn, obstacle in (
        ("sdpa_cudnn", None),
        (
            "sdpa_efficient",
            "attn=sdpa_efficient: torch's efficient kernel does not take model=smollm2-135m's"
            " attention here (4 heads, 2 of keys and values, 1 wide, fp16)",
        ),
    ):
        cell = resolve(fakes.cell(attn=attn, quant="fp16", device="cuda"), GPU)
        assert why_not(cell, GPU, grouped) == (None if obstacle is None else skipped(obstacle))


def test_a_layer_whose_window_is_shorter_than_the_request_needs_a_kernel_with_a_mask() -> None:
    cell = resolve(fakes.cell(attn="sdpa_flash", quant="fp16", device="cuda"), GPU)
    tokens = cell.workload.least_tokens
    kernels = {"sdpa_kernels": ("math", "flash"), "masked_sdpa_kernels": ("math", "efficient")}
    for window in (None, 0, tokens + 1):
        far = fakes.description(windows=(None, window), **kernels)
        assert why_not(cell, GPU, far) is None
    found = why_not(cell, GPU, fakes.description(windows=(None, tokens), **kernels))
    assert str(found and found.reason).endswith("fp16, a mask for its sliding window)")


def test_weights_and_cache_must_fit_the_memory_as_far_as_they_are_known() -> None:
    gib = 2**30
    large = fakes.description(matrices=(), plain_bytes=6 * gib, kv_bytes_per_token_layer=gib // 22)
    # Two layers, 11 tokens a row are cached: 1 GiB a row
    host = fakes.host(memory_bytes=8 * gib)
    assert why_not(fakes.resolved(batch=2), host, large) is None
    assert why_not(fakes.resolved(batch="max"), host, large) is None
    found = why_not(fakes.resolved(batch=4), host, large)
    assert found is not None
    assert str(found.reason).startswith(
        "weights (6.0 GiB) and KV cache (4.0 GiB) take 10.0 GiB at batch 4, this machine has"
        " 8.0 GiB; "
    )
    small = fakes.host(memory_bytes=4 * gib)
    assert str(why_not(fakes.resolved(batch="max"), small, large).reason).endswith(  # type: ignore[union-attr]
        "at batch 1, this machine has 4.0 GiB; not even one row fits"
    )
    assert why_not(fakes.resolved(batch=4), small, None) is None  # nobody knows: it is tried
    gpu = fakes.gpu_host(device_memory_bytes=4 * gib)
    on_gpu = why_not(fakes.resolved(device="cuda", batch=1), gpu, large)
    assert on_gpu is not None
    assert "Some GPU has 4.0 GiB" in str(on_gpu.reason)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"engine": {"name": "magic"}},
            "engine.name=magic: no such engine; there are transformers, llama_cpp, vllm, scripted",
        ),
        (
            {"engine": {"name": "transformers", "options": {"speed": 9}}},
            "engine.options.speed: transformers has no options",
        ),
        (
            {"engine": {"name": "scripted", "options": {"script": "steps often"}}},
            "engine.options.script=steps often: could not convert string to float: 'often'; want"
            ' one like "ttft 1 steps 0.5"',
        ),
        (
            {"quant": {"name": "x", "scheme": "magic", "dtype": "fp16"}},
            "quant.scheme=magic: no such scheme; engine=transformers has none, bnb_int8, bnb_4bit,"
            " torchao_int8, torchao_int4, torchao_fp8, own_int8, own_int4, checkpoint",
        ),
        (
            {"attn": {"name": "x", "implementation": "magic"}},
            "attn.implementation=magic: no such one; engine=transformers has auto, eager,"
            " sdpa,"
            " flex_attention, flash_attention_2, flash_attention_3",
        ),
        (
            {"attn": {"name": "x", "implementation": "sdpa", "backend": "magic"}},
            "attn.backend=magic: no such one; engine=transformers has math, flash, efficient,"
            " cudnn",
        ),
        (
            {"decode": {"name": "x", "strategy": "magic"}},
            "decode.strategy=magic: no such one; engine=transformers has loop, generate, static,"
            " compiled, prompt_lookup",
        ),
    ],
)
def test_a_name_that_no_registry_has_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert unknown_names(fakes.cell(**changes)) == [sentence]
    assert unknown_names(fakes.cell()) == []
