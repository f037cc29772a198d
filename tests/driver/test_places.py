"""Wherever a sweep has to write: it does, or says in a sentence where it cannot, before anything is
measured. Whoever runs the tests as root has no limits, so each case runs as somebody else."""

import contextlib
import io
import json
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.driver.lock import machine_lock
from bench.errors import BenchError, ConfigError
from bench.paths import cache_folder
from tests.scripted import in_this_process, scripted, sweep

NOBODY, NO_ACCOUNT = 65534, 4242
PLACES = ("outputs", "cache", "lock", "tmp")
ODD = ("with space", "it's", "é#%&;$(x)", "-rf", "new\nline")
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


def as_user(uid: int, act: Callable[[], int]) -> tuple[int, str]:
    """Exit code of ``act`` in a fork that belongs to this user, and what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = io.StringIO()
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                code = act()
            except ConfigError as error:
                print(error)
                code = 2
            except BenchError as error:
                print(error)
                code = 1
            except BaseException:
                traceback.print_exc()
                code = 70
        os.write(writing, json.dumps([code, said.getvalue()]).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        code, text = json.loads(answer.read())
    os.waitpid(child, 0)
    return code, text


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a sweep imports, before anybody who may not read it needs it."""
    folder = tmp_path_factory.mktemp("imported")
    assert measured(folder, folder / "lock") == 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of nobody's, with every place in it."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp"):
            with contextlib.suppress(OSError):
                folder.chmod(folder.stat().st_mode | 0o055)
    place = tmp_path / "home"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    for name in ("outputs", "cache", "tmp"):
        (place / name).mkdir()
        os.chown(place / name, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", str(place))
    at(monkeypatch, place)
    return place


def at(monkeypatch: pytest.MonkeyPatch, place: Path, **elsewhere: Path) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(elsewhere.get("cache", place / "cache")))
    monkeypatch.setenv("TMPDIR", str(elsewhere.get("tmp", place / "tmp")))
    monkeypatch.setattr("tempfile.tempdir", None)


def measured(outputs: Path, lock: Path) -> int:
    """A sweep of one cell."""
    code, results = sweep(outputs, scripted(), worker=in_this_process, lock=lock)
    assert [result.outcome.status for result in results] == ["ok"]
    return code


def spoil(folder: Path, state: str) -> None:
    """Make a place what ``state`` says, for nobody."""
    if state == "missing":
        folder.rmdir()
    elif state == "read-only":
        folder.chmod(0o555)
    elif state == "foreign":
        os.chown(folder, 0, 0)
        folder.chmod(0o755)


@AS_ROOT
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("state", ["missing", "read-only", "foreign"])
def test_a_place_is_made_or_named(
    home: Path, place: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = home / "locks" / "lock"
    lock.parent.mkdir()
    os.chown(lock.parent, NOBODY, NOBODY)
    folder = lock.parent if place == "lock" else home / place
    spoil(folder, state)
    code, text = as_user(NOBODY, lambda: measured(home / "outputs", lock))
    assert "Traceback" not in text
    if state == "missing" and place in ("outputs", "cache"):
        assert (code, text.count("\n")) == (0, text.count("\n"))
        return
    if place == "tmp":  # Python looks for another one
        assert code in (0, 2)
        return
    assert code == 2, text
    (line,) = text.splitlines()
    assert str(folder) in line
    assert "annot be written to" in line or "lock file" in line
    assert not list((home / "outputs").glob("sweeps/*"))


@AS_ROOT
@pytest.mark.parametrize("place", ["outputs", "cache"])
def test_a_full_disk_is_named_before_anything_is_measured(
    home: Path, place: str, request: pytest.FixtureRequest
) -> None:
    tiny = ["mount", "-t", "tmpfs", "-o", f"size=64k,uid={NOBODY},mode=755", "tmpfs"]
    done = subprocess.run([*tiny, str(home / place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("no file system can be mounted here")
    request.addfinalizer(lambda: subprocess.run(["umount", str(home / place)], check=True))
    code, text = as_user(NOBODY, lambda: measured(home / "outputs", home / "lock"))
    assert (code, text.count("\n")) == (2, 1), text
    assert "cannot be written to (No space left on device)" in text


@AS_ROOT
def test_another_users_lock_locks_too(home: Path) -> None:
    shared = home / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    file = shared / "lock"
    os.environ["BENCH_LOCK"] = str(file)
    with machine_lock(pytest.fail):  # root's: it exists from now on
        pass
    assert file.stat().st_uid == 0
    code, text = as_user(NOBODY, lambda: measured(home / "outputs", file))
    assert code == 0, text
    assert "another sweep" not in text


@AS_ROOT
def test_a_user_without_a_home_is_told_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (home / "outputs").chmod(0o777)
    code, text = as_user(NO_ACCOUNT, lambda: measured(home / "outputs", home / "tmp" / "lock"))
    assert code == 2, text
    assert text == "HOME: not set, and this user has no home folder; set BENCH_CACHE to a folder\n"


@pytest.mark.parametrize("name", ODD)
def test_a_place_may_be_called_anything(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, tmp_path, cache=tmp_path / name / "cache")
    (tmp_path / "tmp").mkdir()
    assert measured(tmp_path / name, tmp_path / f"{name}.lock") == 0
    assert (tmp_path / name / "sweeps").is_dir()
    assert cache_folder() == tmp_path / name / "cache"


@pytest.fixture(autouse=True)
def lock_is_taken_back() -> Iterator[None]:
    before = os.environ.get("BENCH_LOCK")
    yield
    if before is None:
        os.environ.pop("BENCH_LOCK", None)
    else:
        os.environ["BENCH_LOCK"] = before
