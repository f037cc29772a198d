"""Every folder that a sweep will write to, tried by writing, before anything is measured."""

import os
import tempfile
from pathlib import Path

from bench.errors import ConfigError
from bench.paths import cache_folder

_ENOUGH_BYTES = 2**20  # for the records of a cell; weights and traces say themselves what they miss


def try_places(outputs: Path | None) -> None:
    """Make the folders of results, of what is kept between sweeps and of temporary files.

    Args:
        outputs: of a sweep; None where nothing is measured that is kept as a result.

    Raises:
        ConfigError: with a sentence for each that cannot be written to.
    """
    places = (
        *(() if outputs is None else ((f"output_dir={outputs}", outputs / "sweeps", ""),)),
        (f"the cache {cache_folder()}", cache_folder(), "; BENCH_CACHE names another folder"),
        (f"TMPDIR={tempfile.gettempdir()}", Path(tempfile.gettempdir()), ""),
    )
    problems = []
    for name, folder, advice in places:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_something(folder)
        except OSError as error:
            problems.append(f"{name}: cannot be written to ({error.strerror}){advice}")
    if problems:
        raise ConfigError(problems)


def _write_something(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_ENOUGH_BYTES))
        file.flush()
        os.fsync(file.fileno())
