"""Models on the hub, which is a server on this machine here: ``bench fetch``, and a sweep."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fakes
from tests.architectures import save_tiny, tiny_model
from tests.command_line import TINY, bench, from_readme, results
from tests.hub import COMMIT, Hub, serving

REPO = "owner/tiny-model"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("repository"), "qwen2")
    fakes.byte_tokenizer().save_pretrained(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    return folder


@pytest.fixture
def hub(model_folder: Path) -> Iterator[Hub]:
    with serving(Hub({REPO: model_folder})) as running:
        yield running


def fetch(hub: Hub, home: Path, *names: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", "fetch", *names],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **hub.environment(home), "BENCH_CACHE": str(home), **extra},
    )


def told(done: "subprocess.CompletedProcess[str]") -> str:
    """The sentence with which it fails."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_only_what_transformers_reads_is_downloaded_and_only_once(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path, REPO)
    assert done.returncode == 0, done.stderr
    assert re.search(r"downloading, 0\.\d\d of 0\.00 GB", done.stderr)
    folder = Path(done.stdout.strip().partition(": ")[2])
    assert folder.name == COMMIT
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert not (folder / "consolidated.safetensors").exists()
    hub.asked.clear()
    assert fetch(hub, tmp_path, REPO).stdout == done.stdout
    assert set(hub.asked) == {f"HEAD /{REPO}/resolve/main/config.json"}
    offline = fetch(hub, tmp_path, REPO, HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout


def test_a_download_that_broke_off_goes_on(hub: Hub, tmp_path: Path, model_folder: Path) -> None:
    size = (model_folder / "model.safetensors").stat().st_size
    hub.breaks_after = size // 2
    done = fetch(hub, tmp_path, REPO)
    if done.returncode != 0:  # the client may try again by itself
        done = fetch(hub, tmp_path, REPO)
    folder = Path(done.stdout.strip().partition(": ")[2])
    assert "broke model.safetensors" in hub.asked
    assert (folder / "model.safetensors").read_bytes() == (
        model_folder / "model.safetensors"
    ).read_bytes()


def test_what_the_hub_refuses_is_a_sentence(hub: Hub, tmp_path: Path, model_folder: Path) -> None:
    hub.folders["owner/gated"] = model_folder
    hub.gated.add("owner/gated")
    gated = told(fetch(hub, tmp_path, "owner/gated"))
    assert gated.startswith("model=gated (owner/gated at main)")
    assert "the model is gated: accept its licence on the hub, then `hf auth login`" in gated
    nobody = told(fetch(hub, tmp_path, "owner/nobody"))
    assert nobody == (
        "model=nobody (owner/nobody at main): the hub has no such repository, or it is private:"
        " `hf auth login`"
    )


def test_without_a_hub_it_says_where_it_looked(hub: Hub, tmp_path: Path) -> None:
    said = told(fetch(hub, tmp_path, REPO, HF_ENDPOINT="http://127.0.0.1:9"))
    assert said.startswith(f"model=tiny-model ({REPO} at main): not in the local cache")
    for part in (str(tmp_path / "hub"), "cannot be reached", "model.path=", "model.weights=random"):
        assert part in said


def test_pickled_weights_are_refused_with_the_way_to_convert(
    hub: Hub, tmp_path: Path, model_folder: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    hub.folders["owner/pickled"] = folder
    said = told(fetch(hub, tmp_path / "home", "owner/pickled"))
    assert "only pickled weights, and reading those runs whatever their author wrote" in said
    assert "from_pretrained('owner/pickled').save_pretrained('converted')" in said
    assert "only pickled weights" in told(fetch(hub, tmp_path / "home", str(folder)))


def test_sharded_weights_are_all_fetched_and_a_missing_one_is_named(
    hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 1
    hub.folders["owner/sharded"] = folder
    done = fetch(hub, tmp_path / "home", "owner/sharded")
    fetched = Path(done.stdout.strip().partition(": ")[2])
    assert shards == sorted(file.name for file in fetched.glob("*.safetensors"))
    (folder / shards[0]).unlink()
    said = told(fetch(hub, tmp_path / "home", str(folder)))
    assert said.endswith(f"1 of its files are missing (first {shards[0]}); download it again")


def test_a_model_that_the_disk_cannot_hold_is_not_begun(hub: Hub, tmp_path: Path) -> None:
    hub.sizes["model.safetensors"] = 10**15
    said = told(fetch(hub, tmp_path, REPO))
    assert "1000000.0 GB to download" in said
    assert "make room, or move the cache with HF_HUB_CACHE" in said
    assert not any("model.safetensors" in each for each in hub.asked)


def test_a_folder_and_a_repository_are_measured_side_by_side(
    hub: Hub, tmp_path: Path, model_folder: Path
) -> None:
    command = from_readme("python -m bench -m model=./my-model,Qwen/Qwen3-0.6B quant=bf16,nf4")
    shutil.copytree(model_folder, tmp_path / "my-model")
    (tmp_path / "my-model" / "consolidated.safetensors").unlink()
    hub.folders["Qwen/Qwen3-0.6B"] = model_folder
    short = [*TINY[1:], "tracking=none", "quality.texts=[]", "quality.max_new_tokens=4"]
    done = bench(tmp_path, *command, *short, **hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    own, _, of_hub, quantized = sorted(
        results(tmp_path), key=lambda r: (r.cell.model.name != "my-model", r.cell.quant.name)
    )
    assert [of_hub.cell.model.name, quantized.cell.quant.name] == ["Qwen3-0.6B", "nf4"]
    assert (of_hub.asked.model.revision, of_hub.cell.model.revision) == (None, COMMIT)
    assert (of_hub.revision, len(str(own.revision))) == (COMMIT, 12)
    source = f"from_pretrained(\n    'Qwen/Qwen3-0.6B',\n    revision='{COMMIT}'"
    assert source in of_hub.lines
    assert [sample.tokens for sample in own.samples] == [s.tokens for s in of_hub.samples]
    assert len(own.samples) == 8


def test_random_weights_take_the_configuration_alone(hub: Hub, tmp_path: Path) -> None:
    arguments = [f"model={REPO}", "model.weights=random", *TINY[1:], "tracking=none"]
    done = bench(tmp_path, *arguments, **hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result.attestation is not None
    assert result.attestation.shape.layers == 2
    assert {each.rpartition("/")[2] for each in hub.asked if "resolve" in each} == {"config.json"}


def test_noise_goes_on_the_weights_of_a_commit(hub: Hub, tmp_path: Path) -> None:
    code = f"""
from bench.config.cell import Model
from bench.engine import sources
model = Model("tiny-model", "dithered", repo={REPO!r})
print(sources.place(model), sources.fetch(model), sources.cached(model))
"""
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **hub.environment(tmp_path), "BENCH_CACHE": str(tmp_path), **more},
        )
        before, fetched, after = map(Path, done.stdout.split())
        assert before == fetched == after
        assert fetched.name == f"tiny-model-{COMMIT[:12]}-dithered-1"
        assert (fetched / "model.safetensors").is_file()
