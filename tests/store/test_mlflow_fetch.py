"""A run as MLflow has it, read back from another place, and the links that a reproduction
leaves."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from bench.analysis.comparison import compare
from bench.analysis.reproduction import reproductions
from bench.commands.push import push
from bench.errors import ConfigError, StoreError, TrackingError
from bench.report.reproduced import as_record
from bench.store import files as store
from bench.store.mlflow import Tracker, keep_report
from bench.store.mlflow_fetch import from_folder, from_mlflow
from tests import fakes, stores

ONE, TWO = (fakes.result(cell=fakes.cell(batch=batch)) for batch in (1, 2))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two cells, on disk."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    stores.database(tmp_path / "mlflow.db")
    return stores.swept(tmp_path / "outputs", TWO, ONE, overrides=("-m", "batch=1,2"))


def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def logged(folder: Path, tmp_path: Path) -> Tracker:
    tracked = Tracker(uri(tmp_path), folder.parent.parent, folder, store.read_sweep(folder))
    tracked.open()
    results = list(store.read_results(folder))
    for result in results:
        tracked.log_cell(result)
    comparison = compare(results, store.read_sweep(folder))
    tracked.close("FINISHED", 2000.0, comparison, [], "the table")
    return tracked


def test_a_sweep_is_read_back_whole_and_in_its_order(folder: Path, tmp_path: Path) -> None:
    tracked = logged(folder, tmp_path)
    found = from_mlflow(tracked.parent_id, uri(tmp_path))
    assert (found.name, found.sweep) == (tracked.parent_id, store.read_sweep(folder))
    assert found.results == [TWO, ONE]
    assert found.runs.keys() == {ONE.cell_id, TWO.cell_id}


def test_a_cell_is_read_back_with_its_sweep(folder: Path, tmp_path: Path) -> None:
    runs = from_mlflow(logged(folder, tmp_path).parent_id, uri(tmp_path)).runs
    found = from_mlflow(runs[ONE.cell_id], uri(tmp_path))
    assert (found.results, found.sweep.sweep_id) == ([ONE], folder.name)


def test_a_folder_is_read_too(folder: Path) -> None:
    assert from_folder(folder).results == [TWO, ONE]
    assert from_folder(folder).name == folder.name
    cell = from_folder(folder / ONE.cell_id)
    assert (cell.results, cell.name) == ([ONE], f"{folder.name}/{ONE.cell_id}")
    with pytest.raises(StoreError, match=r"no sweep\.json in it"):
        from_folder(folder.parent)


def test_what_is_no_run_of_ours_is_a_mistake(folder: Path, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=uri(tmp_path))
    foreign = client.create_run(client.create_experiment("theirs")).info.run_id
    with pytest.raises(ConfigError, match="not a run of a sweep or of a cell"):
        from_mlflow(foreign, uri(tmp_path))
    with pytest.raises(TrackingError, match="not found"):
        from_mlflow("0" * 32, uri(tmp_path))


def test_a_sweep_that_was_killed_says_what_completes_it(folder: Path, tmp_path: Path) -> None:
    tracked = Tracker(uri(tmp_path), folder.parent.parent, folder, store.read_sweep(folder))
    tracked.open()
    with pytest.raises(ConfigError, match="bench push"):
        from_mlflow(tracked.parent_id, uri(tmp_path))


def test_a_reproduction_is_linked_cell_by_cell(folder: Path, tmp_path: Path) -> None:
    original = from_mlflow(logged(folder, tmp_path).parent_id, uri(tmp_path))
    overrides = ("reproduce", original.name)
    again = stores.swept(
        tmp_path / "outputs", TWO, ONE, overrides=overrides, reproduces=original.name
    )
    tracked = logged(again, tmp_path)
    slower = fakes.paced(TWO.cell, 0.6, 0.6, 0.6, cell_id=TWO.cell_id)
    found = reproductions([(fakes.paced(TWO.cell, 0.5, 0.5, 0.5), slower), (ONE, ONE)], 0.05)
    record = as_record(original.name, found, original.runs, [], 0.05)
    store.write_reproduction(again, record)
    tracked.link()
    client = MlflowClient(tracking_uri=uri(tmp_path))
    parent = client.get_run(tracked.parent_id)
    assert parent.info.run_name == f"reproduce {original.name}"
    assert parent.data.tags["bench.reproduces"] == original.name
    assert parent.data.tags["bench.verdict"] == "differs"
    assert parent.data.tags["mlflow.note.content"] == record["text"]
    assert "reproduction.md" in [
        artifact.path for artifact in client.list_artifacts(tracked.parent_id)
    ]
    cells = client.search_runs(
        [tracked.experiment_id], f"tags.`mlflow.parentRunId` = '{tracked.parent_id}'"
    )
    tags = {run.data.tags["bench.cell_id"]: run.data.tags for run in cells}
    assert tags[TWO.cell_id]["bench.verdict"] == "differs"
    assert tags[TWO.cell_id]["bench.reproduces"] == original.runs[TWO.cell_id]
    metrics = next(
        run.data.metrics for run in cells if run.data.tags["bench.cell_id"] == TWO.cell_id
    )
    assert metrics["reproduction/tpot_ratio"] == pytest.approx(1.2)
    stores.database(again.parent.parent / "mlflow.db")
    assert push(again) == 0  # to the store in the outputs folder, with all of it
    elsewhere = MlflowClient(tracking_uri=f"sqlite:///{again.parent.parent / 'mlflow.db'}")
    pushed = elsewhere.search_runs(["1"], "tags.`bench.kind` = 'sweep'")
    assert [
        (run.data.tags["bench.verdict"], run.data.tags["mlflow.note.content"]) for run in pushed
    ] == [("differs", record["text"])]


def test_a_run_that_somebody_has_nested_is_its_own_sweep(folder: Path, tmp_path: Path) -> None:
    tracked = logged(folder, tmp_path)
    MlflowClient(tracking_uri=uri(tmp_path)).set_tag(
        tracked.parent_id, "mlflow.parentRunId", "0" * 32
    )
    assert from_mlflow(tracked.parent_id, uri(tmp_path)).results == [TWO, ONE]


def test_an_empty_sweep_is_a_mistake(folder: Path) -> None:
    for file in folder.glob("*/result.json"):
        file.unlink()
    with pytest.raises(ConfigError, match="no cell of this sweep has ended"):
        from_folder(folder)


def test_a_report_is_kept_with_the_run_that_mlflow_has_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri=uri(tmp_path))
    opened = client.create_run(
        client.create_experiment("reports", (tmp_path / "kept").as_uri())
    ).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(tmp_path))
    page = tmp_path / "report.md"
    page.write_text("# What to use")
    keep_report(opened, folder.name, [page])
    run = client.get_run(opened)
    assert run.data.tags["bench.kind"] == "report"
    assert run.data.tags["mlflow.note.content"] == "# What to use"
    assert [artifact.path for artifact in client.list_artifacts(opened)] == ["report.md"]
