"""Where runs are tracked, and how a database of our own comes to be there whole or not at all.

MLflow makes its tables in some fifty steps that take two seconds, and cannot take up where they
were broken off. So a new file is made aside, under a lock that ends with its process, and renamed.
A file that MLflow cannot open and that holds no run is one that an earlier version left half made:
it is put aside and made anew. One that holds runs is never touched.
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
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
    return given or f"{SQLITE}{outputs.resolve() / 'mlflow.db'}"


def make_whole(uri: str) -> None:
    """See to it that MLflow can open a database of ours; nothing for other stores.

    Raises:
        whatever MLflow, SQLAlchemy or the file system raise when that fails.
    """
    if not uri.startswith(SQLITE):
        return
    file = Path(uri.removeprefix(SQLITE))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        for left_over in file.parent.glob(".mlflow-*"):  # of killed processes: we have the lock
            shutil.rmtree(left_over)
        if file.is_file() and _opens(uri, holds_runs(file)):
            return
        if file.is_file():
            file.rename(file.with_suffix(".half-made"))
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".mlflow-") as folder:
            aside = Path(folder) / file.name
            _open(f"{SQLITE}{aside}")
            aside.rename(file)


def _open(uri: str) -> None:
    from mlflow import MlflowClient  # over a second: most of what asks for an address needs none

    MlflowClient(tracking_uri=uri).search_experiments()


def _opens(uri: str, is_precious: bool) -> bool:
    try:
        _open(uri)
    except Exception:  # of MLflow, alembic, SQLAlchemy or sqlite3
        if is_precious:
            raise
        return False
    return True


def holds_runs(file: Path) -> bool:
    """Whether a database has a run in it; a file that is no database may hold anything."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
        try:
            return db.execute("select 1 from runs limit 1").fetchone() is not None
        except sqlite3.OperationalError as error:
            return "no such table" not in str(error)
        except sqlite3.DatabaseError:
            return True
