"""The two seams between this tool and what it measures: an ``Engine`` loads, a ``Session`` runs
(and a ``Clock`` times it, see ``engine.clock``).

Everything outside ``engine/`` talks to a model through these two, in numpy arrays and the types of
``record``; no signature knows torch. An engine can be imported without the libraries that it
drives: the driver asks it what may run here before any of them is loaded. What the measured process
does with a session is a straight line in ``bench.meter.cell``.

``ENGINES`` maps a name to a place, as text: the driver imports it for its rules, and the measured
process imports it again in an interpreter of its own, which may be another one (an engine whose
pins clash with ours lives in an environment of its own).
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bench.config.cell import Cell, Quality, Quant
from bench.engine.clock import Clock
from bench.engine.kernels import CanaryKernels, PeakKernels
from bench.engine.prompts import Ids, Tokenizer
from bench.record.description import Description
from bench.record.measurement import PhaseProfile, Profile, TaskScore
from bench.record.result import Attestation, Host, ModelShape, Outcome

if TYPE_CHECKING:
    from bench.engine.exchange import Exchange

Floats = np.ndarray[Any, np.dtype[np.float32]]
_YAML: dict[object, str] = {None: "null", False: "false"}

ENGINES = {
    "transformers": "bench.engine.transformers:ENGINE",
    "llama_cpp": "bench.engine.llama_cpp:ENGINE",
    "vllm": "bench.engine.vllm:ENGINE",
    "scripted": "bench.engine.scripted:ENGINE",
}


def engine_at(place: str) -> "Engine":
    """The engine at a place like ``bench.engine.scripted:ENGINE``."""
    module, _, name = place.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)
    return engine


class Announce(Protocol):
    """Tell the parent which phase begins; returns when the parent sleeps again."""

    def __call__(self, phase: str, detail: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The device that an engine finds besides the CPU."""

    name: str
    memory_bytes: int
    uuid: str  # as CUDA has it, which does not say whether it is a MIG instance's
    capability: float
    versions: Mapping[str, str]  # of what stands between engine and device: cuda, cudnn


@dataclass(frozen=True, slots=True)
class Files:
    """What an engine needs on disk before it can open a model. ``folder`` None: random weights."""

    folder: Path | None
    revision: str | None  # what exactly it is: hub commit, package version, digest of a folder
    configuration: Path | None = None  # what random weights are made of; None: the cell says it
    packed: Path | None = None  # the weights as the cell's quantization has them; None: it is none


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of final hidden states: a product, scaled, and softly capped.

    With z = hidden @ weight.T + bias, times ``scale``, the logits are z, or with a cap
    cap * tanh(z / cap) (Gemma 2, arXiv 2408.00118). Shapes: weight (vocabulary, hidden), bias
    (vocabulary,).
    """

    weight: Floats
    bias: Floats | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Floats) -> Floats:
        """Shapes: hidden (n, hidden); returns (n, vocabulary)."""
        product = hidden @ self.weight.T
        return self.finished(product if self.bias is None else product + self.bias)

    def finished(self, product: Floats) -> Floats:
        """What becomes of the product with the weights."""
        scaled = product if self.scale == 1 else product * np.float32(self.scale)
        if self.cap is None:
            return scaled
        capped: Floats = np.tanh(scaled / np.float32(self.cap)) * np.float32(self.cap)
        return capped


class Engine(Protocol):
    """How to get a cell's model into memory. Importable without its libraries."""

    preload: tuple[str, ...]  # modules that a fork server may import once for all processes
    packages: tuple[str, ...]  # whose versions decide its numbers
    optional: tuple[str, ...]  # imports that some cells need, tried where the host is probed

    def accelerator(self) -> Accelerator | None:
        """The device of ``device=cuda``; None without one. Called in a throwaway process."""

    def unsupported(self) -> dict[str, str]:
        """Kinds of devices that are here and cannot be measured, with what to do. Called where
        ``accelerator`` is."""

    def unknown_names(self, cell: Cell) -> list[str]:
        """A sentence for each name or parameter in the cell that this engine does not have."""

    def why_not(self, cell: Cell, host: Host) -> Outcome | None:
        """The outcome of a resolved cell that this engine cannot run here; None: it may."""

    def describe(self, cell: Cell) -> Description | None:
        """What the model is; None where that is not known. Called in a throwaway process."""

    def lines(self, cell: Cell) -> str:
        """Python by which one loads the same model oneself; empty where that takes more."""

    def provide(self, cell: Cell, show: Callable[[str], None]) -> Files:
        """Download, convert, pack: whatever has to lie on disk. Cached; timed apart from loading.
        ``show`` is told what takes a while."""

    def prepare(self, cell: Cell) -> None:
        """Bring the process into the cell's state: threads, precision flags, libraries imported."""

    def canary_kernels(self, device: str) -> CanaryKernels | None:
        """What tells whether the machine has changed; None where the device has no room for it."""

    def peak_kernels(self, device: str, threads: int) -> PeakKernels | None:
        """What finds out the most that the device can do; None: not worth asking."""

    def open(self, cell: Cell, files: Files) -> "Session":
        """The model in memory, ready for requests."""


