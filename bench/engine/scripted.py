"""The engine of the tests: it computes nothing, and its requests take the times that a script says.

    ttft 1.0 steps 0.5 0.25
    ttft 1.0 steps 0.5 then oom | hang | die 9 | exit 7 | interrupt | refuse
    b8: then oom; nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.5
    ttft 1.0 steps 0.5 fits 5000

Times are read off a clock that only the script moves, so a request of an hour is over at once and
every number that follows can be computed in the head. ``steps`` go around. ``then`` says what
happens at the end of the first request, ``fits`` how many rows do not run out of memory. Parts are
separated by ``;``: the first one whose name is part of the cell's label counts, else the one
without a name.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.config.cell import Cell, Quality, Quant
from bench.engine.clock import Clock
from bench.engine.kernels import CanaryKernels, PeakKernels, nothing
from bench.engine.prompts import Ids, Tokenizer, load_tokenizer
from bench.engine.protocol import Accelerator, Files, Floats, Head
from bench.errors import CellFailure
from bench.record.description import Description
from bench.record.measurement import PhaseProfile, Profile, Repeat, TaskScore
from bench.record.result import Attestation, Host, ModelShape, Outcome

_VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Script:
    """What one request does. Units: seconds."""

    ttft_s: float = 0.002
    steps_s: tuple[float, ...] = (0.001,)
    ending: tuple[str, ...] = ()  # like ("die", "9")
    fits: int | None = None  # rows; None: any number


def read_script(text: str, label: str = "") -> Script:
    """The part of a script that is about a cell of this label.

    Raises:
        ValueError: when it is none.
    """
    unnamed = ""
    for part in text.split(";"):
        name, colon, rest = part.partition(":")
        if colon and name.strip() in label.split("/"):
            return _read(rest)
        unnamed = unnamed if colon else part
    return _read(unnamed)


def _read(part: str) -> Script:
    times, _, ending = part.partition("then")
    times, _, fits = times.partition("fits")
    before, _, steps = times.partition("steps")
    _, _, ttft = before.partition("ttft")
    usual = Script()
    return Script(
        ttft_s=float(ttft) if ttft.strip() else usual.ttft_s,
        steps_s=tuple(map(float, steps.split())) or usual.steps_s,
        ending=tuple(ending.split()),
        fits=int(fits) if fits.strip() else None,
    )


class ScriptedClock:
    """Moves by the script's times, whatever happens in between."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.tokens = 0

    def start(self) -> None:
        self.tokens = 0

    def token(self, count: int = 1) -> None:
        self.tokens += count

    def read(self) -> tuple[Repeat, float | None]:
        steps = self.script.steps_s
        gaps = tuple(steps[i % len(steps)] for i in range(self.tokens - 1))
        return Repeat(self.script.ttft_s, gaps, self.script.ttft_s + sum(gaps)), None


class ScriptedSession:
    """A session without a model."""

    vocabulary = _VOCABULARY
    context_tokens: int | None = None
    ends: frozenset[int] = frozenset()

    def __init__(self, cell: Cell) -> None:
        self.script = read_script(str(cell.engine.options.get("script", "")), cell.label)
        self.tokenizer: Tokenizer | None = load_tokenizer(cell.model, None)
        self.weight_bytes = {"none": 2000}.get(cell.quant.scheme, 1000)
        self.is_quantized = cell.quant.scheme != "none"

    def ready(self, ids: Ids, new_tokens: int) -> None:
        pass

    def clock(self, new_tokens: int) -> Clock:
        return ScriptedClock(self.script)

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        clock.start()
        for _ in range(new_tokens):
            clock.token()
        most = self.script.fits
        act(*(self.script.ending if most is None or len(ids) <= most else ("oom",)))
        return np.zeros((len(ids), new_tokens), dtype=np.int64)

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        return [prompt[:most] for prompt in prompts]

    def hidden(self, ids: Ids) -> Floats:
        raise NotImplementedError("a script has no hidden states")

    def head(self) -> Head | None:
        return None

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        return None

    def alternative(self) -> None:
        pass

    def tasks(self, quality: Quality, seed: int) -> tuple[TaskScore, ...]:
        return ()

    def attest(self, ids: Ids, new_tokens: int) -> Attestation:
        return Attestation(
            shape=ModelShape(2, 4, 2, 1, 4, _VOCABULARY, (None, None)),
            weight_bytes=self.weight_bytes,
            gathered_bytes=0,
            head_bytes=400,
            logical_weights=1000,
            matmul_weights=800,
            kv_bytes_per_token=8,
            executed_dtype="bf16",
            is_quantized=self.is_quantized,
            mismatches=("the script refuses",) if self.script.ending == ("refuse",) else (),
            details={"script": " ".join(map(str, self.script.steps_s))},
        )

    def exchange(self, quants: Mapping[str, Quant]) -> None:
        return None

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        return None, None

    def profile_step(self, ids: Ids) -> PhaseProfile | None:
        return None

    def profile(self, ids: Ids, new_tokens: int, trace: Path) -> Profile | None:
        return None


def act(what: str = "", number: str = "") -> None:
    """End the process, or the user's patience, the way a script says."""
    if what == "oom":
        raise CellFailure("oom", "out of memory, says the script")
    if what == "hang":
        time.sleep(3600)
    if what == "die":
        os.kill(os.getpid(), int(number))
    if what == "exit":
        os._exit(int(number))
    if what == "interrupt":
        driver = multiprocessing.parent_process()
        assert driver is not None
        os.kill(driver.pid or 0, signal.SIGINT)
        time.sleep(3600)


class Scripted:
    """The engine without a model, a library or a device."""

    preload: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def accelerator(self) -> Accelerator | None:
        return None

    def unsupported(self) -> dict[str, str]:
        return {}

    def unknown_names(self, cell: Cell) -> list[str]:
        script = cell.engine.options.get("script", "")
        try:
            read_script(str(script), cell.label)
        except ValueError as error:
            return [f'engine.options.script={script}: {error}; want one like "ttft 1 steps 0.5"']
        return []

    def why_not(self, cell: Cell, host: Host) -> Outcome | None:
        return None

    def describe(self, cell: Cell) -> Description | None:
        return None

    def lines(self, cell: Cell) -> str:
        return ""

    def provide(self, cell: Cell, show: Callable[[str], None]) -> Files:
        return Files(None, None)

    def prepare(self, cell: Cell) -> None:
        pass

    def canary_kernels(self, device: str) -> CanaryKernels:
        return CanaryKernels(nothing, nothing, nothing, seconds=lambda kernel: 1.0, warm_s=0)

    def peak_kernels(self, device: str, threads: int) -> PeakKernels | None:
        return None

    def open(self, cell: Cell, files: Files) -> ScriptedSession:
        return ScriptedSession(cell)


ENGINE = Scripted()
