"""Nothing before the fork may initialize CUDA. Checked on any machine: one with a GPU is acted,
every call recorded.

In the play NVML answers and torch says that there is a device, so that imports take the branches
they take on such a machine; whatever would make CUDA start is recorded and refused, since a library
may swallow the refusal.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.paths import ROOT

_ACT = """
import json, logging, os, sys, traceback
import pynvml, torch

started = []

def refused(name):
    def call(*arguments, **options):
        started.append(name + " from " + "".join(traceback.format_stack(limit=6)[:-1]))
        raise RuntimeError("this would initialize CUDA")
    return call

if sys.argv[1] == "cpu":
    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    pynvml.nvmlInit = no_driver
else:
    pynvml.nvmlInit = pynvml.nvmlShutdown = lambda: None
    torch.version.cuda = "13.0"
    torch.cuda.is_available = lambda: True  # by NVML, as PYTORCH_NVML_BASED_CUDA_CHECK wants it
    torch.cuda.device_count = lambda: 1
    for name in ("_lazy_init", "init", "current_device", "current_stream", "get_device_capability", "get_device_name",
                 "get_device_properties", "is_bf16_supported", "mem_get_info", "memory_allocated", "set_device",
                 "synchronize"):
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, refused(name))
    for name in ("_cuda_getDeviceCount", "_cuda_getCurrentRawStream", "_cuda_init"):
        setattr(torch._C, name, refused(name))

import bench.engine.transformers.preload as preload

answer = {
    "started": list(started),
    "initialized": preload.CUDA_INITIALIZED,
    "missing": [name for name in (*preload.NEEDED, *preload.optional(sys.argv[1] == "gpu")) if name not in sys.modules],
    "modules": [name for name in ("bitsandbytes", "flash_attn", "mlflow", "hydra") if name in sys.modules],
    "level": logging.getLogger("bitsandbytes").level,
    "nvml_check": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"),
}
started.clear()
import bitsandbytes
print(json.dumps(answer | {"started_by_bitsandbytes": started}))
"""


def preloaded(machine: str) -> dict[str, Any]:
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTORCH_NVML_BASED_CUDA_CHECK"
    }
    done = subprocess.run(
        [sys.executable, "-c", _ACT, machine],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def on_a_gpu_machine() -> dict[str, Any]:
    return preloaded("gpu")


def test_nothing_before_the_fork_initializes_cuda(on_a_gpu_machine: dict[str, Any]) -> None:
    assert on_a_gpu_machine["started"] == []
    assert on_a_gpu_machine["initialized"] is False


def test_libraries_that_ask_the_device_at_import_are_left_to_the_child(
    on_a_gpu_machine: dict[str, Any],
) -> None:
    assert on_a_gpu_machine["modules"] == []


def test_everything_named_is_imported_and_the_noise_is_off(
    on_a_gpu_machine: dict[str, Any],
) -> None:
    assert on_a_gpu_machine["missing"] == []
    assert on_a_gpu_machine["level"] >= 40
    assert on_a_gpu_machine["nvml_check"] == "1"


def test_the_act_would_catch_bitsandbytes(on_a_gpu_machine: dict[str, Any]) -> None:
    assert "get_device_capability" in on_a_gpu_machine["started_by_bitsandbytes"][0]


def test_without_a_gpu_bitsandbytes_is_preloaded_too() -> None:
    found = preloaded("cpu")
    assert found["modules"] == ["bitsandbytes"]
    assert found["missing"] == []


_WITH_A_BROKEN_ONE = """
import dataclasses, json
from bench.engine.protocol import ENGINES
from bench.driver.plan import resolve, why_not
from bench.meter.cell import measure_cell, probe_host
from tests import fakes
import bench.engine.transformers.preload as preload

place, quiet = ENGINES["transformers"], lambda *_: None
host = probe_host(quiet, place)
few = fakes.group("measure", "quick", warmups=1, repeats=1, target=None)
cells = [resolve(fakes.cell(model="tiny", quant=quant, measure=few), host) for quant in ("fp32", "nf4")]
found = measure_cell(quiet, place, cells[0])
print(json.dumps([len(found.measurement.repeats), getattr(why_not(cells[1], host, None), 'reason', None), preload.fork_unsafe()]))
"""


@pytest.mark.parametrize("package", ["bitsandbytes", "flash_attn"])
def test_an_optional_package_that_breaks_at_import_costs_what_needs_it(
    package: str, tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise OSError('libcuda.so.1: not found')")
    about = tmp_path / f"{package}-0.50.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.50.2\n")
    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_BROKEN_ONE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    repeats, reason, unsafe = json.loads(done.stdout.splitlines()[-1])
    assert (repeats, unsafe) == (1, None)
    wanted = "quant=nf4 needs the package bitsandbytes (OSError: libcuda.so.1: not found)"
    assert reason == (wanted if package == "bitsandbytes" else None)
