"""llama.cpp through llama-cpp-python: its types of weights, its batches, a CPU, no torch anywhere.

A second engine that shares nothing with the first but token ids: other kernels, another file
format, another interpreter (``make engine-llama_cpp`` sets up ``.engines/llama_cpp``), so that a
speed of transformers can be compared with what the same weights reach elsewhere. This file is
imported by the driver, which has no llama.cpp: what needs it is imported in the functions that run
in a measured process. ``types`` says what names mean, ``files`` makes the file of a type,
``native`` wraps the C functions, ``session`` runs requests, ``attest`` says what ran.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from bench.config.cell import Cell
from bench.engine import sources
from bench.engine.kernels import CanaryKernels, PeakKernels, affinity, numpy_canary, numpy_peaks
from bench.engine.llama_cpp.types import NATIVE, file_type, unknown_types
from bench.engine.protocol import Accelerator, Files, Session, not_offered
from bench.paths import interpreter
from bench.record.description import Description
from bench.record.result import Host, Outcome

MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ in llama.cpp's llama-cparams.h


class LlamaCpp:
    """Models that are a GGUF file, or that become one."""

    preload: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("llama_cpp_python", "numpy", "gguf")
    optional: tuple[str, ...] = ()

    def accelerator(self) -> Accelerator | None:
        return None

    def unsupported(self) -> dict[str, str]:
        return {}

    def unknown_names(self, cell: Cell) -> list[str]:
        # sdpa stands for llama.cpp's own fused attention: there is no other to choose.
        asked = (
            ("attn.implementation", cell.attn.implementation, ("sdpa", "auto")),
            ("attn.backend", cell.attn.backend, (None,)),
            ("attn.packs_queries", cell.attn.packs_queries, (False,)),
            ("decode.strategy", cell.decode.strategy, ("loop",)),
        )
        return [*unknown_types(cell), *not_offered(f"engine={cell.engine.name}", asked)]

    def why_not(self, cell: Cell, host: Host) -> Outcome | None:
        name, python = f"engine={cell.engine.name}", interpreter(cell.engine.python)
        rules = (
            (
                cell.batch != "max" and cell.batch > MOST_SEQUENCES,
                f"{name} runs at most {MOST_SEQUENCES} sequences: batch={MOST_SEQUENCES}",
            ),
            (cell.device == "cuda", f"{name} is built for the CPU: device=cpu"),
            (cell.model.weights == "random", f"{name} has no random weights: pretrained ones"),
            (bool(cell.quality.tasks), f"{name} runs no tasks of lm-eval: quality.tasks=[]"),
            (
                cell.model.weights == "dithered" and file_type(cell.quant) == NATIVE,
                f"quant={cell.quant.name} is the published file, which has no noise: name a type",
            ),
            (
                python is None or not Path(python).is_file(),
                f"{name} lives in an environment of its own: make engine-llama_cpp",
            ),
        )
        return next((Outcome("skipped", reason) for applies, reason in rules if applies), None)

    def describe(self, cell: Cell) -> Description | None:
        return None  # a prediction of memory would need the file's header: it is tried instead

    def lines(self, cell: Cell) -> str:
        """The file is there once the cell has run; llama.cpp's server takes it too."""
        model, kind = cell.model, file_type(cell.quant)
        if sources.is_gguf(model) and kind == NATIVE:
            file = str(model.path)
        else:
            kept = sources.kept(model, ".gguf" if kind == NATIVE else f"-{kind}.gguf")
            if kept is None:
                return ""
            file = str(kept)
        return (
            "from llama_cpp import Llama\n"
            f"llm = Llama({file!r}, n_threads={cell.threads}, n_threads_batch={cell.threads})\n"
            'print(llm("Once", max_tokens=16, temperature=0))\n'
            f"# a server: llama-server -m {shlex.quote(file)} --threads {cell.threads}\n"
            f"# in Ollama: a Modelfile with the line FROM {file}\n"
        )

    def provide(self, cell: Cell, show: Callable[[str], None]) -> Files:
        from bench.engine.llama_cpp.files import provide

        return provide(cell, show)

    def prepare(self, cell: Cell) -> None:
        """Threads belong to a context and are set there; the library is loaded here, before the
        load is timed."""
        from bench.engine.llama_cpp.native import start

        start()

    def canary_kernels(self, device: str) -> CanaryKernels:
        return numpy_canary()

    def peak_kernels(self, device: str, threads: int) -> PeakKernels | None:
        # numpy's BLAS takes all CPUs: that is no limit for a cell with fewer.
        return numpy_peaks() if threads == len(affinity()) else None

    def open(self, cell: Cell, files: Files) -> Session:
        from bench.engine.llama_cpp.session import LlamaSession

        return LlamaSession(cell, files)


ENGINE = LlamaCpp()
