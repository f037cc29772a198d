"""Nothing before the fork may initialize CUDA. Checked on any machine: one with a GPU is acted,
every call recorded.

In the play NVML answers and torch says that there is a device, so that imports take the branches
they take on such a machine; whatever would make CUDA start is recorded and refused, since a library
may swallow the refusal.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, TorchAoConfig

from bench.engine.transformers.load import load
from bench.paths import ROOT
from tests import fakes

_ACT = """
import importlib, json, logging, os, sys, traceback
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
    "modules": [name for name in ("bitsandbytes", "flash_attn", "torchao", "mlflow", "hydra") if name in sys.modules],
    "level": logging.getLogger("bitsandbytes").level,
    "nvml_check": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"),
}
def started_by(name):
    started.clear()
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):  # not installed; refused
        pass
    return list(started)

seen = {f"started_by_{name}": started_by(name) for name in ("bitsandbytes", "torchao.prototype.mx_formats")}
print(json.dumps(answer | seen))
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


def test_the_act_would_catch_torchao_which_transformers_imports_where_it_is_installed(
    on_a_gpu_machine: dict[str, Any],
) -> None:
    if not importlib.util.find_spec("torchao"):
        pytest.skip("torchao is not installed")
    (call,) = on_a_gpu_machine["started_by_torchao.prototype.mx_formats"]
    # Where Triton is installed, torch asks first whether it may be used
    by_triton = "current_device" in call and "torch/utils/_triton.py" in call
    itself = "get_device_capability" in call and "torchao/prototype/mx_formats/kernels.py" in call
    assert by_triton or itself


def test_without_a_gpu_bitsandbytes_is_preloaded_too() -> None:
    found = preloaded("cpu")
    assert found["modules"] == ["bitsandbytes"]
    assert found["missing"] == []


_IN_A_CHILD = """
import json, sys
from bench.driver.plan import resolve
from bench.engine.protocol import ENGINES
from bench.meter.cell import measure_cell, probe_host
from tests import fakes
import bench.engine.transformers.preload

place, quiet = ENGINES["transformers"], lambda *_: None
few = fakes.group("measure", "quick", warmups=1, repeats=1, target=None)
own = fakes.group("model", "tiny", weights="pretrained", path=sys.argv[1])
seen = {}
for quant, model in (("bf16", "tiny"), ("checkpoint", own), ("torchao_int8", "tiny")):
    found = measure_cell(quiet, place, fakes.resolved(model=model, quant=quant, measure=few))
    seen[quant] = (found.attestation.mismatches, found.attestation.details["layers"], "torchao" in sys.modules)
print(json.dumps(seen))
"""


def test_a_child_imports_torchao_itself_and_transformers_quantizes_with_it(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    load(fakes.cell(model="tiny", quant="bf16"), None).save_pretrained(tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig())
    ).save_pretrained(tmp_path / "saved")
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_CHILD, tmp_path / "saved"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    layers = {"Linear of Int8Tensor": 14, "Linear": 1}
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "bf16": [[], {"Linear": 15}, False],
        "checkpoint": [[], layers, True],
        "torchao_int8": [[], layers, True],
    }


_WITH_A_BROKEN_ONE = """
import json, sys
from bench.engine.protocol import ENGINES
from bench.driver.plan import resolve, why_not
from bench.meter.cell import measure_cell, probe_host
from tests import fakes
import bench.engine.transformers.preload as preload

place, quiet = ENGINES["transformers"], lambda *_: None
host = probe_host(quiet, place)
few = fakes.group("measure", "quick", warmups=1, repeats=1, target=None)
cells = [resolve(fakes.cell(model="tiny", quant=quant, measure=few), host) for quant in ("fp32", *sys.argv[1:])]
found = measure_cell(quiet, place, cells[0])
reasons = [getattr(why_not(cell, host, None), "reason", None) for cell in cells[1:]]
print(json.dumps([len(found.measurement.repeats), preload.fork_unsafe(), *reasons]))
"""


@pytest.mark.parametrize(
    ("package", "quants"),
    [("bitsandbytes", ["nf4"]), ("flash_attn", []), ("torchao", ["torchao_int8"])],
)
def test_an_optional_package_that_breaks_at_import_costs_what_needs_it(
    package: str, quants: list[str], tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise OSError('libcuda.so.1: not found')")
    about = tmp_path / f"{package}-0.50.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.50.2\n")
    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_BROKEN_ONE, *quants],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    repeats, unsafe, *reasons = json.loads(done.stdout.splitlines()[-1])
    assert (repeats, unsafe) == (1, None)
    broken = f"needs the package {package} (OSError: libcuda.so.1: not found)"
    assert reasons == [f"quant={quant} {broken}" for quant in quants]
