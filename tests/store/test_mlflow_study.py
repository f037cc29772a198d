"""What MLflow holds of a study that was computed in the head, read back from SQLite."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from bench.analysis.mixed import Budget, mixed
from bench.config.settings import Tracking
from bench.errors import TrackingError
from bench.record.sensitivity import Study, from_json
from bench.store.mlflow_study import log_study
from tests import stores
from tests.analysis.test_sensitivity import ALL, DOWN, readings, trial
from tests.report.test_sensitivity_page import study

BUDGET = Budget(5.6, "bits", "5.6bits")
TRACKING = Tracking("local", True, "an experiment")
BOTH = ("int4", "int8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a study whose files are there."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    stores.database(tmp_path / "outputs" / "mlflow.db")
    place = tmp_path / "outputs" / "sensitivity" / "2026-01-31_12-00-00"
    place.mkdir(parents=True)
    for name in ("sensitivity.html", "losses.png", "log.txt"):
        (place / name).write_text(name)
    (place / "sensitivity.json").write_text(whole().to_json())
    return place


def whole() -> Study:
    """Two sets were measured; of int4 every layer was too."""
    layers = tuple(
        replace(layer, effects={**layer.effects, "int4": replace(of, measured_kl_nats=(k, k))})
        for layer, k in zip(readings().layers, (0.3, 0.9, 0.1), strict=True)
        for of in [layer.effects["int4"]]
    )
    trials = (replace(trial(1.5, ALL), name="all int4"), trial(0.3, {DOWN: "int4"}))
    return replace(study(), readings=readings(layers=layers, trials=trials))


def logged(folder: Path, budget: Budget | None = BUDGET) -> tuple[MlflowClient, Run]:
    given = [] if budget is None else mixed(whole().readings, BOTH, budget, 0)
    where = log_study(TRACKING, folder, whole(), budget, given, "a finding")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("an experiment")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert where.endswith(f"/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}")
    return client, run


def table(run: Run, name: str) -> list[dict[str, Any]]:
    """Its rows."""
    found = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}"))
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def test_a_study_is_one_run_with_its_files(folder: Path) -> None:
    client, run = logged(folder)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "sensitivity tiny int4")
    assert run.info.end_time - run.info.start_time == 2000
    assert run.data.tags["bench.kind"] == "sensitivity"
    assert run.data.tags["bench.study_id"] == folder.name
    assert run.data.tags["mlflow.note.content"] == "a finding"
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    named = {"sensitivity.html", "sensitivity.json", "losses.png"}
    assert files == named | {"layers.json", "allocations.json"}  # and no log: it may quote anything
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/sensitivity.json")
    assert from_json(text, "there") == whole()


def test_it_says_what_was_asked_and_what_came_out(folder: Path) -> None:
    _, run = logged(folder)
    params, metrics = run.data.params, run.data.metrics
    assert (params["model.name"], params["quant.name"]) == ("tiny", "int4")
    assert (params["sensitivity.schemes"], params["sensitivity.budget"]) == ("int4,int8", "5.6bits")
    assert params["sensitivity.asked"] == "quant=int4 <b>"
    assert metrics["kl_nats/int4"] == pytest.approx(1.5)
    assert metrics["bits_per_weight/int8"] == pytest.approx(8)
    # Estimates of 0.2, 0.6 and 0.2 nat, ties at their mean rank, for 0.3, 0.9 and 0.1
    assert metrics["rank_correlation/int4"] == pytest.approx(0.866, abs=1e-3)
    best, *controls = (f"mixed_5.6bits{of}" for of in ("", "_uniform", "_random"))
    assert metrics[f"predicted_weight_bytes/{best}"] == 1175
    assert metrics[f"predicted_tpot_s/{best}"] > 0
    for control in controls:
        assert metrics[f"predicted_kl_nats/{best}"] <= metrics[f"predicted_kl_nats/{control}"]


def test_its_tables_have_every_layer_and_every_allocation(folder: Path) -> None:
    _, run = logged(folder)
    rows = table(run, "layers.json")
    assert len(rows) == 3 * 2
    worst = next(row for row in rows if row["scheme"] == "int4")
    assert worst["layer"] == DOWN
    assert (worst["kind"], worst["weights"], worst["stored_bytes"]) == ("down_proj", 100, 50)
    assert (worst["kl_nats"], worst["estimated_kl_nats"]) == (pytest.approx(0.9), 0.6)
    assert (worst["decode_s"], worst["allocated"]) == (0.1, "int8")
    given = table(run, "allocations.json")
    assert [row["quant"].removeprefix("mixed_5.6bits") for row in given] == [
        *("", "_uniform", "_random", "_inverted", "_ends")
    ]
    assert all(row["kl_nats_low"] < row["kl_nats"] < row["kl_nats_high"] for row in given)


def test_without_a_budget_nothing_is_allocated(folder: Path) -> None:
    client, run = logged(folder, None)
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert "allocations.json" not in files
    assert "allocated" not in table(run, "layers.json")[0]
    assert "sensitivity.budget" not in run.data.params


def test_a_refusal_is_one_sentence(folder: Path) -> None:
    database = folder.parent.parent / "mlflow.db"
    database.write_text("no database")
    with pytest.raises(TrackingError, match=r"^MLflow at sqlite:///.*: .*$"):
        log_study(TRACKING, folder, whole(), None, [], "")
