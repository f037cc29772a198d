"""The CPU kernels, compiled once for this processor and kept in the cache.

One file without torch's headers compiles in 3 s with g++ and is called by ctypes. It is compiled
with OpenMP and not linked with it: its calls find the OpenMP that torch has loaded, so that both
share one pool of threads. An object is kept by the digest of source, command, compiler and
processor: it is made of this processor's own instructions, beside which wider ones are chosen at
run time.
"""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

from bench.config.cell import digest
from bench.engine.sources import made
from bench.errors import CellFailure
from bench.paths import cache_folder

SOURCE = Path(__file__).with_name("cpu.cpp")
PACKAGE = "apt install g++"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")
_MACHINES = ("x86_64", "AMD64")
_ARGUMENTS = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 4 + [ctypes.c_int32] * 5


def compiler() -> str | None:
    """The path of g++, or of what CXX names; None: there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def obstacle() -> str | None:
    """Why these kernels cannot run on this machine, with what to do; None: they can be tried."""
    if platform.machine() not in _MACHINES:
        return f"an x86-64 processor, this one is {platform.machine()}"
    if "avx2" not in processor_flags():
        return "a processor with AVX2"
    if compiler() is None:
        return f"g++ to compile its kernels, none was found; {PACKAGE}"
    return None


@functools.cache
def processor_flags() -> frozenset[str]:
    """What Linux says that this processor can do; nothing on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@functools.cache
def kernels() -> ctypes.CDLL:
    """The compiled file, loaded; compiles it unless the cache has it.

    Raises:
        CellFailure: ``skipped`` where it cannot be compiled, or this processor lacks AVX2.
    """
    reason = obstacle()
    if reason is not None:
        raise CellFailure("skipped", f"quantization of our own needs {reason}")
    gxx = str(compiler())
    version = subprocess.run([gxx, "--version"], capture_output=True, text=True, check=False)
    of = [SOURCE.read_text(), _FLAGS, version.stdout, sorted(processor_flags())]
    place = cache_folder() / "kernels" / f"cpu-{digest(of)}.so"
    library = ctypes.CDLL(str(made(place, lambda aside: _compile(gxx, aside))))
    library.bench_linear.argtypes = _ARGUMENTS
    library.bench_linear.restype = None
    if library.bench_instruction_set() == 0:
        raise CellFailure("skipped", "quantization of our own needs a processor with AVX2")
    return library


@functools.cache
def instruction_set() -> int:
    """What the kernels use: 1 AVX2, 2 AVX-512 with VNNI."""
    level: int = kernels().bench_instruction_set()
    return level


def _compile(gxx: str, aside: Path) -> None:
    # Linking with -fopenmp would load a second OpenMP beside torch's
    piece = aside.with_suffix(".o")
    for command in (
        [gxx, *_FLAGS, "-c", str(SOURCE), "-o", str(piece)],
        [gxx, "-shared", str(piece), "-o", str(aside)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            first = (lines or done.stderr.splitlines() or ["no message"])[0]
            raise CellFailure("failed", f"{gxx} cannot compile {SOURCE.name}: {first}")
