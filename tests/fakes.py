"""Small whole values for tests: each builder gives something valid and takes what the test wants to
be different.

The numbers are chosen so that what is derived from them can be computed in the head.
"""

import dataclasses
import math
from dataclasses import replace
from typing import Any

import yaml

from bench.config.cell import Cell, cell_id
from bench.config.parse import parse
from bench.config.settings import Baseline, Tracking
from bench.driver import plan
from bench.paths import CONF
from bench.record.description import Description, Matrix
from bench.record.measurement import (
    Canary,
    Choice,
    Divergence,
    Interference,
    Measurement,
    Memory,
    PhaseProfile,
    Repeat,
    Sample,
    Window,
)
from bench.record.result import (
    SCHEMA,
    Answers,
    Attestation,
    Host,
    ModelShape,
    Outcome,
    Peaks,
    Replicate,
    Result,
)
from bench.record.sweep import Provenance, Sweep

_NAMES = {
    "model": "smollm2-135m",
    "engine": "transformers",
    "quant": "bf16",
    "attn": "sdpa",
    "decode": "loop",
    "measure": "quick",
    "quality": "none",
}
_FEW_TOKENS = {"name": "few", "text": "prose", "prompt_tokens": 8, "new_tokens": 4}


def group(axis: str, name: str, **changes: Any) -> dict[str, Any]:
    """The YAML of one value in conf/, with some of its keys changed."""
    mapping: dict[str, Any] = yaml.safe_load(
        (CONF / axis / f"{name}.yaml").read_text(encoding="utf-8")
    )
    return mapping | changes


def cell_mapping(**changes: Any) -> dict[str, Any]:
    """A cell as the composed configuration has it; a group is given by its name or as a mapping."""
    mapping: dict[str, Any] = {
        **_NAMES,
        "workload": _FEW_TOKENS,
        "batch": 1,
        "device": "cpu",
        "seed": 0,
        "threads": 2,
        "cpus": "all",
    } | changes
    return {
        key: group(key, value) if isinstance(value, str) and (CONF / key).is_dir() else value
        for key, value in mapping.items()
    }


def cell(**changes: Any) -> Cell:
    """A cell like ``cell(quant="nf4", batch=8)``."""
    return parse(Cell, cell_mapping(**changes))


def resolved(**changes: Any) -> Cell:
    """The same without ``auto``, as it runs on the CPU of ``host``."""
    return plan.resolve(cell(**changes), host())


