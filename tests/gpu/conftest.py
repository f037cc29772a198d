"""The GPU tests run everything in isolated processes, as a sweep does: the process of pytest never
touches CUDA.

Without a CUDA device each of them is skipped with the reason. ``pytest -m gpu tests/gpu`` runs
them.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.driver.process import begin_server, check_server
from bench.engine.transformers import ENGINE
from bench.meter.cell import probe_host
from bench.paths import ROOT
from bench.record.result import Host
from tests.gpu.running import PLACE, run


@pytest.fixture(scope="session")
def server_notice() -> str | None:
    """What the fork server had to say; None when it can be used."""
    begin_server(ENGINE.preload)
    return check_server(ENGINE.preload, lambda phase, detail: None)


@pytest.fixture(scope="session", autouse=True)
def host(server_notice: str | None) -> Host:
    here: Host = run(probe_host, PLACE, log=Path(os.devnull))
    if here.device != "cuda":
        pytest.skip(f"no CUDA device: torch {here.versions['torch']} sees the CPU only")
    return here


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of the default model, once its files are there."""
    command = [sys.executable, "-m", "bench", "fetch", "smollm2-135m"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"smollm2-135m cannot be had here: {done.stderr.strip()}")
    return "smollm2-135m"


@pytest.fixture
def log(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Where the output of a test's processes goes; shown when the test fails."""
    file = tmp_path / "log.txt"
    yield file
    if file.is_file():
        print(file.read_text(errors="replace")[-4000:])
