"""The mirror of the results in MLflow: one parent run a sweep, one nested run a cell.

``MlflowClient`` with explicit run ids, because the fluent functions keep state that ``mlflow run`` has already used up.
A run is created when its cell is over, with one ``log_batch``, and nothing is logged while anything is timed. A run that
is still RUNNING was logged by half, by a process that was killed or a server that went away: ``push`` replaces it, and
ends the parent. Everything that MLflow may refuse becomes a ``TrackingError``: by then the result is
on disk, and ``push`` can send it again.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of every table it creates
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default, 7 with back-off, is minutes of silence
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric as LoggedMetric
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from bench import paths
from bench.analysis.bottlenecks import bottlenecks
from bench.analysis.compare import is_group, varying_columns
from bench.analysis.kinds import per_step_s
from bench.analysis.metrics import derive
from bench.analysis.quality import answer_differences
from bench.analysis.readings import median_step_s
from bench.config import Tracking
from bench.errors import TrackingError
from bench.output import table, views
from bench.output.advise import in_numbers
from bench.output.store import TRACE, Sweep, cell_folder
from bench.result import Result
from bench.spec import digest, identity

_RUN_STATUS = {"ok": "FINISHED", "skipped": "FINISHED", "killed": "KILLED"}  # anything else FAILED
# requests' exceptions are OSErrors; a database whose driver is not installed is an ImportError
_REFUSALS = (MlflowException, SQLAlchemyError, OSError, ImportError)
_PLAIN_WORDS = {  # what stands at the end of a paragraph about retries and pools
    "Connection refused": "connection refused: nothing answers there (for this checkout's own store: make ui)",
    "Failed to resolve": "no host of that name can be found",
    "timed out": "no answer in time",
}
_LONGEST_REASON = 200
_LONGEST_VALUE = 500
_LONGEST_NAME = 100
_LONGEST_NOTE = 7900  # MLflow cuts tags at 8,000 characters
_MOST_STEPS = 900  # of the decode-step curve: a batch takes 1,000 metrics


def tracking_uri(tracking: Tracking, outputs: Path) -> str:
    """Where runs go: the configuration's word, the environment's, or SQLite in the outputs folder."""
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs.resolve() / 'mlflow.db'}"


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except _REFUSALS as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        plain = next((said for sign, said in _PLAIN_WORDS.items() if sign in str(error)), first[:_LONGEST_REASON])
        raise TrackingError(f"MLflow at {uri}: {plain}") from error


class Tracker:
    """Logs one sweep. Any method may raise TrackingError."""

    def __init__(self, uri: str, outputs: Path, folder: Path, sweep: Sweep) -> None:
        self._uri, self._folder, self._sweep = uri, folder, sweep
        self._place = digest([socket.gethostname(), str(outputs.resolve())])  # whose runs are ours
        self.parent_id = ""
        with _translated(uri):
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(sweep.tracking.experiment)
            # A server has a place for artifacts; beside a database the default would be ./mlruns, wherever we were started.
            place = None if "http" in uri.partition(":")[0] else (outputs.resolve() / "artifacts").as_uri()
            self.experiment_id = (
                found.experiment_id if found else self._client.create_experiment(sweep.tracking.experiment, place)
            )

    def open(self) -> None:
        """Find the sweep's parent run, or make it."""
        with _translated(self._uri):
            self.parent_id = (
                self._adopted() or self._found(f"tags.`bench.kind` = 'sweep' and {self._mine}") or self._new_parent()
            )

    def end_dead_runs(self) -> None:
        """Runs of this folder that still say RUNNING belong to sweeps that were killed: whoever asks holds the lock."""
        dead = f"attributes.status = 'RUNNING' and tags.`bench.place` = '{self._place}'"
        with _translated(self._uri):
            for run in self._client.search_runs([self.experiment_id], dead):
                self._client.set_terminated(run.info.run_id, "KILLED")

    @property
    def how_to_look(self) -> str:
        """The page of the runs, and what serves it where no server runs yet."""
        page = views.page(self.experiment_id, self._sweep.sweep_id)
        if self._uri.startswith("http"):
            return self._uri.rstrip("/") + page
        usual = self._uri == f"sqlite:///{paths.ROOT / 'outputs' / 'mlflow.db'}"
        command = "make ui" if usual else f"mlflow server --port 5000 --backend-store-uri {self._uri}"
        return f"{command}, then http://127.0.0.1:5000{page}"

    @property
    def _mine(self) -> str:
        return f"tags.`bench.sweep_id` = '{self._sweep.sweep_id}'"

    def _found(self, filter_string: str) -> str | None:
        runs = self._client.search_runs([self.experiment_id], filter_string, max_results=1)
        return runs[0].info.run_id if runs else None

    def _adopted(self) -> str | None:
        """The run that ``mlflow run`` has opened for us, made the sweep's parent."""
        run_id = os.environ.pop("MLFLOW_RUN_ID", None)
        if run_id is not None:
            self.experiment_id = self._client.get_run(run_id).info.experiment_id
            for key, value in self._parent_tags().items():
                self._client.set_tag(run_id, key, value)
        return run_id

    def _new_parent(self) -> str:
        asked = " ".join(word for word in self._sweep.overrides if "=" in word)
        name = asked[:_LONGEST_NAME] or f"sweep {self._sweep.sweep_id}"
        run = self._client.create_run(self.experiment_id, _ms(self._sweep.started_at), self._parent_tags(), run_name=name)
        return str(run.info.run_id)

    def _parent_tags(self) -> dict[str, str]:
        return {
            "bench.kind": "sweep",
            "bench.place": self._place,
            "bench.sweep_id": self._sweep.sweep_id,
            "bench.overrides": " ".join(self._sweep.overrides),
            **_git_tags(self._sweep),
        }

    def log_cell(self, result: Result) -> None:
        """One nested run with everything. One that is there stays as it is; one that was logged by half is replaced."""
        same_cell = f"tags.`bench.cell_id` = '{result.cell_id}' and {self._mine}"
        with _translated(self._uri):
            for run in self._client.search_runs([self.experiment_id], same_cell):
                if run.info.status != "RUNNING" and run.info.end_time == _ms(result.ended_at):
                    return
                self._client.delete_run(run.info.run_id)
            run_id = self._client.create_run(
                self.experiment_id,
                start_time=_ms(result.started_at),
                run_name=result.cell.label,
                tags={"mlflow.parentRunId": self.parent_id, **self._cell_tags(result)},
            ).info.run_id
            self._client.log_batch(run_id, _metrics(result), _params(result), [])
            self._log_artifacts(run_id, result)
            status = _RUN_STATUS.get(result.outcome.status, "FAILED")
            self._client.set_terminated(run_id, status, _ms(result.ended_at))

    def _log_artifacts(self, run_id: str, result: Result) -> None:
        folder = cell_folder(self._folder, result.cell_id)
        self._client.log_artifact(run_id, str(folder / "result.json"))
        if result.samples:
            # The prompt first: MLflow's comparison of artifacts makes one row for each value of the first column.
            columns: dict[str, Any] = {
                "prompt": [sample.prompt for sample in result.samples],
                "answer": [sample.answer for sample in result.samples],
                "new_tokens": [len(sample.tokens) for sample in result.samples],
                "ended": [sample.ended for sample in result.samples],
            }
            if compared := answer_differences(result):
                columns["first_difference"] = [each.first_difference for each in compared]
                columns["equal_share"] = [round(each.equal_share, 3) for each in compared]
            self._client.log_table(run_id, columns, "samples.json")
        if result.profile is not None and (folder / TRACE).is_file():
            self._client.log_artifact(run_id, str(folder / TRACE))
        if result.outcome.status != "ok" and (folder / "log.txt").is_file():
            self._client.log_artifact(run_id, str(folder / "log.txt"))

    def _cell_tags(self, result: Result) -> dict[str, str]:
        tags = {
            "bench.kind": "cell",
            "bench.place": self._place,
            "bench.sweep_id": self._sweep.sweep_id,
            "bench.cell_id": result.cell_id,
            "bench.resume_key": result.resume_key,
            "bench.status": result.outcome.status,
            "bench.host": result.host.device_name,
            **_git_tags(self._sweep),
        }
        if result.reused_from is not None:
            tags["bench.reused_from"] = result.reused_from
        if result.outcome.reason is not None:
            tags["bench.reason"] = result.outcome.reason[:_LONGEST_VALUE]
            tags["mlflow.note.content"] = f"**{result.outcome.status}**: {result.outcome.reason}"
        elif result.measurements:
            tags["mlflow.note.content"] = in_numbers(result)
        return tags

    def close(self, status: str, results: Sequence[Result], ended_at: float, report: Sequence[Path]) -> None:
        """End the parent run with its description, table and files. ``status`` is MLflow's: FINISHED, FAILED or KILLED."""
        summary, bound_by = table.as_text(results, self._sweep), bottlenecks(results)
        with _translated(self._uri):
            for run in self._client.search_runs([self.experiment_id], f"tags.`bench.kind` = 'cell' and {self._mine}"):
                if found := bound_by.get(run.data.tags["bench.cell_id"]):
                    self._client.set_tag(run.info.run_id, "bench.bottleneck", found.name)
                    self._client.set_tag(run.info.run_id, "bench.bottleneck_evidence", found.evidence)
            self._client.log_metric(self.parent_id, "sweep_s", round(ended_at - self._sweep.started_at, 3))
            self._client.set_tag(self.parent_id, "mlflow.note.content", _note(report, summary))
            self._client.log_text(self.parent_id, summary, "summary.txt")
            for file in (self._folder / "sweep.json", *report):
                self._client.log_artifact(self.parent_id, str(file))
            self._prepare_view(results, ended_at)
            self._client.set_terminated(self.parent_id, status, _ms(ended_at))

    def _prepare_view(self, results: Sequence[Result], ended_at: float) -> None:
        metrics = {key for result in results for key in derive(result)}
        columns = varying_columns([result.cell for result in results]) if results else []
        axes = [_param_of(column) for column in columns] or [_param_of("quant"), _param_of("batch")]
        tags = views.view_tags(self._sweep.sweep_id, metrics, axes, _ms(ended_at))
        for key, value in {**tags, "mlflow.note.content": views.DESCRIPTION}.items():
            self._client.set_experiment_tag(self.experiment_id, key, value)