def byte_tokenizer() -> Any:
    """A tokenizer of transformers' own kind with one token a byte, to save beside a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {"eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def config_mapping(**changes: Any) -> dict[str, Any]:
    """A whole composed configuration: a cell and its settings."""
    return {
        **cell_mapping(),
        "tracking": {"name": "none", "enabled": False, "experiment": "tests"},
        "baseline": {},
        "output_dir": "outputs",
        "margin": 0.03,
        "price_per_hour": None,
        "resume": None,
        "profile": False,
        "dry_run": False,
    } | changes


def host(**changes: Any) -> Host:
    """A CPU machine on which everything but flash attention can be used."""
    values: dict[str, Any] = {
        "device": "cpu",
        "device_name": "Some CPU",
        "cpu_name": "Some CPU",
        "cpus": 2,
        "cpu_ids": (0, 1),
        "memory_bytes": 8_000_000_000,
        "device_memory_bytes": None,
        "device_uuid": None,
        "capability": None,
        "driver": None,
        "os": "Linux 6.1",
        "python": "3.11.7",
        "versions": {"torch": "2.9.0", "transformers": "5.0.0"},
        "missing": {"flash_attn": "not installed", "flash_attn_interface": "not installed"},
        "compiler": True,
    }
    return Host(**values | changes)


def gpu_host(**changes: Any) -> Host:
    """A machine with one GPU and every optional package."""
    values: dict[str, Any] = {
        "device": "cuda",
        "device_name": "Some GPU",
        "device_memory_bytes": 80_000_000_000,
        "device_uuid": "GPU-1",
        "capability": 9.0,
        "driver": "580.1",
        "missing": {},
    }
    return host(**values | changes)


def provenance(**changes: Any) -> Provenance:
    """A checkout with one changed file."""
    values: dict[str, Any] = {
        "commit": "0123abc",
        "changed": ("README.md",),
        "measuring": "ab0123456789",
        "lock": "ba9876543210",
        "packages": {"torch": "2.9.0", "tqdm": "4.66.0"},
    }
    return Provenance(**values | changes)


def sweep(*cells: str, **changes: Any) -> Sweep:
    """A sweep of these cell_ids, without tracking, baseline or calibration."""
    values: dict[str, Any] = {
        "sweep_id": "2026-01-31_12-00-00",
        "started_at": 1000.0,
        "overrides": (),
        "tracking": Tracking("none", False, "tests"),
        "baseline": Baseline(),
        "margin": 0.03,
        "calibration": {},
        "cells": cells,
        "provenance": provenance(),
    }
    return Sweep(**values | changes)


def memory(**changes: int) -> Memory:
    """No readings but those given."""
    values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Memory))
    return Memory(**values | changes)


def measurement(**changes: Any) -> Measurement:
    """Three requests of 8 + 4 tokens. Medians: TTFT 1 s, TPOT 0.5 s, end to end 4 s, none of them
    of one request."""
    values: dict[str, Any] = {
        "prompt_tokens": 8,
        "provide_s": 0.0,
        "load_s": 3.0,
        "ready_s": 0.0,
        "warmups": (Repeat(6.0, (1.0, 1.0, 1.0), 9.0), Repeat(2.0, (1.0, 1.0, 1.0), 5.0)),
        "repeats": (
            Repeat(0.5, (1.0, 1.5, 2.0), 5.0),
            Repeat(1.0, (0.25, 0.25, 0.25), 1.75),
            Repeat(2.5, (0.5, 0.5, 0.5), 4.0),
        ),
        "settled": True,
        "stopped": "target",
        "step_profile": PhaseProfile("decode", 0.4, 1, {"matrix product": 0.3, "attention": 0.1}),
        "before": Canary(read_s=0.01, matmul_s=0.002, steps_s=0.004),
        "after": Canary(read_s=0.011, matmul_s=0.002, steps_s=0.003),
        "interference": Interference(
            wall_s=10.0, throttled_s=0.0, steal_s=0.05, involuntary_switches=20, pressure_s=0.05
        ),
        "load_memory": memory(rss_peak_bytes=7000),
        "run_memory": memory(rss_peak_bytes=5000),
        "rss_before_load_bytes": 1000,
        "clock_mismatch": None,
    }
    return Measurement(**values | changes)


def description(**changes: Any) -> Description:
    """Two layers of one matrix each, 1000 bytes of weights in bf16: 800 in the table that is both
    embedding and head, 160 in the layers, 40 besides; and 16 bytes of cache a token."""
    values: dict[str, Any] = {
        "matrices": (
            Matrix("model.embed", 1, 100, 4, "embedding", stored_bytes=800, workspace_bytes=0),
            Matrix("model.layers.*.up", 2, 10, 4, "layer", stored_bytes=80, workspace_bytes=0),
        ),
        "plain_bytes": 40,
        "buffer_bytes": 0,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 1,
        "hidden": 4,
        "intermediate": 10,
        "mlp_copies": 3,
        "vocabulary": 100,
        "windows": (None, None),
        "context_tokens": 1000,
        "is_tied": True,
        "dtype_bytes": 2,
        "kv_bytes_per_token_layer": 8,
        "product_bytes": 0,
        "attention": (
            "eager",
            "sdpa",
            "flash_attention_2",
            "flash_attention_3",
            "flex_attention",
        ),
        "shares_keys": True,
        "sdpa_kernels": ("math", "flash"),
        "masked_sdpa_kernels": ("math", "flash"),
    }
    return Description(**values | changes)


def attestation(**changes: Any) -> Attestation:
    """Two layers; a step reads 1000 - 200 bytes of weights, half of them the head's, and 8 bytes a
    token of context."""
    values: dict[str, Any] = {
        "shape": ModelShape(
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=1,
            hidden=4,
            vocabulary=100,
            sliding_windows=(None, None),
        ),
        "weight_bytes": 1000,
        "gathered_bytes": 200,
        "head_bytes": 400,
        "logical_weights": 500,
        "matmul_weights": 300,
        "kv_bytes_per_token": 8,
        "executed_dtype": "bf16",
        "is_quantized": False,
        "details": {"layers": {"Linear": 14}, "attention": "sdpa"},
    }
    return Attestation(**values | changes)


def window(**changes: Any) -> Window:
    """255 positions whose NLL is ln 8 here and ln 4 in the reference."""
    values: dict[str, Any] = {
        "text": "alice",
        "bytes": 1020,
        "tokens": 255,
        "kl_nats": 0.5,
        "kl_median_nats": 0.25,
        "kl_p99_nats": 2.0,
        "top1_agreement": 0.75,
        "nll_nats": math.log(8),
        "reference_nll_nats": math.log(4),
        "floor_kl_nats": 0.125,
    }
    return Window(**values | changes)


def sample(*tokens: int, prompt: str = "why?") -> Sample:
    """An answer that is its tokens in words."""
    return Sample(prompt, " ".join(map(str, tokens)), tokens, ended=True)


def divergence(
    *windows: Window, answers: tuple[Sample, ...] = (), choices: tuple[Choice, ...] = ()
) -> Divergence:
    return Divergence("fp32", False, windows or (window(), window()), answers, choices)


def spread_divergence(kl_nats: float, floor_kl_nats: float = 0.125) -> Divergence:
    """Of three windows around this mean, by a tenth of the floor."""
    steps = (kl_nats + i * floor_kl_nats / 10 for i in (-1, 0, 1))
    return divergence(*(window(kl_nats=kl, floor_kl_nats=floor_kl_nats) for kl in steps))


def process(**changes: Any) -> Replicate:
    """One process of a cell; its measurement takes the changes."""
    return Replicate(
        started_at=1_750_000_000.25,
        wall_s=12.5,
        phases_s={"load": 3.0, "measure": 9.5},
        measurement=measurement(**changes),
    )


def answers(**changes: Any) -> Answers:
    """What a quality job found: nothing but what is given."""
    return Answers(**{"outcome": Outcome("ok")} | changes)


def result(**changes: Any) -> Result:
    """What was measured of a cell, by one process (``measurement``); nothing was when the outcome
    is not ok. ``samples``, ``divergence``, ``choices``, ``strided`` and ``tasks`` become its
    answers."""
    of: Cell = changes.get("cell") or cell()
    ok = changes.get("outcome", Outcome("ok")).status == "ok"
    asked = ("samples", "divergence", "choices", "strided", "tasks")
    said = {name: changes.pop(name) for name in asked if name in changes}
    of_it = changes.pop("measurement", measurement())
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "cell_id": cell_id(of),
        "resume_key": "0123456789ab",
        "sweep_id": "2026-01-31_12-00-00",
        "asked": of,
        "cell": of,
        "host": host(),
        "outcome": Outcome("ok"),
        "started_at": 1_750_000_000.25,
        "replicates": (replace(process(), measurement=of_it),) if ok else (),
        "predicted_bytes": 900,
        "peaks": Peaks(
            read_bytes_s=4000.0,
            flops={"bf16": 40_000.0},
            source="data sheet: of a toy",
            measured=False,
        ),
        "attestation": attestation() if ok else None,
        "answers": answers(**said) if said else None,
    }
    return Result(**values | changes)


def in_sweep(of: Result, sweep_id: str) -> Result:
    return replace(of, sweep_id=sweep_id)


def paced(of: Cell, *steps_s: float, **changes: Any) -> Result:
    """A result of a cell with one process for each of ``steps_s``, which is the time of its every
    decode step."""
    steady = [Repeat(1.0, (step_s, step_s, step_s), 1.0 + 3 * step_s) for step_s in steps_s]
    return result(cell=of, replicates=tuple(process(repeats=(each,)) for each in steady), **changes)
