"""Where the code of a sweep came from and what stood around it: what it takes to run it again elsewhere, or to see why not.

``Host`` has the packages that decide numbers; here are all of them, because the one that mattered is known only
afterwards. Of changes that are not committed the names and a digest are kept; the changes themselves only on request
(``tracking.diff=true``), for they may hold anything.
"""

import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

from bench.paths import PACKAGE, ROOT
from bench.result import Provenance
from bench.resume import measuring_digest

_DIGITS = 12  # of digests, as everywhere
_LARGE_BYTES = 2**20  # weights, most likely


def provenance() -> Provenance:
    """Of the running code."""
    lock = ROOT / "requirements.lock"
    commit = _git("rev-parse", "HEAD")
    changed = tuple(entry[3:] for entry in (_git("status", "--porcelain", "-z", "--no-renames") or "").split("\0") if entry)
    return Provenance(
        commit=None if commit is None else commit.strip(),
        changed=changed,
        changes=_digest((diff() or "").encode() + _untracked()) if changed else None,
        measuring=measuring_digest(),
        lock=_digest(lock.read_bytes()) if lock.is_file() else None,
        packages={found.name: found.version for found in sorted(importlib.metadata.distributions(), key=lambda d: d.name)},
    )


def diff() -> str | None:
    """What differs from the commit, in files that git knows; None outside a checkout."""
    return _git("diff", "HEAD")


def _untracked() -> bytes:
    """Names and contents of files that git does not know; of what is large, or no file, the name and the size alone."""
    names = (_git("ls-files", "-z", "--others", "--exclude-standard") or "").split("\0")
    return b"".join(name.encode() + _content(ROOT / name) for name in names if name)


def _content(place: Path) -> bytes:
    size = place.lstat().st_size
    if place.is_symlink() or not place.is_file() or size > _LARGE_BYTES:
        return str(size).encode()
    return place.read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _git(*arguments: str) -> str | None:
    """What git says of the checkout; None where there is none, or no git."""
    if PACKAGE == ROOT:
        return None  # installed: whatever repository lies around it is not ours
    own = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # not of a repository that we lie in by chance
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, env=own)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
