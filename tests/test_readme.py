"""Every command in the README is executed by some test: by one that takes it from there with
``from_readme``."""

import ast
import shlex
import subprocess
from pathlib import Path

import pytest

from bench.paths import ROOT
from tests.command_line import readme_commands

MADE = {  # by make: what a target runs
    "make sweep": "python -m bench -m quant=fp16,int8,nf4 batch=1,8,32",
    # After what needs no torch
    "make test": (
        "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/test_*.py tests/engine"
    ),
}


def executed() -> set[str]:
    """The commands that tests take from the README, read from their source."""
    calls = (
        node
        for file in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "from_readme"
    )
    return {
        argument.value
        for call in calls
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }


def test_the_commands_are_found() -> None:
    assert len(readme_commands()) >= 18
    assert {"python -m bench doctor", *MADE} <= set(readme_commands())


def test_every_command_is_executed() -> None:
    assert set(readme_commands()) - executed() - set(MADE) - {". .venv/bin/activate"} == set()


@pytest.mark.parametrize(("command", "runs"), MADE.items())
def test_a_target_of_make_runs_what_it_says(command: str, runs: str) -> None:
    """As far as it can be seen without setting up an environment within an environment."""
    done = subprocess.run(
        [*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f".venv/bin/{runs}" in done.stdout.splitlines()
    assert (
        any(f"then: {runs}" in line for line in (ROOT / "README.md").read_text().splitlines())
        or command == "make test"
    )
