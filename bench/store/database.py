"""Where runs are tracked, and how a database of our own comes to be there whole or not at all.

MLflow makes its tables in some fifty steps that take two seconds, and cannot take up where they
were broken off. So a new file is made aside, under a lock that ends with its process, and renamed.
A file that MLflow cannot open and that holds no run is one that an earlier version left half made:
it is put aside and made anew. One that holds runs is never touched.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bench.config.settings import Tracking
from bench.errors import ConfigError

SQLITE = "sqlite:///"


def tracking_uri(tracking: Tracking, outputs: Path) -> str:
    """Where runs go: the configuration's word, the environment's, or SQLite in the outputs folder.

    Raises:
        ConfigError: for an address under which nothing would be kept.
    """
    given = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given in ("sqlite://", f"{SQLITE}:memory:"):
        raise ConfigError(
            [f"{given}: a database in memory, gone when the sweep ends; want {SQLITE}FILE"]
        )
    if given is None and "?" in str(outputs):
        raise ConfigError(
            [f"output_dir={outputs}: the address of a database in it cannot have a question mark"]
        )
    return given or own_uri(outputs)


def make_whole(uri: str) -> None:
    """See to it that MLflow can open a database of ours; nothing for other stores.

    Raises:
        whatever MLflow, SQLAlchemy or the file system raise when that fails.
    """
    if not uri.startswith(SQLITE) or "?" in uri:  # options of SQLite: somebody knows what they do
        return
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        for left_over in file.parent.glob(".mlflow-*"):  # of killed processes: we have the lock
            shutil.rmtree(left_over)
        if file.is_file() and (holds(file, "runs") or _opens(file)):
            return
        if file.is_file():
            file.rename(file.with_suffix(".half-made"))
        with _aside(file) as aside:
            _open(aside)
            aside.rename(file)


@contextlib.contextmanager
def _aside(file: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".mlflow-") as folder:
        yield Path(folder) / file.name


def _open(file: Path) -> None:
    from mlflow import MlflowClient  # over a second: most of what asks for an address needs none

    MlflowClient(tracking_uri=f"{SQLITE}{file}").search_experiments()


def _opens(file: Path) -> bool:
    """Tried on a copy: MLflow would go on making what is half made, and keeps the file open."""
    if not holds(file, "sqlite_master"):
        return False
    with _aside(file) as copy:
        shutil.copyfile(file, copy)
        try:
            _open(copy)
        except Exception:  # of MLflow, alembic, SQLAlchemy or sqlite3
            return False
    return True


def holds(file: Path, table: str) -> bool:
    """Whether a database has a row in a table; a file that is no database may hold anything."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
        try:
            return db.execute(f"select 1 from {table} limit 1").fetchone() is not None
        except sqlite3.OperationalError as error:
            return "no such table" not in str(error)
        except sqlite3.DatabaseError:
            return True


def bring_along(uri: str, outputs: Path) -> None:
    """Tell the database in an outputs folder where its artifacts are, if it was moved or copied.

    MLflow keeps whole paths of artifacts: it would read and write at the old place. Locations that
    are no folder called artifacts are somebody's choice and stay.
    """
    file = Path(uri.removeprefix(SQLITE))
    here = artifacts_of(outputs)
    if uri != own_uri(outputs) or not file.is_file():
        return
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        experiments = "select experiment_id, artifact_location from experiments"
        for experiment, there in db.execute(experiments).fetchall():
            if there == here or not re.fullmatch(r"file:.*/artifacts", there or ""):
                continue
            db.execute(
                "update experiments set artifact_location = ? where experiment_id = ?",
                (here, experiment),
            )
            db.execute(
                "update runs set artifact_uri = ? || substr(artifact_uri, ?)"
                " where experiment_id = ? and substr(artifact_uri, 1, ?) = ?",
                (here, len(there) + 1, experiment, len(there) + 1, f"{there}/"),
            )


def own_uri(outputs: Path) -> str:
    """Of the database in an outputs folder."""
    return f"{SQLITE}{outputs.resolve() / 'mlflow.db'}"


def artifacts_of(outputs: Path) -> str:
    """Where a database in an outputs folder has its artifacts, as MLflow writes it."""
    return (outputs.resolve() / "artifacts").as_uri()
