"""What this machine and its software are, and bringing a measured process into a defined state.

Runs in a child: it imports torch and may touch CUDA, which the driver and the fork server never do.
Limits come from the cgroup where there is one, because the host's numbers are not what this process
can use. Optional packages are tried by importing them: one that is installed may still not load.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import torch

from bench.config.cell import Cell
from bench.driver.process import Announce
from bench.engine import sources
from bench.meter.memory import cuda_uuid
from bench.record.result import Host

# Whatever decides a number; a change in any of them means measuring again.
PACKAGES = (
    "torch",
    "transformers",
    "bitsandbytes",
    "accelerate",
    "flash-attn",
    "flash-attn-3",
    "lm_eval",
    "kernels",  # if installed, bitsandbytes and transformers take kernels from a hub
    "numpy",
    "safetensors",
    "tokenizers",
    "triton",
)
ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "DNNL_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
    "TRANSFORMERS_SDPA_FORCE_GQA",
)
OPTIONAL_IMPORTS = ("bitsandbytes", "flash_attn", "flash_attn_interface")

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def probe_host() -> Host:
    """This machine, as a measured process sees it."""
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if cuda else None
    cpu_name = _cpu_name()
    return Host(
        device="cuda" if cuda else "cpu",
        device_name=properties.name if properties else cpu_name,
        cpu_name=cpu_name,
        cpus=usable_cpus(),
        cpu_ids=tuple(sorted(os.sched_getaffinity(0))),
        memory_bytes=memory_limit_bytes(),
        device_memory_bytes=properties.total_memory if properties else None,
        device_uuid=cuda_uuid() if cuda else None,
        capability=float(f"{properties.major}.{properties.minor}") if properties else None,
        driver=_driver() if cuda else None,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=_versions(cuda),
        missing=_missing(),
        compiler=any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++")),
    )


def usable_cpus() -> int:
    """CPUs that this process may use at once: its affinity, and the quotas of its cgroups, rounded
    up."""
    periods = _cgroup_limits("cpu.cfs_period_us")
    quotas = [text.split() for text in _cgroup_limits("cpu.max")]
    quotas += [[*pair] for pair in zip(_cgroup_limits("cpu.cfs_quota_us"), periods, strict=True)]
    granted = [
        -(-int(quota) // int(period)) for quota, period in quotas if quota not in ("max", "-1")
    ]
    return max(1, min([len(os.sched_getaffinity(0)), *granted]))


def memory_limit_bytes() -> int:
    """Memory that this process may use: the machine's, or the limit of one of its cgroups where
    that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [*_cgroup_limits("memory.max"), *_cgroup_limits("memory.limit_in_bytes")]
    return min([machine, *(int(limit) for limit in limits if limit != "max")])


def _cgroup_limits(name: str) -> list[str]:
    return [file.read_text().strip() for file in cgroup_files(name)]


def cgroup_files(name: str) -> list[Path]:
    """The files ``name`` of this process's cgroups and all above them, own first; versions 1 and 2
    name them differently."""
    found: list[Path] = []
    for line in _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.is_file() else []:
        _, controllers, path = line.split(":", 2)
        root = _CGROUP / controllers
        place = root / path.lstrip("/")
        inside = [folder for folder in (place, *place.parents) if folder.is_relative_to(root)]
        found += [folder / name for folder in inside if (folder / name).is_file()]
    return found


def begin_task(announce: Announce, cell: Cell) -> tuple[Path | None, dict[str, str]]:
    """How every task with a model begins: its files are here, the process is as the cell wants it,
    libraries are imported.

    Returns the model's folder (None for random weights) and the precision flags that were set.
    """
    announce("prepare", "")
    folder = sources.fetch(cell.model)
    precision = prepare_process(cell)
    import_libraries(cell)
    return folder, precision


def prepare_process(cell: Cell) -> dict[str, str]:
    """Threads, CPUs and precision flags of the cell, set; returns the flags for the record."""
    if cell.cpus != "all":
        os.sched_setaffinity(0, cell.cpus)
    torch.set_num_threads(int(cell.threads))
    torch.set_float32_matmul_precision("highest")  # no TF32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    return precision_flags()


def import_libraries(cell: Cell) -> None:
    """What the cell needs beyond torch and transformers, imported before its load is timed."""
    if cell.quant.scheme != "none":
        importlib.import_module("bitsandbytes")
    if cell.attn.requires.package is not None:
        importlib.import_module(cell.attn.requires.package)


def precision_flags() -> dict[str, str]:
    """The flags as torch has them now."""
    matmul = torch.backends.cuda.matmul
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": str(torch.backends.cudnn.allow_tf32),
        "allow_fp16_reduced_precision_reduction": str(
            matmul.allow_fp16_reduced_precision_reduction
        ),
        "allow_bf16_reduced_precision_reduction": str(
            matmul.allow_bf16_reduced_precision_reduction
        ),
    }


def _cpu_name() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _versions(cuda: bool) -> dict[str, str]:
    found = {f"env.{name}": os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if cuda:
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _missing() -> dict[str, str]:
    # The harness takes seconds to import, and is imported where it is used.
    reasons = {} if importlib.util.find_spec("lm_eval") else {"lm_eval": "not installed"}
    for name in OPTIONAL_IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken native library raises whatever it likes
            reasons[name] = f"{type(error).__name__}: {error}"
    return reasons