class Session(Protocol):
    """A loaded model. Ids are on the host, going in and coming out."""

    tokenizer: Tokenizer | None  # None where prompts are made-up ids
    vocabulary: int
    ends: frozenset[int]  # tokens that end an answer
    context_tokens: int | None  # positions that the model has; None: unlimited, or unknown

    def ready(self, ids: Ids, new_tokens: int) -> None:
        """Whatever the strategy prepares once for these shapes: compile, allocate. Not timed."""

    def clock(self, new_tokens: int) -> Clock:
        """A fresh clock for one request."""

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        """Exactly ``new_tokens`` greedy tokens for each row: the only thing that is timed.

        Shapes: ids (rows, prompt_tokens); returns (rows, new_tokens).
        """

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        """Greedy answers of at most ``most`` tokens; one that ended keeps its ending token."""

    def hidden(self, ids: Ids) -> Floats:
        """Final hidden states of one row, where ``head`` is not None.

        Shapes: ids (1, tokens); returns (1, tokens, hidden).
        """

    def head(self) -> Head | None:
        """What makes logits of ``hidden``; None where it is more than ``Head`` can do, or nobody
        can tell."""

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        """Of each row its logits, a few positions at a time; None where it shows none.

        Shapes: ids (rows, tokens); the pieces of a row are (positions, vocabulary).
        """

    def alternative(self) -> None:
        """From now on another kernel for the same arithmetic: how a noise floor is found."""

    def tasks(self, quality: Quality, seed: int) -> tuple[TaskScore, ...]:
        """Scores of lm-evaluation-harness on this very model."""

    def attest(self, ids: Ids, new_tokens: int) -> Attestation:
        """What is in memory and what runs, observed around requests; mismatches are in it."""

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        """Peaks in bytes, allocated and reserved, since the last call; None without an
        allocator."""

    def profile(self, ids: Ids, new_tokens: int, trace: Path) -> Profile | None:
        """Where the time of one request goes; None where the engine cannot tell."""

    def profile_step(self, ids: Ids) -> PhaseProfile | None:
        """Where the time of a decode step of the whole batch goes; None where the engine cannot
        tell. Takes about as long as the prefill of one row and a few steps."""

    def exchange(self, quants: Mapping[str, Quant]) -> "Exchange | None":
        """The model's layers, which can be exchanged for those of these schemes, by name; None
        where the engine has no layers of its own. Raises: CellFailure for a scheme without."""


def not_offered(name: str, asked: Iterable[tuple[str, object, tuple[object, ...]]]) -> list[str]:
    """What an engine does not take, a sentence each.

    Args:
        name: the engine's, as it is asked for.
        asked: paths in a cell, their values, and those that the engine knows.
    """
    return [
        f"{path}={value}: no such one; {name} has only"
        f" {', '.join(_YAML.get(only, str(only)) for only in known if only != 'auto')}"
        for path, value, known in asked
        if value not in known
    ]


def shape_mismatches(cell: Cell, shape: ModelShape) -> Iterator[str]:
    """A folder given by ``model.path`` may hold another model than the one it is called."""
    if cell.model.config is not None:
        return
    architecture = cell.model.architecture or {}
    for names, count in (
        (("num_hidden_layers", "n_layer"), shape.layers),
        (("hidden_size", "n_embd"), shape.hidden),
        (("vocab_size",), shape.vocabulary),
    ):
        for name in names:
            if name in architecture and architecture[name] != count:
                yield (
                    f"{name} is {count}, model={cell.model.name} has {architecture[name]}; give a"
                    " folder of another model as model=FOLDER"
                )
