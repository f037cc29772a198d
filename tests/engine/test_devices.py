"""Devices that torch sees and that are not measured: a sentence, and the CPU."""

import pytest
import torch

from bench.driver.plan import resolve, why_not
from bench.engine.protocol import ENGINES
from bench.engine.transformers.probes import accelerator, unsupported
from bench.meter.cell import probe_host
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
