"""Who may import whom, and how big things may get: read from the source, not from its intentions.

The table is an allow-list: what is not in it is not allowed, so a new library or a new file has to be decided on here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.paths import PACKAGE, ROOT

TYPES = {
    "bench.afterwards",
    "bench.config",
    "bench.errors",
    "bench.measurement",
    "bench.redact",
    "bench.result",
    "bench.spec",
}
MODEL_LIBRARIES = {"bitsandbytes", "gguf", "huggingface_hub", "safetensors", "tokenizers", "torch", "transformers"}

TERMINAL_AND_STORE = {"mlflow", "rich", "sqlalchemy"}
PAGE = {"jinja2", "markupsafe", "matplotlib", "numpy"}

MAY_IMPORT: dict[str, set[str]] = {
    "bench.__init__": set(),
    "bench.errors": set(),
    "bench.paths": {"platformdirs"},
    "bench.parse": {"bench.errors"},
    "bench.spec": {"bench.errors", "bench.parse"},
    "bench.config": {"bench.errors", "bench.parse", "bench.spec"},
    "bench.afterwards": set(),
    "bench.measurement": set(),
    "bench.redact": set(),
    "bench.result": {"bench.errors", "bench.measurement", "bench.parse", "bench.redact", "bench.spec"},
    "bench.provenance": {"bench.paths", "bench.result", "bench.resume"},
    "bench.plan": {*TYPES, "bench.analysis"},
    "bench.resume": {*TYPES, "bench.paths"},
    "bench.analysis": {*TYPES, "bench.analysis", "numpy"},
    "bench.model": {*TYPES, "bench.model", "bench.paths", *MODEL_LIBRARIES},
    "bench.meter": {
        *TYPES,
        "bench.analysis",
        "bench.meter",
        "bench.model",
        "bench.paths",
        "filelock",
        "numpy",
        "pynvml",
        "safetensors",
        "torch",
        "tqdm",
        "transformers",
        "yaml",
    },
    "bench.run": {*TYPES, "bench.analysis", "bench.meter", "bench.model", "torch"},
    "bench.output": {
        *TYPES,
        "bench.analysis",
        "bench.output",
        "bench.parse",
        "bench.paths",
        *PAGE,
        "mlflow",
        "rich",
        "sqlalchemy",
        "yaml",
    },
    "bench.mistakes": {*TYPES, "bench.parse", "bench.paths", "hydra", "omegaconf", "yaml"},
    "bench.fetch": {*TYPES, "bench.parse", "bench.paths", "yaml"},
    "bench.signals": set(),
    "bench.surroundings": {*TYPES, "bench.meter.isolate"},
    "bench.fit": {*TYPES, "bench.analysis", "bench.meter.isolate"},
    "bench.attempt": {*TYPES, "bench.meter.isolate", "bench.resume"},
    "bench.commands": {
        *TYPES,
        "bench.analysis.advice",
        "bench.doctor",
        "bench.fetch",
        "bench.output",
        "bench.paths",
        "bench.reproduce",
        "yaml",
    },
    "bench.project": {"bench.__main__", "bench.errors"},
    "bench.reproduce": {
        *TYPES,
        "bench.analysis",
        "bench.attempt",
        "bench.meter.lock",
        "bench.mistakes",
        "bench.output",
        "bench.paths",
        "bench.plan",
        "bench.provenance",
        "bench.signals",
        "bench.surroundings",
        "bench.sweep",
    },
    "bench.doctor": {
        *TYPES,
        "bench.analysis",
        "bench.attempt",
        "bench.meter.lock",
        "bench.output",
        "bench.plan",
        "bench.signals",
        "bench.surroundings",
        "rich",
    },
    "bench.shared_quality": TYPES,
    "bench.references": {*TYPES, "bench.meter.isolate", "bench.paths", "bench.plan", "bench.resume"},
    "bench.sweep": {
        *TYPES,
        "bench.analysis",
        "bench.attempt",
        "bench.fit",
        "bench.meter.lock",
        "bench.output",
        "bench.passes",
        "bench.paths",
        "bench.plan",
        "bench.provenance",
        "bench.references",
        "bench.resume",
        "bench.signals",
        "bench.surroundings",
    },
    "bench.passes": {
        *TYPES,
        "bench.attempt",
        "bench.meter.device",
        "bench.meter.telemetry",
        "bench.output",
        "bench.shared_quality",
        "bench.signals",
    },
    "bench.__main__": {
        *TYPES,
        "bench.commands",
        "bench.mistakes",
        "bench.paths",
        "bench.sweep",
        "hydra",
        "omegaconf",
    },
}
MAY_IMPORT_IN_A_FUNCTION = {
    "bench.surroundings": {"bench.meter.host", "bench.meter.peaks", "torch"},  # what runs in the measured process
    "bench.attempt": {"bench.run"},
    "bench.fit": {"bench.run"},
    "bench.references": {"bench.meter.reference"},
    "bench.meter.tasks": {"lm_eval"},  # optional, and slow to import
    "bench.fetch": {"bench.model"},  # once the names of the models are known to be right
}

FILES = sorted(PACKAGE.rglob("*.py"))
FUNCTION_LINES = 60
FILE_LINES = 300


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


PROJECT = {name_of(file).removesuffix(".__init__") for file in FILES}


def under(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


ANALYSIS = sorted(name for name in PROJECT if under(name, {"bench.analysis"}))
HEAVY = {"bitsandbytes", "mlflow", "torch", "transformers"}  # each takes a second or more to import
LIBRARIES = {"hydra", "omegaconf", "rich", "yaml"}


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every imported module outside the standard library, and whether it is imported within a function."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    within = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            inner = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in PROJECT else module for name in inner]
        for name in names:
            if name.partition(".")[0] not in sys.stdlib_module_names:
                yield name, id(node) in within


def rights(name: str) -> set[str]:
    """The row of the table that a module falls under."""
    rows = [row for row in MAY_IMPORT if under(name, {row})]
    return MAY_IMPORT[max(rows, key=len)] if rows else set()


def test_the_reader_of_imports_sees_every_kind() -> None:
    source = """\
