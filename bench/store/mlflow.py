"""The mirror of the results in MLflow: one parent run a sweep, one nested run a cell; a sweep of
one cell is one run.

``MlflowClient`` with explicit run ids, because the fluent functions keep state that ``mlflow run``
has already used up. A nested run is created when its cell is over, with one ``log_batch``, and
nothing is logged while anything is timed. A run that is still RUNNING was logged by half, by a
process that was killed or a server that went away: ``push`` replaces it, and ends the parent.
Everything that MLflow may refuse becomes a ``TrackingError``: by then the result is on disk, and
``push`` can send it again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from bench.analysis.columns import short_name
from bench.analysis.comparison import Comparison
from bench.analysis.metrics import derive
from bench.errors import TrackingError
from bench.record.foreign import Foreign
from bench.record.redact import redacted
from bench.record.result import Result
from bench.record.sweep import Sweep
from bench.store import mlflow_record as logged
from bench.store import mlflow_view as views
from bench.store.files import DIFF, INPUTS, REPRODUCTION, TRACE, cell_folder
from bench.store.mlflow_address import (
    experiment_named,
    opened_client,
    translated,
    where_to_look,
    whose,
)
from bench.store.mlflow_foreign import FOREIGN, log_foreign
from bench.store.mlflow_record import MOST_FOUND, milliseconds

_RUN_STATUS = {"ok": "FINISHED", "skipped": "FINISHED", "killed": "KILLED"}  # anything else FAILED
_LONGEST_NAME = 100


class Tracker:
    """Logs one sweep. Any method may raise TrackingError."""

    def __init__(self, uri: str, outputs: Path, folder: Path, sweep: Sweep) -> None:
        self._uri, self._outputs, self._folder, self._sweep = uri, outputs, folder, sweep
        self._place = whose(outputs)
        self._is_single = len(sweep.cells) == 1
        # By `mlflow run`, for us: in the store that it names
        opened = os.environ.pop("MLFLOW_RUN_ID", None)
        self._adopted = opened if os.environ.get("MLFLOW_TRACKING_URI", uri) == uri else None
        self.parent_id = ""  # of the sweep's run; of its only cell's, too
        self._is_new = False  # nothing of this sweep is there but what is logged here
        self._logged: set[str] = set()  # cell_ids
        with translated(uri):
            self._client = opened_client(uri, outputs)
            self.experiment_id = self._experiment()

    def _experiment(self) -> str:
        """Of the adopted run; else where this sweep has runs already; else the one that is asked
        for."""
        if self._adopted is not None:
            return str(self._client.get_run(self._adopted).info.experiment_id)
        everywhere = [there.experiment_id for there in self._client.search_experiments()]
        search = self._client.search_runs
        runs = search(everywhere, self._mine, max_results=1) if everywhere else []
        if runs:
            return str(runs[0].info.experiment_id)
        name = self._sweep.tracking.experiment
        return experiment_named(name, self._client, self._uri, self._outputs)

    def open(self) -> None:
        """Find the sweep's run, or make it."""
        with translated(self._uri):
            self.parent_id = (
                self._adopted
                or self._found(f"tags.`bench.kind` = '{self._kind}' and {self._mine}")
                or ""
            )
            if not self.parent_id:
                started_at = milliseconds(self._sweep.started_at)
                run = self._client.create_run(
                    self.experiment_id, started_at, self._tags(self._kind), run_name=self._name
                )
                self.parent_id = str(run.info.run_id)
                # The parent may have been deleted in the UI: then its cells are there
                self._is_new = self._found(f"tags.`bench.kind` = 'cell' and {self._mine}") is None
            elif self._adopted:
                self._client.update_run(self.parent_id, name=self._name)
                self._set_tags(self.parent_id, self._tags(self._kind))

    def find(self) -> None:
        """The same where there is one. Raises: TrackingError when there is none."""
        with translated(self._uri):
            found = self._found(f"tags.`bench.kind` = '{self._kind}' and {self._mine}")
        if found is None:
            sweep = self._sweep.sweep_id
            raise TrackingError(f"MLflow at {redacted(self._uri)}: no run of sweep {sweep}")
        self.parent_id = found

    def end_dead_runs(self) -> None:
        """Runs of this folder that still say RUNNING belong to sweeps that were killed: whoever
        asks holds the lock."""
        dead = f"attributes.status = 'RUNNING' and tags.`bench.place` = '{self._place}'"
        with translated(self._uri):
            for run in self._client.search_runs([self.experiment_id], dead):
                self._client.set_terminated(run.info.run_id, "KILLED")

    @property
    def how_to_look(self) -> str:
        """The page of the runs, as ``where_to_look`` says it."""
        page = views.page(self.experiment_id, self._sweep.sweep_id, len(self._sweep.cells))
        return where_to_look(self._uri, page)

    @property
    def _mine(self) -> str:
        return f"tags.`bench.sweep_id` = '{self._sweep.sweep_id}'"

    def _found(self, filter_string: str) -> str | None:
        runs = self._client.search_runs([self.experiment_id], filter_string, max_results=1)
        return runs[0].info.run_id if runs else None

    @property
    def _kind(self) -> str:
        return "cell" if self._is_single else "sweep"

    @property
    def _name(self) -> str:
        if self._sweep.reproduces is not None:
            return f"reproduce {self._sweep.reproduces}"
        asked = " ".join(word for word in self._sweep.overrides if "=" in word)
        return str(redacted(asked))[:_LONGEST_NAME] or f"sweep {self._sweep.sweep_id}"

    def _tags(self, kind: str) -> dict[str, str]:
        return {"bench.kind": kind, "bench.place": self._place, **logged.sweep_tags(self._sweep)}

    def _set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self._client.log_batch(run_id, [], [], [RunTag(key, value) for key, value in tags.items()])

    def log_cell(self, result: Result) -> None:
        """One run with everything. What is there stays as it is; a nested one that was logged by
        half is replaced."""
        values = derive(result, self._sweep.price_per_hour)
        with translated(self._uri):
            if self._is_single:
                run_id = self.parent_id
                if self._sweep.reproduces is None:
                    self._client.update_run(run_id, name=self._cell_name(result))
                self._set_tags(run_id, logged.cell_tags(result, values))
            else:
                run_id = self._new_cell(result, logged.cell_tags(result, values))
            if not run_id:
                return
            metrics = logged.metrics(result, values)
            self._client.log_batch(run_id, metrics, logged.params(result.cell), [])
            self._log_artifacts(run_id, result)
            if not self._is_single:
                self._client.set_terminated(
                    run_id, _run_status(result), milliseconds(result.ended_at)
                )

    def _new_cell(self, result: Result, cell_tags: dict[str, str]) -> str:
        """A nested run for a result; empty when it has one."""
        same_cell = f"tags.`bench.cell_id` = '{result.cell_id}' and {self._mine}"
        may_have_one = not self._is_new or result.cell_id in self._logged
        self._logged.add(result.cell_id)
        search = self._client.search_runs
        for run in search([self.experiment_id], same_cell) if may_have_one else ():
            is_whole = run.info.status != "RUNNING" and (
                run.info.end_time == milliseconds(result.ended_at)
            )
            # The parent may have been deleted in the UI, and be another one now
            if is_whole and run.data.tags.get("mlflow.parentRunId") == self.parent_id:
                return ""
            self._client.delete_run(run.info.run_id)
        tags = {"mlflow.parentRunId": self.parent_id, **self._tags("cell"), **cell_tags}
        started_at = milliseconds(result.started_at)
        run = self._client.create_run(
            self.experiment_id, started_at, tags, run_name=self._cell_name(result)
        )
        return str(run.info.run_id)

    def _cell_name(self, result: Result) -> str:
        """What varies comes first: lists of runs show some twenty characters."""
        return short_name(result.cell, self._sweep.columns, {"batch": "b"}) or result.cell.label

    def _log_artifacts(self, run_id: str, result: Result) -> None:
        folder = cell_folder(self._folder, result.cell_id)
        has_prompts = result.cell.quality.store_prompts
        if has_prompts:
            self._client.log_artifact(run_id, str(folder / "result.json"))
        else:
            without = logged.without_prompts(result).to_json()
            self._client.log_text(run_id, without, "result.json")
        self._client.log_text(run_id, logged.configuration(result), "config.yaml")
        if result.samples and has_prompts:
            self._log_table(run_id, logged.samples(result), "samples.json")
        if result.profile is not None and (folder / TRACE).is_file():
            self._client.log_artifact(run_id, str(folder / TRACE))
        # What libraries print may quote anything
        if result.outcome.status != "ok" and has_prompts and (folder / "log.txt").is_file():
            text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            self._client.log_text(run_id, redacted(text), "log.txt")

    def _log_table(self, run_id: str, columns: Mapping[str, Any], name: str) -> None:
        """Unless it is there: a table that is logged again gets longer."""
        if name not in {artifact.path for artifact in self._client.list_artifacts(run_id)}:
            self._client.log_table(run_id, dict(columns), name)

    def close(
        self,
        status: str,
        ended_at: float,
        comparison: Comparison | None,
        files: Sequence[Path],
        summary: str,
    ) -> None:
        """End the parent run with its description, table and files.

        Args:
            status: MLflow's: FINISHED, FAILED or KILLED.
            comparison: of the results; None where there was no time for one.
            files: the report's.
            summary: the table as text.
        """
        if comparison is not None and self._is_single and status == "FINISHED":
            status = _run_status(comparison.results[0])
        summary = redacted(summary)
        with translated(self._uri):
            if comparison is not None:
                self._complete(comparison)
                self._prepare_view(comparison, ended_at)
                if not self._is_single:
                    self._summarize(comparison)
            took_s = round(ended_at - self._sweep.started_at, 3)
            self._client.log_metric(self.parent_id, "sweep_s", took_s)
            self._client.set_tag(self.parent_id, logged.NOTE, logged.sweep_note(files, summary))
            self._client.log_text(self.parent_id, summary, "summary.txt")
            for file in (self._folder / "sweep.json", self._folder / DIFF, *files):
                if file.is_file():
                    self._client.log_artifact(self.parent_id, str(file))
            self._client.log_artifacts(self.parent_id, str(self._folder / INPUTS), INPUTS)
            self._client.set_terminated(self.parent_id, status, milliseconds(ended_at))

    def _cells(self) -> list[Run]:
        cells = f"tags.`bench.kind` = 'cell' and {self._mine}"
        found = self._client.search_runs([self.experiment_id], cells, max_results=MOST_FOUND)
        return list(found)

    def _complete(self, comparison: Comparison) -> None:
        """What only the comparison knows of a cell: how its configuration grows with the
        context."""
        for run in self._cells() if comparison.deep else ():
            grown = logged.growth(comparison, run.data.tags.get("bench.cell_id", ""))
            if grown:
                self._client.log_batch(run.info.run_id, grown, [], [])

    def _summarize(self, comparison: Comparison) -> None:
        """The parent says what varies, what does not, and which cells are best; and has all of them
        in one table, since MLflow compares a hundred runs at most."""
        asked, shared = logged.parent_params(comparison), logged.shared_params(comparison.results)
        metrics, tags = logged.best_cells(comparison)
        self._client.log_batch(self.parent_id, metrics, [*asked, *shared], [])
        self._set_tags(self.parent_id, tags)
        self._log_table(self.parent_id, logged.cells(comparison), "cells.json")

    def _prepare_view(self, comparison: Comparison, ended_at: float) -> None:
        metrics = {key for values in comparison.values.values() for key in values}
        axes = [logged.param_of(column) for column in comparison.columns]
        many = len(comparison.results) > views.MOST_COMPARED
        at_ms = milliseconds(ended_at)
        tags = views.view_tags(self._sweep.sweep_id, metrics, axes, at_ms, with_charts=not many)
        for key, value in {**tags, logged.NOTE: views.DESCRIPTION}.items():
            self._client.set_experiment_tag(self.experiment_id, key, value)

    def log_foreign(self, foreign: Sequence[Foreign], files: Sequence[Path] = ()) -> None:
        """What was imported, as nested runs in the place of those that are there, and the report
        that shows it."""
        with translated(self._uri):
            tags = {"mlflow.parentRunId": self.parent_id, **self._tags(FOREIGN)}
            log_foreign(self._client, self.experiment_id, self._mine, tags, foreign)
            for file in files:
                self._client.log_artifact(self.parent_id, str(file))

    def link(self) -> None:
        """Tag the runs of a reproduction with the originals and the verdict, as its folder has
        them; nothing without."""
        file = self._folder / REPRODUCTION
        if not file.is_file():
            return
        verdict = json.loads(file.read_text(encoding="utf-8"))
        with translated(self._uri):
            run_of = {run.data.tags["bench.cell_id"]: run.info.run_id for run in self._cells()}
            for cell_id, cell in verdict["cells"].items():
                tags = {"bench.verdict": cell["verdict"], "bench.reproduces": cell["reproduces"]}
                self._set_tags(run_of[cell_id], tags)
                for key, value in cell["numbers"].items():
                    self._client.log_metric(run_of[cell_id], key, logged.rounded(value))
            note = verdict["text"][: logged.LONGEST_NOTE]
            tags = {"bench.verdict": verdict["verdict"], logged.NOTE: note}
            self._set_tags(self.parent_id, tags)
            for name in (REPRODUCTION, "reproduction.md"):
                self._client.log_artifact(self.parent_id, str(self._folder / name))


def keep_report(run_id: str, sweep_id: str, files: Sequence[Path]) -> None:
    """Keep a report with a run that is open. Raises: TrackingError."""
    uri = os.environ["MLFLOW_TRACKING_URI"]  # `mlflow run` sets both
    with translated(uri):
        client = MlflowClient(tracking_uri=uri)
        for key, value in {
            "bench.kind": "report",
            "bench.sweep_id": sweep_id,
            logged.NOTE: logged.sweep_note(files, ""),
        }.items():
            client.set_tag(run_id, key, value)
        for file in files:
            client.log_artifact(run_id, str(file))


def _run_status(result: Result) -> str:
    return _RUN_STATUS.get(result.outcome.status, "FAILED")
