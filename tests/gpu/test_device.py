"""Which device it is, that forked processes can use it, and what is read about its memory."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest

from bench.engine.protocol import Announce
from bench.errors import CellFailure
from bench.paths import ROOT
from bench.record.measurement import Canary, Memory
from bench.record.result import Host, Peaks
from tests.gpu.running import RANDOM_GPT2, few_repeats, gpu_cell, measured, run

pytestmark = pytest.mark.gpu

GIB = 2**30
_SLACK = 128 * 2**20  # what a desktop or a monitor may allocate meanwhile


@pytest.fixture(autouse=True)
def nvml() -> object:
    pynvml.nvmlInit()
    yield
    pynvml.nvmlShutdown()


def used_bytes(host: Host) -> int:
    return int(
        pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(host.device_uuid)).used
    )


def wait_until_free(host: Host, baseline: int) -> None:
    deadline = time.monotonic() + 20
    while used_bytes(host) > baseline + _SLACK:
        assert time.monotonic() < deadline, (
            f"{used_bytes(host):,} bytes are in use, {baseline:,} were before"
        )
        time.sleep(0.2)


def product(announce: Announce) -> tuple[int, float]:
    import torch

    return os.getpid(), float(
        (torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum()
    )


def bad_fork(announce: Announce) -> bool:
    import torch

    return bool(torch.cuda._is_in_bad_fork())


def context_after_reading(announce: Announce) -> tuple[str, int | None, bool]:
    import torch

    from bench.engine.transformers.device import accelerator
    from bench.meter.nvml import nvml_uuid
    from bench.meter.nvml import used_bytes as nvml_used_bytes

    device = accelerator()
    assert device is not None
    uuid = nvml_uuid(device.uuid)
    used = nvml_used_bytes(uuid)
    has_context = torch._C._cuda_hasPrimaryContext  # type: ignore[attr-defined]  # only in CUDA builds
    return uuid, used, bool(has_context(torch.cuda.current_device()))


class Allocator:
    """As much of a session as the memory of a phase asks."""

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        from bench.engine.transformers.device import allocated_peaks

        return allocated_peaks()


def allocate(announce: Announce) -> tuple[Memory, Memory]:
    import torch

    from bench.engine.transformers.device import accelerator
    from bench.meter.memory import PhaseMemory

    phase, session = PhaseMemory(accelerator()), Allocator()
    phase.begin()
    block = torch.ones(GIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    with_block = phase.end(session)  # type: ignore[arg-type]
    del block
    torch.cuda.empty_cache()
    session.allocated_peaks()
    phase.begin()
    torch.ones(1024, device="cuda")
    return with_block, phase.end(session)  # type: ignore[arg-type]


def multiply_until_killed(announce: Announce, number: int) -> None:
    import torch

    matrix = torch.ones(8192, 8192, dtype=torch.float16, device="cuda")
    block = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    announce("measure", "")
    for step in range(10**9):
        matrix @ matrix
        if number and step == 200:  # many are still queued
            os.kill(os.getpid(), number)
    del block


def index_out_of_range(announce: Announce) -> None:
    import torch

    torch.arange(8, device="cuda")[torch.tensor([10**6], device="cuda")]
    torch.cuda.synchronize()


def precision(announce: Announce, matrix_of: float) -> tuple[float, dict[str, str]]:
    import torch

    from bench.engine.transformers.device import flags_in_force, set_flags

    set_flags(1)
    found = torch.full((256, 256), matrix_of, device="cuda") @ torch.eye(256, device="cuda")
    return float(found.max()), flags_in_force()


def test_the_fork_server_is_used_and_its_children_can_use_cuda(
    server_notice: str | None, log: Path
) -> None:
    assert server_notice is None
    assert run(bad_fork, log=log) is False
    (first, total), (second, _) = run(product, log=log), run(product, log=log)
    assert total == 64**3
    assert first != second


def test_nvml_and_torch_speak_of_the_same_device(host: Host) -> None:
    handle = pynvml.nvmlDeviceGetHandleByUUID(host.device_uuid)
    assert pynvml.nvmlDeviceGetUUID(handle) == host.device_uuid
    assert host.device_memory_bytes is not None
    total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
    assert 0.9 * total < host.device_memory_bytes <= 1.01 * total
    assert host.driver == pynvml.nvmlSystemGetDriverVersion()
    if not str(host.device_uuid).startswith("MIG-"):
        assert pynvml.nvmlDeviceGetName(handle) == host.device_name
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        assert host.capability == float(f"{major}.{minor}")


@pytest.mark.parametrize("by", ["index", "uuid"])
def test_the_device_that_is_made_visible_is_the_one_that_is_named(host: Host, by: str) -> None:
    count = pynvml.nvmlDeviceGetCount()
    last = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(count - 1))
    if (
        count < 2
        or os.environ.get("CUDA_VISIBLE_DEVICES")
        or str(host.device_uuid).startswith("MIG-")
    ):
        pytest.skip("needs two whole GPUs and CUDA_VISIBLE_DEVICES unset")
    chosen = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": str(count - 1) if by == "index" else last,
    }
    code = (
        "from bench.engine.transformers.device import accelerator\n"
        "from bench.meter.nvml import nvml_uuid\n"
        "print(nvml_uuid(accelerator().uuid))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == last


def test_finding_the_device_makes_no_context_so_the_memory_baseline_is_honest(
    host: Host, log: Path
) -> None:
    uuid, used, has_context = run(context_after_reading, log=log)
    assert uuid == host.device_uuid
    assert used is not None
    assert not has_context


def test_peaks_count_what_is_allocated_and_are_reset(log: Path) -> None:
    with_block, after = run(allocate, log=log)
    assert GIB <= with_block.allocated_peak_bytes < GIB + 2**20
    assert with_block.reserved_peak_bytes >= with_block.allocated_peak_bytes
    assert GIB <= with_block.device_used_bytes < 3 * GIB  # the context comes on top
    assert after.allocated_peak_bytes < 2**20
    assert after.device_used_bytes < with_block.device_used_bytes - GIB // 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_killed_in_cuda_code_is_failed_and_gives_its_memory_back(
    host: Host, number: signal.Signals, log: Path
) -> None:
    baseline = used_bytes(host)
    with pytest.raises(CellFailure) as caught:
        run(multiply_until_killed, int(number), log=log)
    assert caught.value.status == "failed"
    assert number.name in caught.value.reason
    wait_until_free(host, baseline)
    assert run(product, log=log)[1] == 64**3


def test_a_process_that_hangs_in_cuda_code_is_timeout_and_gives_its_memory_back(
    host: Host, log: Path
) -> None:
    baseline = used_bytes(host)
    with pytest.raises(CellFailure) as caught:
        run(multiply_until_killed, 0, log=log, limits_s={"measure": 3.0})
    assert caught.value.status == "timeout"
    wait_until_free(host, baseline)
    assert run(product, log=log)[1] == 64**3


def test_a_device_side_assertion_is_failed_and_the_next_process_is_unharmed(log: Path) -> None:
    with pytest.raises(CellFailure) as caught:
        run(index_out_of_range, log=log)
    assert caught.value.status == "failed"
    assert run(product, log=log)[1] == 64**3


def test_fp32_products_are_not_tf32(log: Path) -> None:
    value = 1 + 2**-12  # tf32 keeps 10 bits of it
    found, flags = run(precision, value, log=log)
    assert found == value
    assert flags["float32_matmul_precision"] == "highest"


def test_energy_clocks_and_throttling_are_read_in_passes_of_their_own(
    host: Host, log: Path
) -> None:
    cell = few_repeats(gpu_cell(host, model=RANDOM_GPT2, quant="fp16"))
    cell = replace(cell, measure=replace(cell.measure, telemetry_s=10.0))
    measurement = measured(cell, log).measurement
    assert measurement is not None
    energy = measurement.energy
    assert energy is not None
    if str(host.device_uuid).startswith("MIG") or energy.request is None:
        pytest.skip("a MIG instance, or a machine without NVML, has no power of its own")
    assert energy.request.rounds > 0
    assert energy.request.power_w_mean is not None
    assert energy.idle_power_w is not None
    assert 0 < energy.idle_power_w < energy.request.power_w_mean
    assert energy.request.throttled is not None


def both_canaries(announce: Announce) -> tuple[Canary, Canary]:
    """Right after the context was made, at idle clocks, and after a second of work."""
    import torch

    from bench.engine.transformers.device import canary_kernels
    from bench.meter.canary import read_canary

    before = read_canary(canary_kernels("cuda"))
    assert torch.cuda.memory_allocated() == 0  # all of it is given back
    matrix = torch.ones(4096, 4096, dtype=torch.float16, device="cuda")
    until = time.monotonic() + 1
    while time.monotonic() < until:
        matrix @ matrix
        torch.cuda.synchronize()
    after = read_canary(canary_kernels("cuda"))
    assert before is not None
    assert after is not None
    return before, after


def test_idle_clocks_are_no_drift(log: Path) -> None:
    before, after = run(both_canaries, log=log)
    assert after.read_s / before.read_s == pytest.approx(1, abs=0.1)
    assert after.matmul_s / before.matmul_s == pytest.approx(1, abs=0.1)


def own_peaks(announce: Announce) -> tuple[Peaks, Peaks | None]:
    """As kernels find them, and as the data sheet has them."""
    import torch

    from bench.engine.transformers.device import peak_kernels
    from bench.meter.peaks import measure_peaks, sheet_peaks

    kernels = peak_kernels("cuda", 1)
    return measure_peaks(kernels), sheet_peaks(torch.cuda.get_device_name(), kernels.bus_bytes_s)


def test_measured_peaks_come_near_the_data_sheet(log: Path) -> None:
    found, sheet = run(own_peaks, log=log)
    assert found.measured
    if sheet is None:
        pytest.skip("no data sheet of this GPU")
    assert 0.75 < found.read_bytes_s / sheet.read_bytes_s < 1.01
    for dtype in {"fp16", "bf16"} & sheet.flops.keys():
        assert 0.5 < found.flops[dtype] / sheet.flops[dtype] < 1.05
