"""``reproduce --checkout``: the command runs with the package of the recorded commit, and nothing
of it stays."""

import subprocess
from pathlib import Path

import pytest

from bench import paths
from bench.commands import reproduce, run_command
from bench.errors import ConfigError

PACKAGE = """\
import pathlib, sys
import bench
pathlib.Path(sys.argv[-1]).write_text(f"{bench.SAID} {' '.join(sys.argv[1:-1])}")
sys.exit(4)
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of ours: two commits of a package that says which of them it is of."""
    place = tmp_path / "repository"
    (place / "bench").mkdir(parents=True)
    (place / "bench" / "__main__.py").write_text(PACKAGE)
    own = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*own, "init", "-q"], check=True)
    for said in ("early", "late"):
        (place / "bench" / "__init__.py").write_text(f"SAID = {said!r}\n")
        subprocess.run([*own, "add", "."], check=True)
        subprocess.run([*own, "commit", "-qm", said], check=True)
    monkeypatch.setattr("bench.paths.ROOT", place)
    monkeypatch.chdir(place)  # where the later package lies, which must not be taken
    return place


def git(place: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(place), *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_the_package_of_the_commit_runs_and_its_worktree_goes(
    repository: Path, tmp_path: Path
) -> None:
    first = git(repository, "rev-parse", "HEAD~1").strip()
    said = tmp_path / "said"
    assert reproduce.in_worktree(first, (), ["RUN", "--margin", "0.1", str(said)]) == 4
    assert said.read_text() == "early reproduce RUN --margin 0.1"
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("flag", ["--check", "--c"])
def test_half_a_flag_is_none(flag: str) -> None:
    """It would be passed on, and make a worktree within a worktree, without end."""
    with pytest.raises(SystemExit):
        run_command("reproduce", ["RUN", flag])


def test_an_installed_package_has_no_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.paths.ROOT", paths.PACKAGE)
    with pytest.raises(ConfigError, match="a clone of the project"):
        reproduce.in_worktree("HEAD", (), ["RUN"])


def test_what_was_not_committed_is_named(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce.in_worktree("HEAD", ("a.py", "b.py"), ["RUN", str(tmp_path / "said")])
    assert "changes on top of its commit that are not in it: a.py, b.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("commit", "said"), [("0" * 40, "git fetch"), (None, "no commit is recorded")]
)
def test_a_commit_that_is_not_here_is_a_mistake(
    repository: Path, commit: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        reproduce.in_worktree(commit, (), ["RUN"])
