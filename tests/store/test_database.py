"""The database of runs is there whole or not at all, wherever its folder lies and goes."""

import itertools
import multiprocessing
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event

from bench.config.settings import Tracking
from bench.errors import ConfigError, TrackingError
from bench.store.database import SQLITE, bring_along, make_whole, tracking_uri
from bench.store.files import read_results, read_sweep
from bench.store.mlflow import Tracker
from tests import fakes, stores

LOCAL = Tracking("local", True, "tests")
ODD = ("with space", "a#b", "50%", "é", "it's", 'say "x"', "a;b&c", "[1]", "a:b", "a+b=c", "$HOME")
KILLED = fakes.result()


def logged(folder: Path) -> Tracker:
    """A sweep's folder in the database beside it."""
    outputs, sweep = folder.parent.parent, read_sweep(folder)
    tracker = Tracker(tracking_uri(sweep.tracking, outputs), outputs, folder, sweep)
    tracker.open()
    for result in read_results(folder):
        tracker.log_cell(result)
    return tracker


def opens(uri: str) -> bool:
    return bool(MlflowClient(tracking_uri=uri).search_experiments())


def _make_and_die(uri: str, statement: int) -> None:
    """Make a database and be killed before its so manieth statement."""
    statements = itertools.count(1)

    @event.listens_for(Engine, "before_cursor_execute")
    def _kill(*_: object) -> None:
        if next(statements) == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    make_whole(uri)


@pytest.mark.parametrize("statement", [1, 20, 100, 200])
def test_a_first_start_that_is_killed_ends_no_tracking(tmp_path: Path, statement: int) -> None:
    uri = f"{SQLITE}{tmp_path / 'mlflow.db'}"
    fork = multiprocessing.get_context("fork")
    maker = fork.Process(target=_make_and_die, args=(uri, statement))
    maker.start()
    maker.join()
    assert maker.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".mlflow-*"))  # was killed while it made the database
    make_whole(uri)
    assert opens(uri)
    assert not list(tmp_path.glob(".mlflow-*"))


def test_two_first_starts_at_once_both_end_well(tmp_path: Path) -> None:
    uri = f"{SQLITE}{tmp_path / 'mlflow.db'}"
    fork = multiprocessing.get_context("fork")
    makers = [fork.Process(target=make_whole, args=(uri,)) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0]
    assert opens(uri)


@pytest.mark.parametrize("left", ["nothing", "some tables", "an older version"])
def test_what_holds_no_run_and_does_not_open_is_put_aside(tmp_path: Path, left: str) -> None:
    uri, file = stores.database(tmp_path / "mlflow.db"), tmp_path / "mlflow.db"
    if left == "an older version":
        with sqlite3.connect(file) as database:
            database.execute("update alembic_version set version_num = '451aebb31d03'")
    else:
        file.unlink()
        with sqlite3.connect(file) as database:
            if left == "some tables":
                database.execute("create table datasets (x)")
    make_whole(uri)
    assert opens(uri)
    assert (tmp_path / "mlflow.half-made").is_file()


def test_what_holds_runs_is_never_put_aside(tmp_path: Path) -> None:
    folder = stores.swept(tmp_path, KILLED)
    stores.database(tmp_path / "first.db")
    client = MlflowClient(tracking_uri=f"{SQLITE}{tmp_path / 'first.db'}")
    client.create_run("0")
    shutil.copyfile(tmp_path / "first.db", tmp_path / "mlflow.db")  # a process opens it once
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(TrackingError, match=r"out-of-date database schema .*mlflow db upgrade"):
        logged(folder)
    assert (tmp_path / "mlflow.db").read_bytes() == before
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(TrackingError, match="file is not a database"):
        logged(folder)


def test_artifacts_move_with_their_folder(tmp_path: Path) -> None:
    stores.database(tmp_path / "old" / "mlflow.db")
    folder = stores.swept(tmp_path / "old", KILLED)
    run_id = logged(folder).parent_id
    new = tmp_path / "new place"
    shutil.move(tmp_path / "old", new)
    uri = f"{SQLITE}{new / 'mlflow.db'}"
    bring_along(uri, new)
    client = MlflowClient(tracking_uri=uri)
    assert "result.json" in [artifact.path for artifact in client.list_artifacts(run_id)]
    another = stores.swept(new, fakes.result(cell=fakes.cell(batch=4)))
    logged(another)
    assert not (tmp_path / "old").exists()
    assert len(list((new / "artifacts").iterdir())) == 2


def test_artifacts_that_somebody_has_put_elsewhere_stay_there(tmp_path: Path) -> None:
    uri = stores.database(tmp_path / "mlflow.db")
    client = MlflowClient(tracking_uri=uri)
    theirs = client.create_experiment("theirs", (tmp_path / "a share").as_uri())
    bring_along(uri, tmp_path)
    assert client.get_experiment(theirs).artifact_location == (tmp_path / "a share").as_uri()


@pytest.mark.parametrize("name", ODD)
def test_a_folder_may_be_called_anything(tmp_path: Path, name: str) -> None:
    stores.database(tmp_path / name / "mlflow.db")
    tracker = logged(stores.swept(tmp_path / name, KILLED))
    client = MlflowClient(tracking_uri=f"{SQLITE}{tmp_path / name / 'mlflow.db'}")
    found = [artifact.path for artifact in client.list_artifacts(tracker.parent_id)]
    assert "result.json" in found
    assert [place.name for place in tmp_path.iterdir()] == [name]


def test_an_address_that_keeps_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
    with pytest.raises(ConfigError, match="a database in memory, gone when the sweep ends"):
        tracking_uri(LOCAL, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="cannot have a question mark"):
        tracking_uri(LOCAL, tmp_path / "why?")


def test_a_deleted_experiment_says_how_to_get_it_back(tmp_path: Path) -> None:
    uri = stores.database(tmp_path / "mlflow.db")
    folder = stores.swept(tmp_path, KILLED)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("an experiment")
    client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match=rf"mlflow experiments restore -x {experiment}"):
        logged(folder)
    client.restore_experiment(experiment)
    assert logged(folder).experiment_id == experiment


def test_cells_whose_sweep_was_deleted_come_under_the_new_one(tmp_path: Path) -> None:
    uri = stores.database(tmp_path / "mlflow.db")
    results = [fakes.result(cell=fakes.cell(batch=batch)) for batch in (1, 2)]
    folder = stores.swept(tmp_path, *results)
    first = logged(folder)
    client = MlflowClient(tracking_uri=uri)
    client.delete_run(first.parent_id)
    second = logged(folder)
    assert second.parent_id != first.parent_id
    cells = "tags.`bench.kind` = 'cell'"
    parents = {
        run.data.tags["mlflow.parentRunId"]
        for run in client.search_runs([second.experiment_id], cells)
    }
    assert parents == {second.parent_id}
