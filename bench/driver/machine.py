"""This machine as the engines of a sweep see it, and what is known of each cell before it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.analysis.footprint import predict
from bench.config.cell import Cell, EngineChoice, sample_key
from bench.config.settings import Settings
from bench.driver import plan
from bench.driver.plan import with_attention
from bench.driver.policy import Records, wants_divergence
from bench.driver.probe import (
    Probe,
    descriptions_of,
    find_peaks,
    hosts_of,
    resolved,
    start_server,
)
from bench.driver.process import run_isolated
from bench.driver.resume import weights_of
from bench.driver.worker import begin
from bench.engine import sources
from bench.paths import cache_folder
from bench.record.result import Host, Peaks, Result, is_timed
from bench.report.terminal import say
from bench.store import files


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine as the engines of a sweep see it, and what the models are."""

    hosts: Mapping[str, Host]  # by engine
    descriptions: Mapping[str, Any]

    def begun(self, asked: Sequence[Cell]) -> Records:
        """What is known of each cell before anything has run."""
        records = Records({}, self.hosts, self.descriptions)
        for cell, here in zip(asked, resolved(asked, self.hosts), strict=True):
            here = with_attention(here, records.description(here))
            result = _begun(cell, here, records)
            records.results[result.cell_id] = result
        return records

    def records(self, asked: Sequence[Cell], settings: Settings, outputs: Path) -> Records:
        """What is known of each cell before this sweep, by earlier ones too."""
        records = self.begun(asked)
        for key, result in records.results.items():
            resume = result.cell.measure.resume if settings.resume is None else settings.resume
            if result.outcome.status == "ok" and resume:
                result = _resumed(result, outputs)
                records.results[key] = result
            if result.answers is not None:
                records.answers.setdefault(sample_key(result.cell), result.answers)
        return records


def look_around(asked: Sequence[Cell], probe: Probe, with_mlflow: bool) -> Machine:
    """Start what starts processes, and ask in throwaway ones what is here."""
    for cell in asked:
        if cell.model.path is not None:
            probe.show(f"reading {cell.model.path}")
        elif sources.is_hub(cell.model):
            probe.show(f"asking the hub for {cell.model.repo}")
        weights_of(cell)
        if sources.is_gguf(cell.model) and sources.cached(cell.model) is None:
            say(
                f"{cell.model.path} is converted to fp32 safetensors once, kept in {cache_folder()}"
            )
    engines = engines_of(asked, any(map(wants_divergence, asked)))
    if probe.worker is run_isolated:
        start_server(engines, probe.show, with_mlflow)
    hosts = hosts_of(engines, probe)
    cells = resolved(asked, hosts)
    return Machine(hosts, descriptions_of(cells, hosts, probe))


def engines_of(cells: Sequence[Cell], with_reference: bool) -> list[EngineChoice]:
    """What runs these cells, and the engine of their quality reference."""
    engines = {cell.engine.name: cell.engine for cell in cells}
    if with_reference:
        engines.setdefault(plan.USUAL_ENGINE, EngineChoice(plan.USUAL_ENGINE))
    return list(engines.values())


def _resumed(begun: Result, outputs: Path) -> Result:
    """What an earlier sweep measured of the cell, or the cell as it is."""
    earlier = files.find_earlier(outputs, begun.cell_id, begun.resume_key)
    if earlier is None:
        return begun
    # What does not make it another cell is as it is now: limits, where files lie, what is kept
    cell = begun.cell
    limits = replace(earlier.cell.measure, limits_s=cell.measure.limits_s)
    here = replace(earlier.cell, measure=limits, workload=cell.workload, quality=cell.quality)
    return replace(earlier, asked=begun.asked, cell=here)


def _begun(asked: Cell, cell: Cell, records: Records) -> Result:
    """A cell of which nothing is known, or why it cannot run."""
    host, description = records.hosts[cell.engine.name], records.description(cell)
    obstacle = plan.why_not(cell, host, description)
    if obstacle is not None:
        return begin(asked, cell, host, outcome=obstacle)
    result = replace(begin(asked, cell, host), lines=plan.engine_of(cell).lines(cell))
    if description is None or cell.is_to_be_sized:
        return result
    return replace(result, predicted_bytes=predict(cell, description).least_bytes)


def add_peaks(records: Records, probe: Probe) -> None:
    """What the device can do at most, beside each cell that will run; asked once for each number of
    threads."""
    known: dict[tuple[str, str, int], Peaks | None] = {}
    for key, result in records.results.items():
        if is_timed(result):
            continue
        cell = result.cell
        place = cell.engine.name, cell.device, int(cell.threads)
        if place not in known:
            known[place] = find_peaks(cell.engine, result.host, *place[1:], probe)
        records.results[key] = replace(result, peaks=known[place])
