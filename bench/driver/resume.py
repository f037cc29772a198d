"""When an old result is still a result.

``cell_id`` says which configuration was asked for; ``resume_key`` adds everything else that can
change the number: the machine, the versions that matter, the weights, and the text of the files
that measure. These are computed: whatever the measured process's module and the engine import,
texts, prompts and choices. Not the commit: an edit of the README must not cause a measurement.
"""

import ast
import functools
import hashlib
import re
from pathlib import Path

from bench.config.cell import Cell, digest
from bench.engine import sources
from bench.engine.protocol import ENGINES, engine_at
from bench.errors import ConfigError
from bench.paths import CALIBRATION_TEXT, CHOICE_SETS, PACKAGE, PROMPT_SETS, TEXTS
from bench.record.result import Host

_PLACE = re.compile(r"(bench[.\w]+):\w+")  # bench.engine.transformers.strategies:loop
_DIGITS = 12  # of digests, as everywhere
_MEASURING = ("bench.meter.cell", "bench.meter.answers", "bench.meter.reference")


def resume_key(asked: Cell, host: Host) -> str:
    """The key of a cell, as it was asked for, on a host."""
    machine = [
        host.device_name,
        host.device_uuid,
        host.driver,
        host.device_settings,
        host.cpu_name,
        host.cpus,
        host.memory_bytes,
        host.python,
    ]
    measuring = measuring_digest(asked.engine.name)
    return digest([asked, machine, host.versions, measuring, weights_of(asked), _tasks_of(asked)])


def weights_of(cell: Cell) -> list[tuple[str, str]]:
    """Name and SHA-256 of a local model's files, or the hub's commit: other weights may come to lie
    under the same name.

    Raises:
        ConfigError: when a file cannot be read.
    """
    model = cell.model
    if sources.is_hub(model):
        return [("commit", str(sources.pinned(model).revision))]
    try:
        return [
            each
            for path in (model.path, model.config)
            if path is not None
            for each in sources.digests(path)
        ]
    except OSError as error:
        raise ConfigError(
            [f"model={model.name}: {error.filename} cannot be read ({error.strerror})"]
        ) from error


def _tasks_of(cell: Cell) -> list[str]:
    """What stands in files of tasks that are not the harness's own."""
    if cell.quality.task_folder is None:
        return []
    files = sorted(file for file in Path(cell.quality.task_folder).rglob("*") if file.is_file())
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@functools.cache
def measuring_digest(engine: str) -> str:
    """A hash of the files whose text can change a reading by this engine."""
    sha = hashlib.sha256()
    for file in sorted(measuring_files(engine)):
        sha.update(file.relative_to(PACKAGE).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()[:_DIGITS]


def measuring_files(engine: str) -> set[Path]:
    """What the measured process and its engine import, texts, prompts and choices."""
    place = ENGINES[engine]
    modules = [*_MEASURING, place.partition(":")[0], *engine_at(place).preload]
    files = {file for module in modules for file in imported_files(module)}
    compiled = {each for file in files for each in file.parent.glob("*.cpp")}
    named = (*TEXTS.values(), *PROMPT_SETS.values(), *CHOICE_SETS.values())
    return {*files, *compiled, CALIBRATION_TEXT, *named}


def imported_files(module: str) -> set[Path]:
    """The files of this package that ``module`` imports, at the top or within a function, and those
    that they import. A module's place given as text (``bench.x:name``) counts as imported."""
    files: set[Path] = set()
    waiting = [module]
    while waiting:
        file = _file_of(waiting.pop())
        if file is None or file in files:
            continue
        files.add(file)
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and file.stem != "protocol":  # it names all engines
                place = _PLACE.fullmatch(str(node.value))
                waiting += [place[1]] if place else []
    return files


def _file_of(module: str) -> Path | None:
    place = PACKAGE.parent.joinpath(*module.split("."))
    if not place.is_relative_to(PACKAGE):
        return None
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)
