"""What this machine is, what it can do at most, and what the models are: asked in throwaway
processes.

Each engine sees the machine in its own way (another interpreter, other packages), so each is asked
once. Descriptions and measured peaks are kept in the cache folder.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config.cell import Cell, EngineChoice, digest
from bench.config.parse import parse
from bench.driver.plan import USUAL_ENGINE, engine_of, resolve
from bench.driver.policy import (
    described_as,
    reference_dtypes,
    unquantized,
    wants_divergence,
)
from bench.driver.process import Task, begin_server, check_server
from bench.driver.resume import measuring_digest, weights_of
from bench.driver.worker import Worker
from bench.engine import sources
from bench.engine.protocol import ENGINES, engine_at
from bench.errors import CellFailure
from bench.paths import cache_folder, interpreter
from bench.record.description import Description
from bench.record.result import Host, Peaks
from bench.report.terminal import say

_LIMITS_S = {"start": 300.0, "prepare": 3600.0}
_NOWHERE = Path("/dev/null")


@dataclass(frozen=True, slots=True)
class Probe:
    """How to ask: where tasks run, and who is told that it takes a moment."""

    worker: Worker
    show: Callable[[str], None]

    def ask(self, engine: EngineChoice, task: str, *arguments: Any) -> Any:
        """What a task of ``bench.meter.cell`` returns; by this interpreter where the engine's own
        is not there, which the engine then objects to. Raises: CellFailure."""
        python = interpreter(engine.python)
        is_there = python is not None and Path(python).is_file()
        place = ENGINES[engine.name]
        own = engine.python if is_there else None
        asked = Task(f"bench.meter.cell:{task}", (place, *arguments), _LIMITS_S, own)
        return self.worker(asked, self._on_phase, _NOWHERE)

    def _on_phase(self, phase: str, detail: str) -> None:
        if detail:
            self.show(detail)


def start_server(
    engines: Sequence[EngineChoice], show: Callable[[str], None], with_mlflow: bool
) -> None:
    """Start the fork server with what the engines preload, and import MLflow meanwhile."""
    show("starting")
    ours = [choice for choice in engines if choice.python is None]
    preload = sorted({m for c in ours for m in engine_at(ENGINES[c.name]).preload})
    begin_server(preload)
    if with_mlflow:
        importlib.import_module("bench.store.recorder")
    notice = check_server(preload, lambda *_: show("importing the engine's libraries"))
    if notice:
        say(notice)


def hosts_of(engines: Sequence[EngineChoice], probe: Probe) -> dict[str, Host]:
    """By engine, this machine as its processes see it."""
    hosts: dict[str, Host] = {}
    for choice in engines:
        probe.show("looking at this machine")
        hosts[choice.name] = probe.ask(choice, "probe_host")
    return hosts


def descriptions_of(
    cells: Sequence[Cell], hosts: Mapping[str, Host], probe: Probe
) -> dict[str, Description | None]:
    """What the models of resolved cells are, and those of their possible quality references."""
    descriptions: dict[str, Description | None] = {}
    missing: dict[str, dict[str, Cell]] = {}  # by engine, then by ``described_as``
    for key, cell in _to_describe(cells, hosts).items():
        file = _description_file(cell, hosts[cell.engine.name])
        if file.is_file():
            descriptions[key] = parse(Description, json.loads(file.read_text(encoding="utf-8")))
        else:
            missing.setdefault(cell.engine.name, {})[key] = cell
    for group in missing.values():
        answers = _described(list(group.values()), probe)
        for (key, cell), description in zip(group.items(), answers, strict=True):
            descriptions[key] = description
            if description is not None:
                _keep(_description_file(cell, hosts[cell.engine.name]), description)
    return descriptions


def _to_describe(cells: Sequence[Cell], hosts: Mapping[str, Host]) -> dict[str, Cell]:
    """By ``described_as``, one cell of each model and quantization that its engine has, references
    too."""
    wanted: dict[str, Cell] = {}
    for cell in cells:
        if not engine_of(cell).unknown_names(cell):
            wanted.setdefault(described_as(cell), cell)
        if wants_divergence(cell):
            for dtype in reference_dtypes(cell, hosts[USUAL_ENGINE]):
                plain = unquantized(cell, dtype)
                wanted.setdefault(described_as(plain), plain)
    return wanted


def _described(cells: Sequence[Cell], probe: Probe) -> list[Description | None]:
    """Of cells of one engine; what cannot be described is said, and tried all the same."""
    probe.show("describing the models")
    try:
        answers = probe.ask(cells[0].engine, "describe_cells", tuple(cells))
    except CellFailure as failure:
        answers = [failure.reason] * len(cells)
    for reason in dict.fromkeys(answer for answer in answers if isinstance(answer, str)):
        say(f"no prediction of memory: {reason}")
    return [None if isinstance(answer, str) else answer for answer in answers]


def _description_file(cell: Cell, host: Host) -> Path:
    measuring = measuring_digest(cell.engine.name)
    machine = [host.cpu_name, host.device_name, host.capability, host.versions]
    key = digest([described_as(cell), weights_of(cell), machine, measuring])
    return cache_folder() / "descriptions" / f"{key}.json"


def _keep(file: Path, description: Description) -> None:
    from bench.store.files import write_aside

    file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(file, json.dumps(dataclasses.asdict(description)).encode())


def find_peaks(
    engine: EngineChoice, host: Host, device: str, threads: int, probe: Probe
) -> Peaks | None:
    """The device's data sheet, or what simple kernels find here.

    None, and a sentence about it, where that fails: a sweep can do without.
    """
    probe.show("measuring the peaks of this machine")
    try:
        peaks: Peaks | None = probe.ask(engine, "probe_peaks", host, device, threads)
    except CellFailure as failure:
        text = f"the peaks of this machine cannot be measured: {failure.reason}"
        say(f"{text}; what bounds a cell stays open")
        return None
    return peaks


def resolved(cells: Sequence[Cell], hosts: Mapping[str, Host]) -> list[Cell]:
    """Each cell as it will run here, but for what only a description tells (``with_attention``)."""
    return [
        resolve(replace(cell, model=sources.pinned(cell.model)), hosts[cell.engine.name])
        for cell in cells
    ]
