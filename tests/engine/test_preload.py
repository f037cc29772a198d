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
