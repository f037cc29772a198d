"""llama-bench's ``-o json`` and ``-o jsonl``: one test of it is one configuration.

Its ``pp`` is a prefill of made-up tokens and its ``tg`` a number of decode steps, both of a single
sequence and without choosing a token. So a prefill gives a throughput and no time to first token;
``n_batch`` is tokens that go through at once, and no batch of sequences. A test has its repetitions
in one process, one after another.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.analysis.foreign.file import File
from bench.config.parse import NOT_NEGATIVE, POSITIVE, within
from bench.record.foreign import Foreign

# llama.cpp's names of a file's type in ``model_type``, by ours
_TYPES = {
    "all F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "Q8_0": "gguf_q8_0",
    "Q6_K": "gguf_q6_k",
    "Q5_K - Medium": "gguf_q5_k_m",
    "Q5_1": "gguf_q5_1",
    "Q5_0": "gguf_q5_0",
    "Q4_K - Medium": "gguf_q4_k_m",
    "Q4_1": "gguf_q4_1",
    "Q4_0": "gguf_q4_0",
}
# What changes a number besides model, hardware and lengths
_SETTINGS = (
    *("backends", "n_threads", "n_gpu_layers", "n_batch", "n_ubatch", "type_k", "type_v"),
    *("flash_attn", "n_depth"),
)
_IN_NAME = re.compile(r"[-._](?:F32|F16|BF16|I?Q\d[0-9A-Z_]*|MXFP4)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Test:
    """What is wanted of a test's fields."""

    n_prompt: int = field(metadata=NOT_NEGATIVE)
    n_gen: int = field(metadata=NOT_NEGATIVE)
    avg_ns: float = field(metadata=POSITIVE)
    avg_ts: float | None = field(default=None, metadata=POSITIVE)
    samples_ns: tuple[float, ...] = field(default=(), metadata=within(each=POSITIVE))
    build_commit: str | None = None
    build_number: int | None = None
    cpu_info: str | None = None
    gpu_info: str | None = None
    model_filename: str | None = None
    model_type: str | None = None
    model_size: float | None = field(default=None, metadata=POSITIVE)
    backends: str | None = None
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    type_k: str | None = None
    type_v: str | None = None
    flash_attn: int | bool | None = None
    n_depth: int | None = None


def is_it(content: Any) -> bool:
    """Whether these are llama-bench's tests."""
    return bool(content) and all(
        isinstance(test, Mapping) and {"n_prompt", "n_gen", "avg_ns"} <= test.keys()
        for test in content
    )


def read(file: File, tests: Sequence[Mapping[str, Any]]) -> list[Foreign]:
    """Each test as a configuration. Raises: ConfigError when a field is of another type."""
    return [_configuration(file, file.fields(_Test, test, "llama-bench")) for test in tests]


def _configuration(file: File, test: _Test) -> Foreign:
    given = {name: getattr(test, name) for name in _SETTINGS}
    kind = _kind(test)
    times = f"mean of {len(test.samples_ns)} repetitions" if test.samples_ns else "a mean"
    return Foreign(
        file=file.name,
        digest=file.digest,
        tool="llama-bench",
        version=_build(test),
        protocol=f"{kind}; {times} in one process",
        hardware=_hardware(test),
        model=model_name(test.model_filename) if test.model_filename else None,
        engine="llama_cpp",
        quant=_quant(test),
        batch=1,
        prompt_tokens=test.n_prompt,
        new_tokens=test.n_gen,
        settings={name: str(value) for name, value in given.items() if value is not None},
        values=_values(test),
        samples=_samples(test),
        unknown=("warm-up", "dtype of products", *_undefined(test)),
    )


def _kind(test: _Test) -> str:
    if not test.n_gen:
        return "prefill of one made-up prompt, no token chosen"
    if not test.n_prompt:
        return "decode steps of one sequence, no token chosen"
    return "prefill of one made-up prompt and a decode step for each new token, none chosen"


def _undefined(test: _Test) -> tuple[str, ...]:
    return ("time to first token",) if test.n_prompt else ()


def _values(test: _Test) -> dict[str, float]:
    seconds = test.avg_ns / 1e9
    values: dict[str, float] = {}
    if test.n_prompt and test.n_gen:
        values |= {"e2e_s": seconds, "output_tok_s": test.n_gen / seconds}
    elif test.n_prompt:
        values["prefill_tok_s"] = test.avg_ts or test.n_prompt / seconds
    elif test.n_gen:
        values["tpot_s"] = seconds / test.n_gen
        values["decode_tok_s"] = test.avg_ts or test.n_gen / seconds
    return values | ({} if test.model_size is None else {"weight_bytes": test.model_size})


def _samples(test: _Test) -> dict[str, tuple[float, ...]]:
    seconds = [ns / 1e9 for ns in test.samples_ns]
    if not seconds:
        return {}
    if test.n_prompt and test.n_gen:
        return {"e2e_s": tuple(seconds)}
    if test.n_prompt:
        return {"prefill_tok_s": tuple(test.n_prompt / s for s in seconds)}
    return {"tpot_s": tuple(s / test.n_gen for s in seconds)} if test.n_gen else {}


def _build(test: _Test) -> str | None:
    parts = (test.build_number, test.build_commit)
    return " ".join(str(part) for part in parts if part is not None) or None


def _hardware(test: _Test) -> str | None:
    """The GPU's name where layers went to one."""
    return (test.gpu_info if test.n_gpu_layers != 0 else None) or test.cpu_info or None


def _quant(test: _Test) -> str | None:
    """Ours where the type is one of ours; else what the file says, like ``qwen2 7B IQ4_XS``."""
    if test.model_type is None:
        return None
    mostly = test.model_type.replace("mostly ", "")  # until 2024
    ours = (name for type_, name in _TYPES.items() if mostly.endswith(f" {type_}"))
    return next(ours, test.model_type)


def model_name(file: str) -> str:
    """What a GGUF file is called, without its folder and the type of its weights."""
    name = re.split(r"[/\\]", file)[-1].removesuffix(".gguf")
    return _IN_NAME.sub("", name)
