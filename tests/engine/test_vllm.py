"""A third real engine: its rules here, its numbers where it is installed (make engine-vllm)."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell
from bench.driver.process import Task, run_isolated
from bench.engine.protocol import ENGINES
from bench.engine.vllm import ENGINE
from bench.errors import CellFailure
from bench.paths import ROOT
from tests import fakes

installed = pytest.mark.skipif(
    not (ROOT / ".engines/vllm/.installed").is_file(), reason="make engine-vllm has not been run"
)
CHECKPOINT = fakes.group("quant", "checkpoint")


@pytest.fixture(autouse=True)
def _threads_that_wait_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they hardly get on beside other tests."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def cell(engine: str = "vllm", **changes: Any) -> Cell:
    workload = {"name": "few", "text": "prose", "prompt_tokens": 32, "new_tokens": 8}
    return fakes.cell(**{"engine": engine, "quant": "fp32", "workload": workload} | changes)


def run(name: str, tmp_path: Path, of: Cell, *arguments: Any, python: str | None = None) -> Any:
    task = Task(name, (ENGINES[of.engine.name], of, *arguments), python=python or of.engine.python)
    return run_isolated(task, lambda *_: None, tmp_path / "log")


def test_the_driver_can_import_it_without_its_libraries() -> None:
    code = (
        "import sys, bench.engine.vllm\n"
        "print(sorted({'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"quant": "nf4"},
            "quant.scheme=bnb_4bit: no such one; engine=vllm has only none, checkpoint",
        ),
        ({"attn": "eager"}, "attn.implementation=eager: no such one; engine=vllm has only sdpa"),
        ({"attn": "sdpa_math"}, "attn.backend=math: no such one; engine=vllm has only null"),
        (
            {"decode": "generate"},
            "decode.strategy=generate: no such one; engine=vllm has only loop",
        ),
        (
            {"engine": {"name": "vllm", "options": {"kv": "q8_0"}}},
            "engine.options.kv=q8_0: want one of auto, fp8_e4m3, fp8_e5m2",
        ),
        (
            {"engine": {"name": "vllm", "options": {"threads": 2}}},
            "engine.options.threads=2: unknown key; known are kv",
        ),
        (
            {"quant": fakes.group("quant", "fp16", layers={"*": {"name": "x", "scheme": "none"}})},
            "quant.layers: engine=vllm takes a model as its folder has it; want none",
        ),
    ],
)
def test_names_that_it_does_not_have(changes: dict[str, Any], sentence: str) -> None:
    assert ENGINE.unknown_names(cell(**changes)) == [sentence]
    assert ENGINE.unknown_names(cell()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cuda"}, "engine=vllm is vLLM's build for CPUs: device=cpu"),
        (
            {"model": fakes.group("model", "gpt2", weights="random")},
            "engine=vllm has no random weights: pretrained ones",
        ),
        (
            {"engine": {"name": "vllm", "python": "no/such/python"}},
            "engine=vllm lives in an environment of its own: make engine-vllm",
        ),
    ],
)
def test_what_it_cannot_run_is_skipped(changes: dict[str, Any], reason: str) -> None:
    outcome = ENGINE.why_not(cell(**changes), fakes.host())
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("skipped", reason)


def test_a_model_whose_files_it_cannot_make_says_what_to_do() -> None:
    of = cell()
    unknown = dataclasses.replace(of, model=dataclasses.replace(of.model, name="new"))
    with pytest.raises(CellFailure, match="run `python -m bench fetch new` once") as caught:
        ENGINE.provide(unknown, lambda _: None)
    assert caught.value.status == "failed"


@pytest.mark.parametrize(
    ("config", "quant", "sentence"),
    [
        ('{"quantization_config": {"quant_method": "awq"}}', CHECKPOINT, "is quantized by awq: "),
        ('{"quantization_config": {"quant_method": "awq"}}', "fp16", "is quantized by awq: "),
        ("{}", CHECKPOINT, "is not quantized: engine=vllm takes quant=fp32, fp16, bf16 of plain"),
    ],
)
def test_a_folder_that_was_quantized_otherwise_is_skipped(
    config: str, quant: Any, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    model = {"name": "mine", "path": str(tmp_path)}
    with pytest.raises(CellFailure, match=sentence) as caught:
        ENGINE.provide(cell(model=model, quant=quant), lambda _: None)
    assert caught.value.status == "skipped"


@installed
@pytest.mark.parametrize(("quant", "size"), [("fp32", 4), ("bf16", 2)])
def test_a_timed_process_is_what_it_says(quant: str, size: int, tmp_path: Path) -> None:
    found = run("bench.meter.cell:measure_cell", tmp_path, cell(quant=quant, batch=2))
    attested, measured = found.attestation, found.measurement
    assert attested.mismatches == ()
    assert attested.logical_weights == 134_515_008
    assert attested.weight_bytes == size * attested.logical_weights
    layer = 576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536
    assert attested.matmul_weights == 30 * layer
    assert (attested.head_bytes, attested.gathered_bytes) == (size * 49152 * 576, 0)
    assert attested.kv_bytes_per_token == 30 * 2 * 3 * 64 * size
    assert (attested.executed_dtype, attested.is_quantized) == (quant, False)
    assert attested.details["layers"] == {
        "QKVParallelLinear": 30,
        "RowParallelLinear": 60,
        "MergedColumnParallelLinear": 30,
    }
    assert attested.details["threads"] == cell().threads
    assert measured is not None
    assert measured.prompt_tokens == 32
    assert len(measured.repeats[0].decode_step_s) == 7


@installed
def test_keys_and_values_in_8_bits_take_a_byte_each(tmp_path: Path) -> None:
    engine = fakes.group("engine", "vllm", options={"kv": "fp8_e4m3"})
    asked = cell(engine=engine, quant="bf16")
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        with pytest.raises(CellFailure, match="requires x86 with AVX-512") as caught:
            run("tests.engine.foreign:attested", tmp_path, asked)
        assert caught.value.status == "skipped"
        return
    attested = run("tests.engine.foreign:attested", tmp_path, asked)
    assert attested.mismatches == ()
    assert attested.kv_bytes_per_token == 30 * 2 * 3 * 64
    assert attested.details["kv_cache"] == "fp8_e4m3"


@installed
def test_each_row_of_a_batch_gets_the_tokens_that_transformers_chooses(tmp_path: Path) -> None:
    task = "tests.engine.foreign:greedy_tokens"
    ours = run(task, tmp_path, cell("transformers", batch=3), python=sys.executable)
    assert run(task, tmp_path, cell(batch=3)) == ours
    assert len({tuple(row) for row in ours}) == 3


@installed
def test_its_lines_load_the_very_model() -> None:
    of = cell()
    done = subprocess.run(
        [str(of.engine.python), "-c", ENGINE.lines(of)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RequestOutput(" in done.stdout


@installed
def test_its_predictions_are_those_of_transformers(tmp_path: Path) -> None:
    quality = fakes.group("quality", "samples", text_tokens=256, window_tokens=128, prompts=None)
    reference, file = cell("transformers", quality=quality), str(tmp_path / "reference")
    task = "bench.meter.reference:keep_reference"
    # No noise floor is asked for: the same dtype again is the cheapest
    run(task, tmp_path, reference, reference.quant, file, python=sys.executable)
    quality |= {"prompts": "basic", "max_new_tokens": 8}
    answers = run("bench.meter.answers:answer_cell", tmp_path, cell(quality=quality), file)
    assert [window.tokens for window in answers.divergence.windows] == [127, 127]
    for window in answers.divergence.windows:
        assert window.kl_nats < 1e-7  # 2.5e-11 on 2,040 tokens, 2026-11-26
        assert window.top1_agreement == 1
    assert len(answers.samples) == 8


@installed
def test_four_bits_that_this_project_exported_run_where_vllm_has_products_for_them(
    tmp_path: Path,
) -> None:
    exported = tmp_path / "int4"
    of = cell("transformers", quant="int4_g64")
    task = Task("bench.engine.transformers.own.export:export_cell", (of, str(exported)))
    run_isolated(task, lambda *_: None, tmp_path / "log")
    model = {"name": "int4", "path": str(exported)}
    asked = cell(model=model, quant={**CHECKPOINT, "dtype": "bf16"})
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        with pytest.raises(CellFailure, match=r"need a processor with AVX-512, this") as caught:
            run("tests.engine.foreign:attested", tmp_path, asked)
        assert caught.value.status == "skipped"
        return
    attested = run("tests.engine.foreign:attested", tmp_path, asked)
    assert attested.mismatches == ()
    assert attested.is_quantized
    assert attested.logical_weights == 134_515_008
