"""What this machine and its software are, as a process of one engine sees them.

Runs in a child: an engine may touch CUDA there, which the driver and the fork server never do.
Limits come from the cgroup where there is one, because the machine's numbers are not what this
process can use. Optional packages are tried by importing them: an installed one may still not load.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sysconfig
from pathlib import Path

from bench.engine.kernels import affinity
from bench.engine.protocol import Engine
from bench.meter.gpu_state import device_settings
from bench.meter.nvml import driver_version, nvml_uuid
from bench.record.result import Host

# Variables that change what libraries compute, or how fast.
ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "DNNL_MAX_CPU_ISA",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",  # another allocator, say
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
    "TRANSFORMERS_SDPA_FORCE_GQA",
)

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def host_of(engine: Engine) -> Host:
    """This machine, as this engine sees it."""
    unsupported = engine.unsupported()
    device = None if "CUDA" in unsupported else engine.accelerator()
    uuid = None if device is None else nvml_uuid(device.uuid)
    cpu_name = _cpu_name()
    return Host(
        device="cpu" if device is None else "cuda",
        device_name=cpu_name if device is None else device.name,
        cpu_name=cpu_name,
        cpus=usable_cpus(),
        cpu_ids=affinity(),
        memory_bytes=memory_limit_bytes(),
        device_memory_bytes=None if device is None else device.memory_bytes,
        device_uuid=uuid,
        capability=None if device is None else device.capability,
        driver=None if device is None else driver_version(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={
            **{f"env.{name}": os.environ[name] for name in ENVIRONMENT if name in os.environ},
            **({} if device is None else device.versions),
            **_versions(engine.packages),
        },
        missing=_missing(engine.optional),
        unsupported=unsupported,
        triton=None if device is None else triton_obstacle(),
        device_settings={} if uuid is None else device_settings(uuid),
        compiler=has_compiler(),
    )


def has_compiler() -> bool:
    """Whether there is one of C++."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def triton_obstacle() -> str | None:
    """What Triton lacks: it compiles a launcher of each kernel with the system's C compiler and
    Python's headers. Source: triton 3.9.0, runtime/build.py."""
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(shutil.which(name) for name in compilers):
        return f"a C compiler ({' or '.join(compilers)}); apt install gcc"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return "Python's headers (Python.h); apt install python3-dev"
    return None


def usable_cpus() -> int:
    """CPUs that this process may use at once: its affinity, and the quotas of its cgroups, rounded
    up."""
    periods = _cgroup_limits("cpu.cfs_period_us")
    quotas = [text.split() for text in _cgroup_limits("cpu.max")]
    quotas += [[*pair] for pair in zip(_cgroup_limits("cpu.cfs_quota_us"), periods, strict=True)]
    granted = [
        -(-int(quota) // int(period)) for quota, period in quotas if quota not in ("max", "-1")
    ]
    return max(1, min([len(affinity()), *granted]))


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
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []:
        _, controllers, path = line.split(":", 2)
        root = CGROUP / controllers
        place = root / path.lstrip("/")
        inside = [folder for folder in (place, *place.parents) if folder.is_relative_to(root)]
        found += [folder / name for folder in inside if (folder / name).is_file()]
    return found


def _cpu_name() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _missing(optional: tuple[str, ...]) -> dict[str, str]:
    """Optional packages that cannot be used here, with the reason."""
    # The harness takes seconds to import, and is imported where it is used.
    reasons = {} if importlib.util.find_spec("lm_eval") else {"lm_eval": "not installed"}
    for name in optional:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken native library raises whatever it likes
            reasons[name] = f"{type(error).__name__}: {error}"
    return reasons
