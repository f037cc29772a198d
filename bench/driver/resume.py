"""When is an old result still a result? The second key of a cell.

``cell_id`` says which configuration was measured; ``resume_key`` adds everything else that can
change the number: the machine, the versions that matter, and the text of the files that measure.
Not the commit: an edit of the README must not cause a measurement. Precision flags are set in those
files, so they are covered.
"""

import ast
import functools
import hashlib
from pathlib import Path

from bench.config.cell import Cell, digest
from bench.paths import PACKAGE, PROMPT_SETS, TEXTS
from bench.record.result import Host


def resume_key(cell: Cell, host: Host) -> str:
    """The key of a resolved cell on a host."""
    machine = [
        host.device_name,
        host.device_uuid,
        host.driver,
        host.cpu_name,
        host.cpus,
        host.memory_bytes,
        host.python,
    ]
    return digest(
        [cell, machine, host.versions, measuring_digest(), weights_of(cell), _tasks_of(cell)]
    )


def weights_of(cell: Cell) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a local folder's files: its weights may be saved anew under
    the same path."""
    if cell.model.path is None:
        return []
    files = sorted(file for file in Path(cell.model.path).glob("*") if file.is_file())
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _tasks_of(cell: Cell) -> list[str]:
    """What stands in files of tasks that are not the harness's own."""
    if cell.quality.task_folder is None:
        return []
    files = sorted(file for file in Path(cell.quality.task_folder).rglob("*") if file.is_file())
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@functools.cache
def measuring_digest() -> str:
    """A hash of the files whose text can change a reading: the measured process's imports, texts
    and prompts."""
    files = {*imported_files("bench.meter.cell"), *TEXTS.values(), *PROMPT_SETS.values()}
    sha = hashlib.sha256()
    for file in sorted(files):
        sha.update(file.relative_to(PACKAGE).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:12]


def imported_files(module: str) -> set[Path]:
    """The files of this package that ``module`` imports, at the top or within a function, and those
    that they import."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        file = _file_of(waiting.pop())
        if file is None or file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _file_of(module: str) -> Path | None:
    place = PACKAGE.parent.joinpath(*module.split("."))
    if not place.is_relative_to(PACKAGE):
        return None
    return next(
        (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None
    )