def _note(report: Sequence[Path], summary: str) -> str:
    """The advice and the table, as far as a tag holds them."""
    written = next((file.read_text(encoding="utf-8") for file in report if file.suffix == ".md"), f"```\n{summary}\n```")
    return written if len(written) < _LONGEST_NOTE else written.partition("## Every cell")[0][:_LONGEST_NOTE]


def _param_of(column: str) -> str:
    """The parameter under which a column of the table is logged."""
    if "." in column:
        return column
    return f"{column}.name" if is_group(column) else f"cell.{column}"


def _metrics(result: Result) -> list[LoggedMetric]:
    at = _ms(result.ended_at)
    logged = [LoggedMetric(key, float(f"{value:.6g}"), at, 0) for key, value in derive(result).items()]
    if result.measurements:
        curve = median_step_s(result.measurements)[:_MOST_STEPS]
        logged += [LoggedMetric("decode_step_s", float(f"{step:.6g}"), at, i) for i, step in enumerate(curve)]
    for phase in result.profile.phases if result.profile is not None else ():
        # A slash makes a group of charts in the UI; spaces in names it takes as they are.
        parts = per_step_s(phase).items()
        logged += [LoggedMetric(f"profile_{phase.phase}_s/{kind}", float(f"{s:.6g}"), at, 0) for kind, s in parts]
    return logged


def _params(result: Result) -> list[Param]:
    """Every field of the cell under its path; bare names like ``batch`` would collide with those of ``mlflow run``."""
    flat = dict(_flatten(identity(result.cell), ""))
    params = {(path if "." in path else f"cell.{path}"): str(value)[:_LONGEST_VALUE] for path, value in flat.items()}
    return [Param(key, value) for key, value in params.items()]


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flatten(each, f"{path}.{key}" if path else key)
    elif value is not None:
        yield path, json.dumps(value) if isinstance(value, list) else value


def _git_tags(sweep: Sweep) -> dict[str, str]:
    if sweep.git_commit is None:
        return {}
    return {"mlflow.source.git.commit": sweep.git_commit, "bench.git_dirty": str(sweep.git_dirty).lower()}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
