"""Models on the Hugging Face hub: which commit, its configuration, its files.

A branch moves, so a name means the commit that it points to when the sweep begins; every process
then reads that one. The configuration is fetched first, and small: whether a model can run here is
known before its weights are downloaded. Of the weights only what transformers reads is fetched
(repositories hold other formats beside them), and only safetensors: reading pickled weights runs
whatever their author wrote. A download that was broken off goes on where it ended. Nothing is asked
of the hub for files that are all in its cache.
"""

import contextlib
import errno
import functools
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tqdm

from bench.config.cell import Model
from bench.errors import CellFailure

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported

# What is read beside the weights
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_BETWEEN_SHOWN_S = 1.0
_REACHED_WITHIN_S = 10.0
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"  # transformers' names

Show = Callable[[str], None]


def silent(_: str) -> None:
    """A ``Show`` for where nobody looks."""


@functools.cache  # a sweep asks once
def commit_of(repo: str, revision: str | None) -> str | None:
    """The commit that a revision (None: main) names, by the hub or else by what its cache had last.

    None where neither knows: ``fetch`` then says why.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if not _is_reachable():
        kept = try_to_load_from_cache(repo, "config.json", revision=revision)
        return Path(kept).parent.name if isinstance(kept, str) else None
    try:  # which also keeps what the revision names, for times without network
        return Path(hf_hub_download(repo, "config.json", revision=revision)).parent.name
    except (errors.HFValidationError, *_unreachable()):
        return None


def configuration(model: Model) -> Path:
    """A folder with the model's ``config.json``, and nothing else that is sure to be there.

    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    kept = try_to_load_from_cache(str(model.repo), "config.json", revision=model.revision)
    if isinstance(kept, str):
        return Path(kept).parent
    with _in_sentences(model):
        return Path(hf_hub_download(str(model.repo), "config.json", revision=model.revision)).parent


def cached(model: Model) -> Path | None:
    """The folder with all of the model's files, if nothing of it has to be downloaded."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(
            snapshot_download(
                str(model.repo),
                revision=model.revision,
                allow_patterns=list(SMALL),
                local_files_only=True,
            )
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return folder if is_whole(folder) else None


def fetch(model: Model, show: Show) -> Path:
    """The folder with the model's files, downloaded unless they are there.

    Raises:
        CellFailure: ``failed``, with a sentence that says what to do.
    """
    if (folder := cached(model)) is not None:
        return folder
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    repo, revision = str(model.repo), model.revision
    with _in_sentences(model):
        entries = HfApi().list_repo_tree(repo, revision=revision, recursive=True)
        sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        weights = [WHOLE] if WHOLE in sizes else [n for n in sizes if _is_weights(n)]
        if INDEX in sizes:
            weights = weight_files(Path(hf_hub_download(repo, INDEX, revision=revision)).parent)
        if not weights:
            raise CellFailure("failed", f"{_where(model)}: {_without_weights(repo, list(sizes))}")
        _check_space(model, {name: sizes[name] for name in weights if name in sizes})
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*SMALL, *weights],
                tqdm_class=_shown_bar(show),
            )
        )


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a folder's weights; empty without any."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    return (
        [WHOLE]
        if (folder / WHOLE).is_file()
        else sorted(file.name for file in folder.glob("*.safetensors"))
    )


def is_whole(folder: Path) -> bool:
    """Whether a folder has a configuration and all of its weights."""
    needed = ("config.json", *(weight_files(folder) or [WHOLE]))
    return all((folder / name).is_file() for name in needed)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name


def _without_weights(repo: str, names: list[str]) -> str:
    if not any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "no weights in it that transformers reads (*.safetensors)"
    return pickled(repo)


def pickled(source: str) -> str:
    """Why pickled weights are not read, and what to do about it."""
    load = f"AutoModelForCausalLM.from_pretrained('{source}')"
    return (
        "only pickled weights, and reading those runs whatever their author wrote; if you trust"
        f' them, convert them once: python -c "from transformers import *; {load}'
        ".save_pretrained('converted'); "
        f"AutoTokenizer.from_pretrained('{source}').save_pretrained('converted')\", then"
        " model=./converted"
    )


def _check_space(model: Model, sizes: dict[str, int]) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    missing = sum(
        size
        for name, size in sizes.items()
        if try_to_load_from_cache(str(model.repo), name, revision=model.revision) is None
    )
    cache = Path(constants.HF_HUB_CACHE)
    there = next(place for place in (cache, *cache.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if missing > free:
        raise CellFailure(
            "failed",
            f"{_where(model)}: {missing / 1e9:.1f} GB to download, {cache} has {free / 1e9:.1f} GB"
            " left; make room, or move the cache with HF_HUB_CACHE",
        )


def _shown_bar(show: Show) -> type[Any]:
    """A progress bar that nobody sees, whose numbers ``show`` gets, from one thread at a time."""
    lock = threading.Lock()
    shown_s = 0.0

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # Shown whatever hides bars, and nowhere else
            super().__init__(*arguments, **options | {"disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> bool:
            nonlocal shown_s
            if self.unit != "B" or not self.total or not lock.acquire(blocking=False):
                return True
            try:
                if time.monotonic() - shown_s > _BETWEEN_SHOWN_S:
                    shown_s = time.monotonic()
                    show(f"downloading, {self.n / 1e9:.2f} of {self.total / 1e9:.2f} GB")
            finally:
                lock.release()
            return True

    return Bar


def _where(model: Model) -> str:
    return f"model={model.name} ({model.repo} at {model.revision or 'main'})"


@functools.cache
def _is_reachable() -> bool:
    """Whether the hub answers at all: one try, where its client would make six in 23 s."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_REACHED_WITHIN_S)
    except (errors.HTTPError, OSError):
        return False
    return True


def _unreachable() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub does not answer, or not with what was asked."""
    from huggingface_hub import errors

    return (errors.HTTPError, errors.OfflineModeIsEnabled, OSError)


@contextlib.contextmanager
def _in_sentences(model: Model) -> Iterator[None]:
    """What the hub's client raises, as sentences."""
    from huggingface_hub import constants, errors

    try:
        if not _is_reachable():
            raise errors.OfflineModeIsEnabled("no answer")
        yield
        return
    except errors.GatedRepoError:
        advice = "the model is gated: accept its licence on the hub, then `hf auth login`"
    except errors.RevisionNotFoundError:
        advice = "the hub has no such revision; see model.revision"
    except errors.RepositoryNotFoundError:
        advice = "the hub has no such repository, or it is private: `hf auth login`"
    except errors.RemoteEntryNotFoundError:
        advice = "no config.json in it, so transformers cannot read it"
    except errors.HFValidationError as error:
        advice = str(error).partition(".")[0]
    except _unreachable() as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise CellFailure(
                "failed", f"{_where(model)}: the disk of {constants.HF_HUB_CACHE} is full"
            ) from error
        advice = (
            f"not in the local cache ({constants.HF_HUB_CACHE}) and the hub cannot be reached; go"
            " online, give a folder with model.path=, or measure"
            " speed alone with model.weights=random"
        )
    raise CellFailure("failed", f"{_where(model)}: {advice}")
