"""Where the code of a sweep came from and what stood around it: what it takes to run it again
elsewhere, or to see why not.

``Host`` has the packages that decide numbers; here are all of them, because the one that mattered
is known only afterwards. Of changes that are not committed the names and a digest are kept; the
changes themselves only on request (``tracking.diff=true``), for they may hold anything.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

from bench.driver.resume import measuring_digest
from bench.paths import PACKAGE, ROOT
from bench.record.result import Provenance

_DIGITS = 12  # of digests, as everywhere
_LARGE_BYTES = 2**20  # weights, most likely


def provenance() -> Provenance:
    """Of the running code."""
    lock = ROOT / "requirements.lock"
    commit = _git("rev-parse", "HEAD")
    changed = tuple(entry[3:] for entry in _names("status", "--porcelain", "--no-renames"))
    return Provenance(
        commit=commit.decode().strip() or None,
        changed=changed,
        changes=_digest(diff() + _untracked()) if changed else None,
        measuring=measuring_digest(),
        lock=_digest(lock.read_bytes()) if lock.is_file() else None,
        packages=_packages(),
    )


def diff() -> bytes:
    """What differs from the commit, in files that git knows, whatever the user's own settings are;
    empty without git."""
    return _git("diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--no-textconv")


def _packages() -> dict[str, str]:
    """Name to version. What comes first on the path is what is imported; what an installation broke
    off left has neither."""
    found: dict[str, str] = {}
    for each in importlib.metadata.distributions():
        if each.read_text("METADATA") or each.read_text("PKG-INFO"):
            found.setdefault(each.metadata["Name"], each.version)
    return dict(sorted(found.items()))


def _untracked() -> bytes:
    """Names and contents of files that git does not know; of what is large, or no file, the name
    and the size alone."""
    names = _names("ls-files", "--others", "--exclude-standard")
    return b"".join(os.fsencode(name) + _content(ROOT / name) for name in names)


def _content(place: Path) -> bytes:
    try:
        size = place.lstat().st_size
        if place.is_symlink() or not place.is_file() or size > _LARGE_BYTES:
            return str(size).encode()
        return place.read_bytes()
    except OSError:  # not ours to read, or an editor's and gone
        return b""


def _names(*arguments: str) -> list[str]:
    return [os.fsdecode(name) for name in _git(*arguments, "-z").split(b"\0") if name]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _git(*arguments: str) -> bytes:
    """What git says of the checkout; nothing where there is none, or no git."""
    if PACKAGE == ROOT or shutil.which("git") is None:
        return b""  # installed: whatever repository lies around it is not ours
    # Not of a repository that we lie in by chance
    own = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, check=False, env=own
    ).stdout
