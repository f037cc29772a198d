"""What is known of the running code."""

import subprocess
from pathlib import Path

import pytest

from bench.driver import provenance
from bench.paths import ROOT
from tests import fakes

CELL = fakes.cell()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in the place of ours."""
    (tmp_path / "README.md").write_text("one\n")
    (tmp_path / "requirements.lock").write_text("torch==2.9.0\n")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_a_clean_checkout_has_a_commit_and_no_changes(checkout: Path) -> None:
    found = provenance.provenance([CELL])
    assert found.commit is not None
    assert len(found.commit) == 40
    assert found.changed == ()


def test_changes_are_named_and_not_kept(checkout: Path) -> None:
    (checkout / "README.md").write_text("two\n")
    (checkout / "new.py").write_text("a password\n")
    found = provenance.provenance([CELL])
    assert found.changed == ("README.md", "new.py")
    assert "password" not in repr(found)
    assert b"+two" in provenance.diff()


def test_changes_may_be_of_any_kind(checkout: Path) -> None:
    (checkout / "linked").symlink_to(checkout / "README.md")
    (checkout / "a folder").symlink_to(checkout.parent)
    (checkout / "wörter.txt").write_text("ä")
    (checkout / "weights.bin").write_bytes(bytes(2**20 + 1))
    (checkout / "README.md").write_bytes("latin: é\r\n".encode("latin-1"))
    found = provenance.provenance([CELL])
    assert set(found.changed) == {"linked", "a folder", "wörter.txt", "weights.bin", "README.md"}
    assert b"+latin: \xe9\r\n" in provenance.diff()


def test_the_first_of_two_versions_on_the_path_is_the_one_in_use(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, version in (("first", "2.0"), ("second", "1.0")):
        (tmp_path / place / "a_package.dist-info").mkdir(parents=True)
        (tmp_path / place / "a_package.dist-info" / "METADATA").write_text(
            f"Name: a-package\nVersion: {version}\n"
        )
    (tmp_path / "first" / "half.dist-info").mkdir()  # an installation that was broken off
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    provenance.installed_packages.cache_clear()
    assert provenance.provenance([CELL]).packages["a-package"] == "2.0"
    provenance.installed_packages.cache_clear()


def test_a_folder_that_lies_in_a_foreign_repository_is_no_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "unpacked").mkdir()
    monkeypatch.setattr(provenance, "ROOT", checkout / "unpacked")
    assert provenance.provenance([CELL]).commit is None


def test_the_lock_file_and_every_package_are_recorded(checkout: Path) -> None:
    found = provenance.provenance([CELL])
    (checkout / "requirements.lock").write_text("torch==2.10.0\n")
    assert provenance.provenance([CELL]).lock != found.lock is not None
    assert {"torch", "mlflow", "pytest"} <= found.packages.keys()


def test_an_installed_package_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", provenance.PACKAGE)
    found = provenance.provenance([CELL])
    assert (found.commit, found.lock) == (None, None)
    assert (ROOT / "requirements.lock").is_file()  # which is what it would have found in a checkout
