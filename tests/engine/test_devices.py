"""Devices that torch sees and that cannot be measured: a sentence, and the CPU; and torch's answers
about CUDA, replaced where a decision hangs on them."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from bench.driver.plan import resolve, why_not
from bench.engine.clock import Clock
from bench.engine.kernels import BLOCK_COLUMNS
from bench.engine.prompts import Ids
from bench.engine.protocol import ENGINES
from bench.engine.transformers.device import (
    accelerator,
    canary_kernels,
    canary_read_bytes,
    peak_block_bytes,
    unsupported,
)
from bench.engine.transformers.profiling import syncs
from bench.engine.transformers.session import open_session
from bench.meter.cell import probe_host
from bench.paths import PACKAGE
from tests import fakes

WHY = "is not supported yet; device=cpu measures this machine's CPU"


def test_rocm_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert accelerator() is None
    assert unsupported() == {"ROCm": WHY}


def test_apples_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    host = probe_host(lambda *_: None, ENGINES["transformers"])
    assert host.device == "cpu"
    assert host.unsupported["MPS"] == WHY
    cell = fakes.cell(device="cuda")
    obstacle = why_not(resolve(cell, host), host, None)
    assert obstacle is not None
    assert obstacle.reason == (
        f"device=cuda: engine=transformers sees no CUDA device here; MPS {WHY}"
    )
    assert why_not(resolve(fakes.cell(), host), host, None) is None


def test_here_is_none_of_them() -> None:
    assert not {"ROCm", "MPS"} & unsupported().keys() or torch.version.hip is not None


OLD = "The NVIDIA driver on your system is too old (found version 12020)."
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"


def refuse(sentence: str) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{sentence}\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1")

    return call


@pytest.mark.parametrize(("function", "why"), [("cuda.init", OLD), ("zeros", BUSY)])
def test_a_gpu_that_cannot_be_used_leaves_a_cpu_host_that_says_why(
    function: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML counts a device; CUDA fails at its start, or at its first context."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(f"torch.{function}", refuse(why))
    host = probe_host(lambda *_: None, ENGINES["transformers"])
    assert host.device == "cpu"
    assert host.unsupported == {"CUDA": f"cannot be used: {why}"}
    assert why_not(resolve(fakes.cell(), host), host, None) is None
    obstacle = why_not(resolve(fakes.cell(device="cuda"), host), host, None)
    assert obstacle is not None
    assert obstacle.reason == (
        "device=cuda: engine=transformers sees no CUDA device here; CUDA cannot be used: " + why
    )


def test_the_reference_kernel_reads_what_no_cache_holds() -> None:
    mib = 2**20
    assert canary_read_bytes(72 * mib) == 576 * mib  # of an L40S, which 64 MiB would fit
    assert canary_read_bytes(4 * mib) == 64 * mib


def test_a_device_that_is_full_has_no_reference_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 400.00 MiB.")

    assert canary_kernels("cpu") is not None
    monkeypatch.setattr(torch, "randn", full)
    assert canary_kernels("cpu") is None


def test_a_peak_of_reading_needs_no_more_than_an_eighth_of_the_memory() -> None:
    gib = 2**30
    assert peak_block_bytes(80 * gib) == 4 * gib
    small = peak_block_bytes(4 * gib - 12345)
    assert gib // 2 - 2**17 < small <= gib // 2
    assert small % (4 * BLOCK_COLUMNS) == 0  # whole rows


class Waits:
    """A request in which torch warns of waits as it does on CUDA, while it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode = "default"
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set)

    def set(self, mode: str) -> None:
        self.mode = mode

    def wait(self, place: str) -> None:
        if self.mode == "warn":
            file, _, line = place.rpartition(":")
            warnings.warn_explicit(
                "called a synchronizing CUDA operation", UserWarning, file, int(line)
            )

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        self.wait("/venv/site-packages/transformers/before.py:1")
        clock.start()
        self.wait(f"{PACKAGE}/engine/transformers/strategies.py:60")  # the ids cross over
        for _ in range(30):
            self.wait("/venv/site-packages/transformers/flash.py:580")
        warnings.warn("something else", stacklevel=1)
        for step in range(new_tokens):
            clock.token()
            if step == 1:
                self.wait("/venv/site-packages/bitsandbytes/ops.py:7")
                self.wait(f"{PACKAGE}/engine/transformers/strategies.py:65")
        self.wait("/venv/site-packages/transformers/after.py:1")
        return ids


def test_each_wait_is_counted_in_its_phase_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    prefill, decode = syncs(waits.request, np.zeros((1, 4), dtype=np.int64), 4)
    assert prefill == {"transformers/flash.py:580": 30}
    assert decode == {
        "bitsandbytes/ops.py:7": 1,
        f"{PACKAGE}/engine/transformers/strategies.py:65": 1,
    }
    assert waits.mode == "default"


def test_what_loading_left_counts_for_loading_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's allocator as far as it keeps freed blocks: 90 bytes of the load's temporaries."""
    session = open_session(fakes.resolved(model="tiny", quant="fp32"), None)
    session.cell = fakes.resolved(model="tiny", quant="fp32", device="cuda")
    reserved = [100]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: reserved[0])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: reserved.__setitem__(0, 10))
    assert session.allocated_peaks() == (10, 100)  # read right after the load
    session.ready(np.zeros((1, 4), dtype=np.int64), 4)
    assert session.allocated_peaks() == (10, 10)