import os.path, torch.nn
from bench import paths, nothing
from . import relative
def f():
    def g():
        from bench.model import load
        from numpy import array
if TYPE_CHECKING:
    import mlflow as m
"""
    assert sorted(imports(source)) == [
        (".", False),
        ("bench", False),
        ("bench.model.load", True),
        ("bench.paths", False),
        ("mlflow", False),
        ("numpy", True),
        ("torch.nn", False),
    ]


def test_the_files_are_found() -> None:
    assert len(FILES) >= 35
    assert {"bench.analysis.metrics", "bench.analysis.compare", "bench.analysis.cost"} <= set(ANALYSIS)
    assert {"bench.spec", "bench.model.load", "bench.meter.speed", "bench.output.table"} <= PROJECT


def test_every_row_of_the_table_is_about_something() -> None:
    rows = {row.removesuffix(".__init__") for row in (*MAY_IMPORT, *MAY_IMPORT_IN_A_FUNCTION)}
    assert rows <= PROJECT


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_module_has_a_row_in_the_table(file: Path) -> None:
    assert under(name_of(file), set(MAY_IMPORT))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_module_imports_only_what_its_row_allows(file: Path) -> None:
    name = name_of(file)
    lazily = MAY_IMPORT_IN_A_FUNCTION.get(name, set())
    assert [
        imported
        for imported, in_a_function in imports(file.read_text(encoding="utf-8"))
        if not under(imported, rights(name)) and not (in_a_function and under(imported, lazily))
    ] == []


@pytest.mark.parametrize(
    ("layer", "foreign"),
    [
        ("bench.analysis", {"torch", "hydra", "mlflow", "bench.model", "bench.meter", "bench.output"}),
        ("bench.model", {"hydra", "mlflow", "bench.meter", "bench.output"}),
        ("bench.meter", {"hydra", "mlflow", "bench.output"}),
        ("bench.output", {"torch", "transformers", "hydra", "bench.model", "bench.meter"}),
        ("bench.plan", {"torch", "hydra", "mlflow", "bench.model", "bench.meter", "bench.output"}),
        ("bench.run", {"hydra", "mlflow", "bench.output"}),
        ("bench.sweep", {"torch", "transformers", "hydra", "mlflow", "bench.model", "bench.run"}),
    ],
)
def test_the_table_keeps_layers_apart(layer: str, foreign: set[str]) -> None:
    assert {name for name in foreign if under(name, MAY_IMPORT[layer])} == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        *((name, HEAVY | LIBRARIES) for name in ANALYSIS),
        ("bench.plan", HEAVY | LIBRARIES),
        ("bench.__main__", HEAVY | LIBRARIES),
        ("bench.mistakes", HEAVY),
        ("bench.fetch", HEAVY),
        ("bench.sweep", HEAVY),
        ("bench.output.table", HEAVY | {"hydra"}),
    ],
)
def test_importing_a_light_module_loads_nothing_heavy(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & absent == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_can_be_read_in_one_go(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_function_fits_on_a_screen(file: Path) -> None:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]
    assert [(name, lines) for name, lines in lengths if lines > FUNCTION_LINES] == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_module_is_named_after_what_it_does(file: Path) -> None:
    bags = {"common", "helper", "helpers", "misc", "util", "utils"}
    assert bags & set(name_of(file).split(".")) == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_module_begins_with_what_it_is_about(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
