"""vLLM, in an environment of its own: its own kernels, paged attention and scheduler, on a CPU.

``make engine-vllm`` installs ``.engines/vllm`` (vLLM's build for CPUs, 4 GB). vLLM is a server
first: here one process loads it in process and steps its engine by hand, so that each token is
stamped when it is there (``session``). What it is asked for is set, never left to its defaults:
threads, room for keys and values, no cache of prefixes, no compilation. This file is imported by
the driver, which has no vLLM: what needs it is imported in the functions that run in a measured
process.
"""

import json
import os
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.config.cell import Cell
from bench.config.parse import parse
from bench.config.parse import problems as parsing_problems
from bench.engine import sources
from bench.engine.kernels import CanaryKernels, PeakKernels, affinity, numpy_canary, numpy_peaks
from bench.engine.protocol import Accelerator, Files, Session, not_offered
from bench.errors import CellFailure
from bench.paths import interpreter
from bench.record.description import Description
from bench.record.result import Host, Outcome

# vLLM's names
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "saved": "auto", "auto": "auto"}
_METHOD = "compressed-tensors"  # of quantized folders: the one that vLLM's CPU build was tried with
_ENVIRONMENT = {
    # The engine's core in this process: in one of its own nobody can step it, and it is bound to
    # one CPU less than there are (vLLM 0.32.0)
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # 4-bit weights would be multiplied by activations in 8 bits: KL 0.065 nat instead of 0.0019
    # from the same rounded weights (vLLM 0.32.0, Xeon with AMX, 2026-11-25)
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",  # everything is in a folder
}


@dataclass(frozen=True, slots=True)
class Options:
    """The engine's own."""

    # Of keys and values in the cache; auto: as the weights. vLLM takes fp8's scales to be 1
    kv: Literal["auto", "fp8_e4m3", "fp8_e5m2"] = "auto"


def kv_type(cell: Cell) -> str:
    """vLLM's name of the type that a cell asks for."""
    return parse(Options, cell.engine.options, "engine.options").kv


class Vllm:
    """Models in a folder, as transformers writes them."""

    preload: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("vllm_cpu", "torch", "transformers", "numpy")
    optional: tuple[str, ...] = ()

    def accelerator(self) -> Accelerator | None:
        return None

    def unsupported(self) -> dict[str, str]:
        return {}

    def unknown_names(self, cell: Cell) -> list[str]:
        quant, name = cell.quant, f"engine={cell.engine.name}"
        # sdpa stands for vLLM's own paged attention: there is no other to choose.
        asked = (
            ("quant.scheme", quant.scheme, ("none", "checkpoint")),
            ("attn.implementation", cell.attn.implementation, ("sdpa", "auto")),
            ("attn.backend", cell.attn.backend, (None,)),
            ("attn.packs_queries", cell.attn.packs_queries, (False,)),
            ("decode.strategy", cell.decode.strategy, ("loop",)),
        )
        problems = not_offered(name, asked)
        if quant.layers:
            problems.append(f"quant.layers: {name} takes a model as its folder has it; want none")
        return problems + parsing_problems(Options, cell.engine.options, "engine.options")

    def why_not(self, cell: Cell, host: Host) -> Outcome | None:
        name, python = f"engine={cell.engine.name}", interpreter(cell.engine.python)
        rules = (
            (cell.device == "cuda", f"{name} is vLLM's build for CPUs: device=cpu"),
            (cell.model.weights == "random", f"{name} has no random weights: pretrained ones"),
            (bool(cell.quality.tasks), f"{name} runs no tasks of lm-eval: quality.tasks=[]"),
            (
                python is None or not Path(python).is_file(),
                f"{name} lives in an environment of its own: make engine-vllm",
            ),
        )
        return next((Outcome("skipped", reason) for applies, reason in rules if applies), None)

    def describe(self, cell: Cell) -> Description | None:
        return None  # its memory is what it is told to take, beside weights in forms of its own

    def lines(self, cell: Cell) -> str:
        """vLLM's own offline use in this process, with 1 GiB for keys and values: by itself it asks
        for most of the memory and may not start."""
        place = sources.place(cell.model)
        if place is None:
            return ""
        kv = kv_type(cell)
        return (
            "import os\n"
            'os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"\n'
            "from vllm import LLM, SamplingParams\n"
            f"llm = LLM({place!r}, dtype={DTYPES[cell.quant.dtype]!r}, enforce_eager=True,"
            f" kv_cache_dtype={kv!r}, kv_cache_memory_bytes=2**30)\n"
            'print(llm.generate("Once", SamplingParams(temperature=0, max_tokens=16))[0])\n'
            f"# a server: vllm serve {shlex.quote(place)} --dtype {DTYPES[cell.quant.dtype]}"
            f" --enforce-eager --kv-cache-dtype {kv} --kv-cache-memory-bytes {2**30}\n"
        )

    def provide(self, cell: Cell, show: Callable[[str], None]) -> Files:
        """The folder, which transformers' engine converts or downloads.

        Raises:
            CellFailure: ``failed`` where it is not there; ``skipped`` for a folder that was
                quantized by another tool than this build was tried with.
        """
        model = cell.model
        folder = sources.cached(model)
        if folder is None:
            what = "its noise has not been made yet" if model.weights == "dithered" else "not here"
            how = (
                "run it once with engine=transformers"
                if model.weights == "dithered"
                else f"run `python -m bench fetch {model.path or model.name}` once"
            )
            raise CellFailure("failed", f"model={model.name}: {what}; {how}")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        method = config.get("quantization_config", {}).get("quant_method")
        wanted = _METHOD if cell.quant.scheme == "checkpoint" else None
        if method != wanted:
            raise CellFailure(
                "skipped",
                f"model={model.name} is {'quantized by ' + method if method else 'not quantized'}:"
                f" engine=vllm takes quant=fp32, fp16, bf16 of plain weights, and quant=checkpoint"
                f" of folders in {_METHOD}' format",
            )
        return Files(folder, sources.revision(model, folder))

    def prepare(self, cell: Cell) -> None:
        """Threads are set before vLLM is imported: it reads OMP_NUM_THREADS then, and later makes
        ``torch.set_num_threads`` do nothing."""
        os.environ.update(_ENVIRONMENT, OMP_NUM_THREADS=str(cell.threads))
        import torch

        torch.set_num_threads(int(cell.threads))
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")  # of its torch
        from bench.engine.vllm import session  # noqa: F401  seconds that are no part of loading

    def canary_kernels(self, device: str) -> CanaryKernels:
        return numpy_canary()

    def peak_kernels(self, device: str, threads: int) -> PeakKernels | None:
        # numpy's BLAS takes all CPUs: that is no limit for a cell with fewer.
        return numpy_peaks() if threads == len(affinity()) else None

    def open(self, cell: Cell, files: Files) -> Session:
        from bench.engine.vllm.session import VllmSession

        return VllmSession(cell, files)


ENGINE = Vllm()
