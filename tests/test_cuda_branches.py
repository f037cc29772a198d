"""CONTRIBUTING.md lists every function that does something else on CUDA, with what covers it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bench.paths import ROOT

_ROW = re.compile(
    r"^\| `(?P<file>[^`]+\.py)` \| (?P<branches>`[^|]+`) \| (?P<covered>[^|]+) \|$", re.M
)


def listed() -> list[tuple[str, list[str], str]]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return [
        (row["file"], re.findall(r"`([^`]+)`", row["branches"]), row["covered"])
        for row in _ROW.finditer(text)
    ]


def _is_about_cuda(node: ast.AST) -> bool:
    """Whether it names a device, or asks ``torch.cuda`` or NVML."""
    return any(
        (isinstance(part, ast.Constant) and part.value in ("cuda", "cpu"))
        or (isinstance(part, ast.Attribute) and ast.unparse(part) == "torch.cuda")
        or (isinstance(part, ast.Name) and part.id == "pynvml")
        for part in ast.walk(node)
    )


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    yield f"{node.name}.{part.name}", part


def in_the_source() -> set[tuple[str, str]]:
    package = ROOT / "bench"
    return {
        (file.relative_to(package).as_posix(), name)
        for file in package.rglob("*.py")
        for name, node in _functions(ast.parse(file.read_text(encoding="utf-8")))
        if _is_about_cuda(node)
    }


def test_the_list_is_complete_and_no_longer_than_that() -> None:
    rows = {(file, name) for file, names, _ in listed() for name in names}
    assert rows == in_the_source()


def test_what_covers_a_branch_is_there() -> None:
    for file, names, covered in listed():
        for way in covered.split("; "):
            how, _, where = way.partition(": ")
            assert how in ("stub", "boundary", "pure", "gpu", "selftest"), (file, names)
            tests = where.split(", ") if how != "selftest" else []
            folder = ROOT / "tests/gpu" if how == "gpu" else ROOT
            assert all((folder / Path(test)).is_file() for test in tests), (file, where)
