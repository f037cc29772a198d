"""A run as it was recorded, from its folder on disk or from MLflow, where a colleague may have put
it."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from bench.errors import ConfigError
from bench.record.result import Result, from_json
from bench.record.sweep import Sweep
from bench.store.files import read_place, sweep_from_json
from bench.store.mlflow_address import translated


@dataclass(frozen=True, slots=True)
class Recorded:
    """A sweep, or one cell of it, and by what name it was asked for."""

    name: str  # MLflow's id of a run, or a folder's name
    sweep: Sweep
    results: list[Result]
    runs: Mapping[str, str] = field(default_factory=dict)  # by cell_id, MLflow's id of its run


def from_folder(folder: Path) -> Recorded:
    """Raises: StoreError when the folder is neither a sweep's nor a cell's; ConfigError when it has
    no result."""
    folder = folder.resolve()
    stored = read_place(folder)
    if not stored.results:
        reasons = list(stored.damaged.values())
        raise ConfigError(reasons or [f"{folder}: no cell of this sweep has ended"])
    sweep_id = stored.sweep.sweep_id
    name = folder.name if folder.name == sweep_id else f"{sweep_id}/{folder.name}"
    return Recorded(name, stored.sweep, stored.results)


def from_mlflow(run_id: str, uri: str) -> Recorded:
    """The run of a cell, or of a sweep with all its cells.

    Raises:
        ConfigError: when the run is none of ours, or has not ended.
        StoreError: when its record cannot be read by this version.
        TrackingError: when there is no such run, or MLflow does not answer.
    """
    client = MlflowClient(tracking_uri=uri)
    with translated(uri):
        run = client.get_run(run_id)
        kind = run.data.tags.get("bench.kind")
        if kind not in ("sweep", "cell"):
            raise ConfigError([f"{run_id}: not a run of a sweep or of a cell"])
        # A run that somebody else has nested is the sweep's own all the same: the one that has
        # sweep.json.
        is_nested = "mlflow.parentRunId" in run.data.tags and "sweep.json" not in _names(
            client, run
        )
        parent = client.get_run(run.data.tags["mlflow.parentRunId"]) if is_nested else run
        sweep = sweep_from_json(
            _artifact(client, parent, "sweep.json"), f"sweep.json of run {parent.info.run_id}"
        )
        cells = [run]
        if kind == "sweep":
            of_it = f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`bench.kind` = 'cell'"
            cells = list(
                client.search_runs([run.info.experiment_id], of_it, max_results=len(sweep.cells))
            )
            cells.sort(key=lambda cell: sweep.cells.index(cell.data.tags["bench.cell_id"]))
        texts = {cell.info.run_id: _artifact(client, cell, "result.json") for cell in cells}
    results = [from_json(text, f"result.json of run {run_id}") for run_id, text in texts.items()]
    if not results:
        raise ConfigError([f"{run_id}: no cell of this sweep has ended"])
    return Recorded(
        run_id, sweep, results, dict(zip((r.cell_id for r in results), texts, strict=True))
    )


def _names(client: MlflowClient, run: Run) -> list[str]:
    return [file.path for file in client.list_artifacts(run.info.run_id)]


def _artifact(client: MlflowClient, run: Run, name: str) -> bytes:
    if name not in _names(client, run):
        raise ConfigError(
            [
                f"{run.info.run_id}: no {name} in it, the sweep was killed; `python -m bench push`"
                " completes it"
            ]
        )
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run.info.run_id, name, folder)).read_bytes()
