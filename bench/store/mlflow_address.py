"""An address of MLflow: a client of it, the experiment that runs go to, where one looks at them,
and whatever goes wrong there in a sentence."""

import contextlib
import shlex
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient

from bench import paths
from bench.config.cell import digest
from bench.errors import BenchError, TrackingError
from bench.record.redact import redacted
from bench.store.database import artifacts_of, bring_along, make_whole

_PLAIN_WORDS = {  # what stands at the end of a paragraph about retries and pools
    "Connection refused": (
        "connection refused: nothing answers there (for this checkout's own store: make ui)"
    ),
    "Failed to resolve": "no host of that name can be found",
    "timed out": "no answer in time",
}
_LONGEST_REASON = 500


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Whatever is raised in this block, by MLflow, alembic, SQLAlchemy, a database's driver or the
    file system, becomes a TrackingError of one sentence."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        lines = str(redacted(str(error))).strip().splitlines()
        first = lines[0] if lines else type(error).__name__
        plain = next(
            (words for sign, words in _PLAIN_WORDS.items() if sign in str(error)),
            textwrap.shorten(first, _LONGEST_REASON, placeholder=" ..."),
        )
        raise TrackingError(redacted(f"MLflow at {uri}: ") + plain) from error


def opened_client(uri: str, outputs: Path) -> MlflowClient:
    """A client of a store that is whole; where it is the one in an outputs folder, its artifacts
    are there too."""
    make_whole(uri)
    bring_along(uri, outputs)
    return MlflowClient(tracking_uri=uri)


def experiment_named(name: str, client: MlflowClient, uri: str, outputs: Path) -> str:
    """The id of an experiment, made if need be. Raises: TrackingError for a deleted one."""
    if experiment := client.get_experiment_by_name(name):
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the experiment {name} was deleted; bring it back with `mlflow experiments"
                f" restore -x {experiment.experiment_id}` and MLFLOW_TRACKING_URI="
                f"{redacted(uri)}, or take another one with tracking.experiment=NAME"
            )
        return str(experiment.experiment_id)
    # A server has a place for artifacts; beside a database the default would be ./mlruns, wherever
    # we were started.
    is_server = "http" in uri.partition(":")[0]
    return str(client.create_experiment(name, None if is_server else artifacts_of(outputs)))


def where_to_look(uri: str, page: str) -> str:
    """The address of a page, and what serves it where no server runs yet."""
    if uri.startswith("http"):
        return str(redacted(uri)).rstrip("/") + page
    usual = uri == f"sqlite:///{paths.ROOT / 'outputs' / 'mlflow.db'}"
    command = (
        "make ui"
        if usual
        else f"mlflow server --port 5000 --backend-store-uri {shlex.quote(redacted(uri))}"
    )
    return f"{command}, then http://127.0.0.1:5000{page}"


def whose(outputs: Path) -> str:
    """What tells the runs of an outputs folder from those of others, as a tag."""
    return digest([socket.gethostname(), str(outputs.resolve())])
