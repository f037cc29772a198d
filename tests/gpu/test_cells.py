"""Whole cells on the GPU: every quantization and every attention, running out of memory, and a
sweep from outside."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell
from bench.driver import plan
from bench.driver.policy import Records, reference_cells, sixteen_bits, unquantized
from bench.engine.protocol import Announce
from bench.errors import CellFailure
from bench.meter.answers import answer_cell
from bench.meter.cell import describe_cells, profile_cell
from bench.meter.reference import keep_reference
from bench.paths import CONF, ROOT
from bench.record.measurement import Profile
from bench.record.result import Answers, Findings, Host
from bench.store.files import read_results
from tests import fakes
from tests.engine.quants import QUANTS
from tests.gpu.running import PLACE, QUICK, RANDOM_GPT2, few_repeats, gpu_cell, measured, run

pytestmark = pytest.mark.gpu


def test_a_profile_gives_kernels_the_kind_of_what_launched_them(host: Host, tmp_path: Path) -> None:
    cell = few_repeats(gpu_cell(host, model=RANDOM_GPT2, quant="fp16"))
    trace, log = tmp_path / "trace.json.gz", tmp_path / "log.txt"
    profile: Profile | None = run(profile_cell, PLACE, cell, str(trace), log=log)
    assert profile is not None
    assert trace.is_file()
    for phase in profile.phases:
        assert sum(phase.seconds.values()) == pytest.approx(phase.wall_s)
        assert phase.seconds["matrix product"] > 0
        assert phase.seconds["attention"] > 0
        assert phase.seconds["idle"] >= 0
        assert "interpreter" not in phase.seconds  # of the device, not of the host


@pytest.mark.parametrize(
    ("quant", "least", "most"), [("fp16", -1e-6, 2e-4), ("bf16", 2e-4, 1e-2), ("nf4", 0.05, 1.0)]
)
def test_divergence_is_read_on_the_gpu(
    host: Host, smollm2: str, tmp_path: Path, quant: str, least: float, most: float
) -> None:
    asked = fakes.group("quality", "samples", text_tokens=512, max_new_tokens=8)
    cell = few_repeats(gpu_cell(host, model=smollm2, quant=quant, quality=asked))
    reference = next(reference_cells(Records({}, {"transformers": host}, {}), cell))
    assert isinstance(reference, Cell)
    assert reference.quant.name == "fp32"
    file, log = str(tmp_path / "reference.safetensors"), tmp_path / "log.txt"
    floor = unquantized(cell, sixteen_bits(cell, host)).quant
    run(keep_reference, PLACE, reference, floor, file, log=log)
    answers: Answers = run(answer_cell, PLACE, replace(cell, batch=1), file, log=log)
    assert answers.divergence is not None
    for window in answers.divergence.windows:
        assert least <= window.kl_nats <= most
        assert 0 <= window.floor_kl_nats < 0.05


def test_what_the_host_needs_to_enqueue_a_step_is_read(host: Host, tmp_path: Path) -> None:
    cell = few_repeats(gpu_cell(host, model=RANDOM_GPT2, quant="fp16", batch=256))
    found = measured(cell, tmp_path / "log.txt")
    assert found.measurement is not None
    for each in found.measurement.repeats:
        assert each.enqueue_s is not None
        assert 0 < each.enqueue_s < each.e2e_s


ATTNS = sorted({file.stem for file in (CONF / "attn").glob("*.yaml")} - {"auto"})
LONG = QUICK | {"prompt_tokens": 512, "new_tokens": 4}
_LINEAR = 7 * 30  # projections of smollm2-135m's layers
_CLASSES = {
    "none": "Linear",
    "bnb_int8": "Linear8bitLt",
    "bnb_4bit": "Linear4bit",
    "torchao_int8": "Linear of Int8Tensor",
    "torchao_int4": "Linear of Int4TilePackedTo4dTensor",
    "torchao_fp8": "Linear of Float8Tensor",
    "own_int8": "Int8Linear",
    "own_int4": "Int4Linear",
}
# A part of the operator's name that must have run; None where transformers' own operations do it,
# or compiled code.
OPERATORS = {
    "eager": None,
    "flex": None,
    "sdpa": "_scaled_dot_product",
    "sdpa_packed": "_scaled_dot_product",
    "sdpa_math": "_scaled_dot_product_attention_math",
    "sdpa_flash": "_scaled_dot_product_flash_attention",
    "sdpa_efficient": "_scaled_dot_product_efficient_attention",
    "sdpa_cudnn": "_scaled_dot_product_cudnn_attention",
    "flash2": "flash_attn::",
    "flash3": "flash_attn_3::",
}


def places(announce: Announce, cell: Cell) -> set[str]:
    """Devices of everything that the loaded model stores, quantization state included, after a
    forward."""
    import torch

    from bench.engine import sources
    from bench.engine.transformers.load import load
    from bench.engine.transformers.packed import kind, own_tensors
    from bench.engine.transformers.schemes import SCHEMES

    model, scheme = load(cell, sources.fetch(cell.model)), SCHEMES[cell.quant.scheme]
    with torch.inference_mode():
        model(torch.zeros(1, 4, dtype=torch.int64, device="cuda"))
    own = [tensor for module in model.modules() for tensor in own_tensors(module)]
    layers = [m for m in model.modules() if kind(m) in scheme.layer_classes]
    state = [tensor for layer in layers for tensor in scheme.state(layer)]
    return {str(tensor.device) for tensor in (*own, *state)}


def after_loading(announce: Announce, cell: Cell) -> tuple[int, int]:
    """What the allocator has given out and holds once a session is ready."""
    import numpy as np
    import torch

    from bench.meter.cell import opened

    session = opened(announce, PLACE, cell)
    session.ready(np.zeros((1, 4), dtype=np.int64), 2)
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def load_in_little_memory(announce: Announce, cell: Cell) -> None:
    import torch

    from bench.meter.cell import opened

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(200 * 2**20 / total)  # of 513 MiB of weights
    opened(announce, PLACE, cell)


def sane(findings: Findings, cell: Cell) -> None:
    """What holds for every cell that was measured on a GPU."""
    found, measurement = findings.attestation, findings.measurement
    assert measurement is not None
    memory = measurement.run_memory
    assert memory.allocated_peak_bytes is not None
    assert memory.reserved_peak_bytes is not None
    assert found.weight_bytes <= memory.allocated_peak_bytes <= memory.reserved_peak_bytes
    # NVML may be absent; it reads the whole device, beside other tests theirs too
    if memory.device_used_bytes is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        assert memory.reserved_peak_bytes <= memory.device_used_bytes
    assert len(measurement.repeats) == cell.measure.repeats
    assert all(
        len(repeat.decode_step_s) == cell.workload.new_tokens - 1 for repeat in measurement.repeats
    )
    assert measurement.clock_mismatch is not None


@pytest.mark.parametrize("quant", QUANTS)
def test_every_quantization_is_what_it_says_and_lies_on_the_device(
    host: Host, smollm2: str, quant: str, log: Path
) -> None:
    cell = few_repeats(gpu_cell(host, model=smollm2, quant=quant))
    obstacle = plan.why_not(cell, host, None)
    is_missing = quant.startswith("torchao") and "torchao" in host.missing
    if is_missing or (obstacle is not None and (host.capability or 0) < 8.0):
        pytest.skip(str(obstacle and obstacle.reason))
    assert obstacle is None
    findings = measured(cell, log)
    sane(findings, cell)
    found = findings.attestation
    assert found.details["layers"][_CLASSES[cell.quant.scheme]] >= _LINEAR
    assert found.logical_weights == 134_515_008
    if cell.quant.scheme == "bnb_4bit":
        assert found.details["compute_dtypes"] == ["torch.float16"]
    if quant == "int8":
        assert found.outlier_share is not None
        assert 0 < found.outlier_share < 0.5
    assert run(places, cell, log=log) == {"cuda:0"}


def test_fewer_bits_are_fewer_bytes(host: Host, smollm2: str, log: Path) -> None:
    sizes = [
        measured(
            few_repeats(gpu_cell(host, model=smollm2, quant=quant)), log
        ).attestation.weight_bytes
        for quant in ("fp32", "fp16", "int8", "nf4", "nf4_double")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


@pytest.mark.parametrize("attn", ATTNS)
def test_every_attention_runs_with_its_operator_or_is_skipped_with_the_reason(
    host: Host, smollm2: str, attn: str, log: Path
) -> None:
    cell = few_repeats(gpu_cell(host, model=smollm2, quant="fp16", attn=attn))
    (description,) = run(describe_cells, PLACE, (cell,), log=log)
    obstacle = plan.why_not(cell, host, description)
    if attn in ("sdpa_math", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn") and obstacle is None:
        assert cell.attn.backend in description.sdpa_kernels
    if obstacle is not None:
        assert obstacle.status == "skipped"
        if attn == "sdpa_efficient":  # smollm2 has grouped queries, which torch 2.13's refuses
            assert "does not take model=smollm2-135m's attention here" in str(obstacle.reason)
            pytest.skip(str(obstacle.reason))
        package, capability = cell.attn.requires.package, cell.attn.requires.capability
        lacks_package = (
            package is not None and package in host.missing and package in str(obstacle.reason)
        )
        below = cell.attn.requires.below_capability
        has = host.capability or 0
        lacks_capability = (capability is not None and has < capability) or (
            below is not None and has >= below
        )
        lacks_triton = attn == "flex" and host.triton is not None
        assert lacks_package or lacks_capability or lacks_triton, obstacle.reason
        pytest.skip(str(obstacle.reason))
    findings = measured(cell, log)
    sane(findings, cell)
    found, operator = findings.attestation, OPERATORS[attn]
    assert found.details["attention"] == cell.attn.implementation
    ran = found.details["attention_operators"]
    if operator is None:
        assert not [name for name in ran if "scaled_dot_product" in name]
    else:
        assert any(operator in name for name in ran), ran


@pytest.mark.parametrize("attn", ["sdpa_flash", "sdpa_cudnn", "flash2", "flash3"])
def test_attention_that_takes_16_bits_only_is_skipped_in_fp32(host: Host, attn: str) -> None:
    obstacle = plan.why_not(gpu_cell(host, model=RANDOM_GPT2, quant="fp32", attn=attn), host, None)
    assert obstacle is not None
    assert obstacle.status == "skipped"


@pytest.mark.parametrize("quant", ["fp16", "nf4", "nf4_double", "int8_nodecomp", "int4_g64"])
def test_random_weights_are_quantized_on_the_device(host: Host, quant: str, log: Path) -> None:
    cell = few_repeats(gpu_cell(host, model=RANDOM_GPT2, quant=quant, batch=2))
    findings = measured(cell, log)
    sane(findings, cell)
    assert run(places, cell, log=log) == {"cuda:0"}
    if cell.quant.scheme != "none":
        # Conv1D layers, all replaced
        assert findings.attestation.details["layers"][_CLASSES[cell.quant.scheme]] == 4 * 12


@pytest.mark.parametrize("quant", ["fp16", "nf4", "int4_g64"])
@pytest.mark.parametrize("loop", ["loop", "generate", "static", "compiled"])
@pytest.mark.parametrize("attn", ["sdpa", "sdpa_packed"])
def test_every_loop_is_timed(
    host: Host, smollm2: str, attn: str, loop: str, quant: str, log: Path
) -> None:
    shapes = {"decode": loop, "batch": 4, "attn": attn}
    cell = few_repeats(gpu_cell(host, model=smollm2, quant=quant, **shapes))
    findings = measured(cell, log)
    sane(findings, cell)
    found = findings.attestation.details.get("decode", {})
    print(host.device_name, loop, quant, found)
    if loop == "compiled":
        assert (found["graphs"], found["graph_breaks"], found["recompilations"]) == (1, 0, 0)


def test_guesses_are_checked_on_the_gpu(host: Host, smollm2: str, log: Path) -> None:
    cell = gpu_cell(host, model=smollm2, quant="fp32", decode="prompt_lookup", workload="rewrite")
    findings = measured(few_repeats(cell), log)
    assert findings.attestation.details["decode"]["first_token_unlike_loop"] is None
    assert findings.attestation.details["decode"]["accepted_share"] > 0.5


def test_clocks_agree_within_one_percent_in_a_measured_cell(
    host: Host, smollm2: str, log: Path
) -> None:
    findings = measured(few_repeats(gpu_cell(host, model=smollm2, quant="fp16"), repeats=5), log)
    assert findings.measurement is not None
    assert findings.measurement.clock_mismatch is not None
    assert findings.measurement.clock_mismatch < 0.01


def test_a_batch_whose_cache_cannot_fit_is_oom(host: Host, log: Path) -> None:
    assert host.device_memory_bytes is not None
    # Of one sequence of gpt2: layers, keys and values, width, fp16, tokens
    cache_bytes = 12 * 2 * 768 * 2 * 960
    workload: dict[str, Any] = QUICK | {"prompt_tokens": 960, "new_tokens": 4}
    cell = gpu_cell(host, model=RANDOM_GPT2, quant="fp16", workload=workload)
    with pytest.raises(CellFailure) as caught:
        measured(replace(cell, batch=2 * host.device_memory_bytes // cache_bytes), log)
    assert caught.value.status == "oom"
    assert "out of memory" in caught.value.reason.lower()


def test_the_largest_batch_is_a_limit_of_memory(host: Host, smollm2: str, tmp_path: Path) -> None:
    words = [f"model={smollm2}", "quant=fp16", "batch=max", "workload.prompt_tokens=1024"]
    words += ["workload.new_tokens=4", "measure.repeats=1", "quality=none", "tracking=none"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words, f"output_dir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"BENCH_LOCK": str(tmp_path / "lock")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "sweeps").iterdir()
    (result,) = read_results(folder)
    (measurement,) = result.measurements
    assert host.device_memory_bytes is not None
    assert measurement.run_memory.allocated_peak_bytes is not None
    assert measurement.run_memory.allocated_peak_bytes > 0.7 * host.device_memory_bytes


def test_products_with_four_bits_are_told_from_unpacking_them(
    host: Host, smollm2: str, tmp_path: Path
) -> None:
    cell = few_repeats(gpu_cell(host, model=smollm2, quant="nf4", workload=LONG, batch=8))
    trace, log = tmp_path / "trace.json.gz", tmp_path / "log.txt"
    profile: Profile | None = run(profile_cell, PLACE, cell, str(trace), log=log)
    assert profile is not None
    prefill, decode = (phase.seconds for phase in profile.phases)
    # 8 x 512 rows are more than its fused kernel takes (bitsandbytes 0.50.2: 1536)
    assert prefill["dequantization"] > 0
    assert prefill["matrix product"] > 0
    assert decode.get("product with packed weights", 0.0) + decode.get("dequantization", 0.0) > 0


def test_the_gpus_state_is_read_around_the_timed_requests(
    host: Host, smollm2: str, log: Path
) -> None:
    found = measured(few_repeats(gpu_cell(host, model=smollm2, quant="fp16")), log).measurement
    assert found is not None
    if found.gpu_before is None:
        pytest.skip("no NVML here")
    assert found.gpu_after is not None
    assert found.gpu_before.sm_clock_hz is None or found.gpu_before.sm_clock_hz > 1e8
    for name, seconds in found.gpu_before.held_down_s.items():
        assert found.gpu_after.held_down_s[name] >= seconds


def test_what_loading_left_is_given_back_before_the_first_request(
    host: Host, smollm2: str, log: Path
) -> None:
    for quant in ("fp16", "nf4"):
        cell = few_repeats(gpu_cell(host, model=smollm2, quant=quant))
        allocated, reserved = run(after_loading, cell, log=log)
        assert reserved - allocated < 64 * 2**20, quant


def test_no_room_for_weights_that_are_read_is_oom(host: Host, smollm2: str, log: Path) -> None:
    with pytest.raises(CellFailure) as caught:
        run(load_in_little_memory, gpu_cell(host, model=smollm2, quant="fp32"), log=log)
    assert caught.value.status == "oom"


def test_the_headline_command_measures_on_the_gpu(host: Host, tmp_path: Path) -> None:
    overrides = ["model=tiny", "quant=fp16,nf4", "batch=1,2", f"output_dir={tmp_path}"]
    environment = os.environ | {"BENCH_LOCK": str(tmp_path / "lock")}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "-m", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "initialized CUDA" not in done.stderr  # the notice of falling back to spawn
    (folder,) = (tmp_path / "sweeps").iterdir()
    results = list(read_results(folder))
    assert [(result.cell.quant.name, result.cell.batch) for result in results] == [
        ("fp16", 1),
        ("fp16", 2),
        ("nf4", 1),
        ("nf4", 2),
    ]
    for result in results:
        assert result.outcome.status == "ok", result.outcome
        assert (result.cell.device, result.host.device_uuid) == ("cuda", host.device_uuid)
        (measurement,) = result.measurements
        assert measurement.run_memory.allocated_peak_bytes
