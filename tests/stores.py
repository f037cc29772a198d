"""Sweeps on disk and databases of MLflow, as tests find them."""

import functools
import tempfile
from pathlib import Path

from bench.config.settings import Tracking
from bench.paths import TEXTS
from bench.record.result import Result
from bench.store import files
from bench.store.database import SQLITE, make_whole
from tests import fakes


@functools.cache
def _made() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        make_whole(f"{SQLITE}{file}")
        return file.read_bytes()


def database(file: Path) -> str:
    """The address of a fresh database; MLflow takes seconds to make one, so it is a copy."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_made())
    return f"{SQLITE}{file}"


def swept(
    outputs: Path, *results: Result, overrides: tuple[str, ...] = (), reproduces: str | None = None
) -> Path:
    """The folder of a sweep of these cells, in their order."""
    place = files.new_folder(outputs)
    tracking = Tracking("local", True, "an experiment")
    cells = (result.cell_id for result in results)
    sweep = fakes.sweep(
        *cells, sweep_id=place.name, overrides=overrides, tracking=tracking, reproduces=reproduces
    )
    files.write_sweep(place, sweep)
    files.write_inputs(place, {"prose.txt": TEXTS["prose"].read_bytes()})
    for result in results:
        files.write_result(place, result)
    return place
