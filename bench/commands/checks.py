"""The checks of ``doctor --selftest``: which process each runs, and who judges what it read.

By the worker of a sweep, so that fork server, phases and the names of failures are tested with
them. A check that does not apply on a machine says why.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.analysis import selftest as judge
from bench.config.cell import Cell
from bench.config.compose import collect, parsed
from bench.config.settings import Config
from bench.driver.lock import signals_as_interrupts
from bench.driver.machine import look_around
from bench.driver.plan import resolve, why_not, with_attention
from bench.driver.probe import Probe, find_peaks
from bench.driver.process import OnPhase, Task
from bench.driver.provenance import provenance
from bench.driver.recording import Request
from bench.driver.sweep import Runner, common_settings, measure
from bench.driver.worker import Worker, outcome_of
from bench.engine import sources
from bench.engine.protocol import ENGINES
from bench.errors import CellFailure
from bench.meter.selftest import BLOCK_BYTES
from bench.paths import CONF
from bench.record.result import Host, Outcome, Result
from bench.record.selftest import Check
from bench.report.progress import ProgressLine
from bench.store.files import hide_secrets

_LIMITS_S = {"prepare": 60.0, "load": 60.0, "warm-up": 120.0, "measure": 60.0, "attest": 120.0}
_NO_GPU = "no CUDA device here"
_GIB = 2**30
_IMPOSSIBLE_BYTES = 2**48  # more than a process has addresses for
_FLEX = "compiling it takes about 25 s on a CPU; attn=flex in a sweep attests it"
# One thread: layers this small gain nothing by a second, which would wait for a CPU of others
TINY = ("model=tiny", "threads=1")

# Of a sweep that only has to run: its numbers are shown beside each other and judge nothing
_FEW = (
    *("measure.warmups=2", "measure.repeats=3", "measure.target=null", "workload.new_tokens=8"),
    "measure.telemetry_s=0.5",  # energy has a check of its own; by default 4 s of each cell
)


@dataclass(frozen=True, slots=True)
class Here:
    """What a check runs with."""

    worker: Worker
    show: OnPhase
    host: Host
    folder: Path  # of logs and sweeps, gone afterwards
    place: str = ENGINES["transformers"]
    results: list[Result] = field(default_factory=list)  # of the sweeps, as they come

    def cell(self, *overrides: str) -> Cell:
        """A resolved cell of the tiny model."""
        (config,) = configs(*TINY, f"device={self.host.device}", *overrides)
        return with_attention(resolve(config.cell, self.host), None)

    def ask(self, place: str, *arguments: Any) -> Any:
        """What a task returns from a process of its own; else how that ended."""
        task = Task(place, (self.place, *arguments), _LIMITS_S)
        log = self.folder / f"{time.monotonic_ns()}.txt"
        try:
            return self.worker(task, self.show, log)
        except CellFailure as failure:
            return outcome_of(failure)
        finally:
            hide_secrets(log)

    def judged(self, name: str, of: Callable[..., Check], task: str, *arguments: Any) -> Check:
        """The check whose readings ``task`` of ``bench.meter.selftest`` takes."""
        value = self.ask(f"bench.meter.selftest:{task}", *arguments)
        if not isinstance(value, Outcome):
            return of(value)
        # The library says that it cannot: a cell would have no number here, and no wrong one
        if value.status in ("skipped", "not_engaged"):
            return judge.not_run(name, f"{value.status}: {value.reason}")
        return judge.failed(name, value)


def configs(*overrides: str) -> list[Config]:
    """Cells that nobody is asked about, and that are tracked nowhere."""
    return parsed(collect(["quality=none", "tracking=none", "measure=quick", *overrides]))


def clocks(here: Here) -> Check:
    cell = here.cell("workload.new_tokens=64")
    return here.judged("clocks", lambda read: judge.clocks(*read[:2]), "time_by_two_clocks", cell)


def events(here: Here) -> Check:
    if here.host.device != "cuda":
        return judge.not_run("events", _NO_GPU)
    cell = here.cell("workload.new_tokens=64")
    return here.judged("events", lambda read: judge.events(read[2]), "time_by_two_clocks", cell)


def slowdown(here: Here) -> Check:
    return here.judged(
        "slowdown", lambda read: judge.slowdown(*read), "plant_a_slowdown", here.cell()
    )


def oom(here: Here) -> Check:
    memory_bytes, cell = here.host.device_memory_bytes, here.cell()
    blocks = (_IMPOSSIBLE_BYTES, 1)
    if cell.device == "cuda" and memory_bytes is not None:
        blocks = (_GIB, 2 * memory_bytes // _GIB)
    return _ending(here, "oom", "oom", "", "fill_memory", cell, *blocks)


def killed(here: Here) -> Check:
    return _ending(here, "killed", "failed", "SIGKILL", "die_by_signal", here.cell())


def _ending(
    here: Here, name: str, status: str, phrase: str, task: str, cell: Cell, *arguments: Any
) -> Check:
    ended = here.ask(f"bench.meter.selftest:{task}", cell, *arguments)
    after = here.ask("bench.meter.cell:try_cell", cell)
    ended, after = (each if isinstance(each, Outcome) else Outcome("ok") for each in (ended, after))
    return judge.ending(name, status, phrase, ended, after)


def memory(here: Here) -> Check:
    def judged(read: Any) -> Check:
        resident, allocated, peak = read
        if here.host.device == "cuda":
            return judge.device_memory(BLOCK_BYTES, allocated, peak)
        return judge.memory(BLOCK_BYTES, resident, peak)

    return here.judged("memory", judged, "allocate", here.cell())


def bandwidth(here: Here) -> Check:
    if here.host.device != "cuda":
        return judge.not_run("bandwidth", f"{_NO_GPU}, and no data sheet of this CPU's memory")
    cell = here.cell()
    peaks = find_peaks(
        cell.engine,
        here.host,
        cell.device,
        int(cell.threads),
        Probe(here.worker, lambda what: here.show(what, "")),
    )
    if peaks is None or peaks.measured:
        return judge.not_run("bandwidth", f"no data sheet of {here.host.device_name}")
    return here.judged("bandwidth", lambda rates: judge.bandwidth(rates, peaks), "copy_rates", cell)


def attention(here: Here, attn: str) -> Check:
    name = f"attention {attn}"
    cells = [here.cell(f"attn={attn}", f"quant={dtype}") for dtype in ("fp32", "fp16")]
    obstacles = [why_not(cell, here.host, None) for cell in cells]
    cell = next((c for c, o in zip(cells, obstacles, strict=True) if o is None), None)
    if cell is None:
        return judge.not_run(name, str(obstacles[-1].reason if obstacles[-1] else None))
    if attn == "flex" and cell.device == "cpu":
        return judge.not_run(name, _FLEX)
    plain = here.cell("attn=eager", f"quant={cell.quant.name}")
    of = partial(judge.attention, attn, cell.quant.dtype)
    return here.judged(name, lambda read: of(*read), "compare_logits", cell, plain)


def quantization(here: Here, quant: str) -> Check:
    name, cell = f"quantization {quant}", here.cell(f"quant={quant}")
    obstacle = why_not(cell, here.host, None)
    if obstacle is not None:
        return judge.not_run(name, str(obstacle.reason))
    of = partial(judge.weights, quant)
    return here.judged(name, lambda read: of(*read), "count_weights", cell)


def energy(here: Here) -> Check:
    if here.host.device != "cuda":
        return judge.not_run("energy", _NO_GPU)
    return here.judged("energy", judge.energy, "watch_idling", here.cell())


def grid(here: Here) -> Check:
    """int8 with its threshold has nothing to split off in random weights, and would not run."""
    axes = ("quant=fp16,int8_nodecomp,nf4", "batch=1,8,32")
    return judge.grid(_sweep(here, configs("-m", *TINY, *axes, *_FEW)))


def default_model(here: Here) -> Check:
    plain = "fp16" if here.host.device == "cuda" else "bf16"
    # A library's quantization, and our own of real weights, which packs and keeps them
    wanted = configs("-m", f"quant={plain},nf4,int4_g64", *_FEW)
    model = wanted[0].cell.model
    if sources.cached(model) is None:
        ended = here.ask("bench.meter.selftest:provide", wanted[0].cell)
        if isinstance(ended, Outcome):
            reason = f"{model.name} is not here and cannot be had within a minute: {ended.reason}"
            return judge.not_run("default model", reason)
    return judge.default_model(_sweep(here, wanted))


def _sweep(here: Here, wanted: Sequence[Config]) -> list[Result]:
    """These cells through a real sweep, whose folder goes with ours."""
    outputs = Path(tempfile.mkdtemp(dir=here.folder))
    settings = replace(common_settings(wanted), output_dir=str(outputs))
    asked = [config.cell for config in wanted]
    request = Request(settings, outputs, (), provenance(asked))
    # Its end has signals ignored until this is left
    with signals_as_interrupts(), ProgressLine() as progress:
        runner = Runner(here.worker, progress, report=lambda folder, comparison: [])
        machine = look_around(asked, runner.probe, with_mlflow=False)
        ended = measure(machine.records(asked, settings, outputs), request, runner)
    if ended.interrupted:
        raise KeyboardInterrupt
    results = list(ended.recorder.results)
    here.results.extend(results)
    return results


def _attentions() -> list[str]:
    return sorted({file.stem for file in (CONF / "attn").glob("*.yaml")} - {"auto"})


def _quants() -> list[str]:
    """Of any model and this engine: what a checkpoint holds is in its folder, single layers are a
    certain model's, and GGUF's types are llama.cpp's."""
    files = sorted((CONF / "quant").glob("*.yaml"))
    values = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    others = ("checkpoint", "gguf")
    return [v["name"] for v in values if v["scheme"] not in others and not v.get("layers")]


CHECKS: Mapping[str, Callable[[Here], Check]] = {
    "clocks": clocks,
    "events": events,
    "slowdown": slowdown,
    "oom": oom,
    "killed": killed,
    "memory": memory,
    "bandwidth": bandwidth,
    **{f"attention {n}": partial(attention, attn=n) for n in _attentions()},
    **{f"quantization {n}": partial(quantization, quant=n) for n in _quants()},
    "energy": energy,
    "grid": grid,
    "default model": default_model,
}
