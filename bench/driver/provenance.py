"""Commit, changed files and packages: what a rerun needs."""

import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Sequence

from bench.config.cell import Cell
from bench.driver.resume import measuring_digest
from bench.paths import PACKAGE, ROOT
from bench.record.sweep import Provenance

_DIGITS = 12  # of digests, as everywhere


def provenance(cells: Sequence[Cell]) -> Provenance:
    """Of the code that measures these cells. Host has the packages that decide numbers; here are
    all of them, because the one that mattered is known only afterwards."""
    lock = ROOT / "requirements.lock"
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--no-renames", "-z").split(b"\0")
    return Provenance(
        commit=commit.decode().strip() or None,
        changed=tuple(os.fsdecode(entry)[3:] for entry in status if entry),
        measuring="-".join(sorted({measuring_digest(cell.engine.name) for cell in cells})),
        lock=hashlib.sha256(lock.read_bytes()).hexdigest()[:_DIGITS] if lock.is_file() else None,
        packages=installed_packages(),
    )


def diff() -> bytes:
    """What differs from the commit, in files that git knows, whatever the user's own settings are;
    empty without git. Kept only on request (``tracking.diff=true``): it may hold anything."""
    own = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv")
    return _git("diff", "HEAD", *own)


@functools.cache
def installed_packages() -> dict[str, str]:
    """Name to version. What comes first on the path is what is imported; what an installation broke
    off left has neither."""
    packages: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        if package.read_text("METADATA") or package.read_text("PKG-INFO"):
            packages.setdefault(package.metadata["Name"], package.version)
    return dict(sorted(packages.items()))


def _git(*arguments: str) -> bytes:
    """What git says of the checkout; nothing where there is none, or no git."""
    if PACKAGE == ROOT or shutil.which("git") is None:
        return b""  # installed: whatever repository lies around it is not ours
    # Not of a repository that we lie in by chance.
    own = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=False, env=own).stdout
