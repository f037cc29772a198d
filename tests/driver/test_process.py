"""A measured process may end in any way; each is provoked for real."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.driver.process import Task, begin_server, check_server, run_isolated
from bench.engine.protocol import Announce
from bench.errors import CellFailure

NO_PHASE = lambda phase, detail: None  # noqa: E731
LIMITS = {"measure": 1.5}


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    begin_server(())
    assert check_server((), NO_PHASE) is None


def add(announce: Announce, a: int, b: int) -> tuple[int, int]:
    announce("measure", "adding")
    return os.getpid(), a + b


def is_imported(announce: Announce, module: str) -> bool:
    return module in sys.modules


def raise_value_error(announce: Announce) -> None:
    raise ValueError("first line\nsecond line")


def refuse(announce: Announce) -> None:
    raise CellFailure("not_engaged", "a reason")


def run_out_of_memory(announce: Announce) -> None:
    import numpy as np

    np.zeros(2**50, dtype=np.uint8)


def raise_runtime_error(announce: Announce, text: str) -> None:
    raise RuntimeError(text)


def die(announce: Announce, number: int) -> None:
    announce("measure", "")
    os.kill(os.getpid(), number)


def exit_quietly(announce: Announce) -> None:
    os._exit(7)


def hang(announce: Announce, pid_file: str) -> None:
    grandchild = subprocess.Popen(["sleep", "600"])
    Path(pid_file).write_text(f"{os.getpid()} {grandchild.pid}")
    announce("measure", "")
    time.sleep(600)


def write(announce: Announce) -> None:
    print("from python", flush=True)
    os.write(2, b"from native code\n")


def oom_score(announce: Announce) -> str:
    return Path("/proc/self/oom_score_adj").read_text().strip()


def task(function: Callable[..., object], *arguments: object, python: str | None = None) -> Task:
    return Task(f"{__name__}:{function.__name__}", arguments, LIMITS, python)


def run(function: Callable[..., object], *arguments: object, log: str = os.devnull) -> object:
    return run_isolated(task(function, *arguments), NO_PHASE, Path(log))


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some are still running"
        time.sleep(0.05)


def test_the_value_comes_back_from_another_process() -> None:
    pid, total = run(add, 2, 3)  # type: ignore[misc]
    assert total == 5
    assert pid != os.getpid()
    assert not is_running(pid)


def test_phases_are_announced_in_order() -> None:
    seen: list[tuple[str, str]] = []
    run_isolated(task(add, 1, 1), lambda *phase: seen.append(phase), Path(os.devnull))
    assert seen[-1] == ("measure", "adding")


def test_an_exception_is_failed_with_its_first_line_and_its_traceback() -> None:
    with pytest.raises(CellFailure) as caught:
        run(raise_value_error)
    assert caught.value.status == "failed"
    assert caught.value.reason == "ValueError: first line"
    assert "in raise_value_error" in caught.value.__notes__[0]


def test_a_refusal_keeps_its_status() -> None:
    with pytest.raises(CellFailure) as caught:
        run(refuse)
    assert (caught.value.status, caught.value.reason) == ("not_engaged", "a reason")


def test_an_allocation_that_cannot_be_is_oom() -> None:
    with pytest.raises(CellFailure) as caught:
        run(run_out_of_memory)
    assert caught.value.status == "oom"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom"),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "oom"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "oom"),
        ("CUDA error: out of memory", "oom"),
        ("CUDA error: an illegal memory access was encountered", "failed"),
        ("No available kernel. Aborting execution.", "not_engaged"),
    ],
)
def test_what_libraries_raise_is_known_by_its_text(text: str, status: str) -> None:
    with pytest.raises(CellFailure) as caught:
        run(raise_runtime_error, text)
    assert caught.value.status == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGILL])
def test_a_death_by_signal_names_the_signal_and_the_phase(number: signal.Signals) -> None:
    with pytest.raises(CellFailure) as caught:
        run(die, int(number))
    assert caught.value.status == "failed"
    assert number.name in caught.value.reason
    assert "measure" in caught.value.reason


def test_an_exit_without_an_answer_is_failed_with_the_code() -> None:
    with pytest.raises(CellFailure, match="exit code 7"):
        run(exit_quietly)


def test_a_phase_that_takes_too_long_is_timeout_and_its_process_group_is_gone(
    tmp_path: Path,
) -> None:
    with pytest.raises(CellFailure) as caught:
        run(hang, str(tmp_path / "pids"))
    assert caught.value.status == "timeout"
    assert "measure.limits_s.measure" in caught.value.reason
    wait_until_gone(*map(int, (tmp_path / "pids").read_text().split()))


def test_output_goes_to_the_log_from_python_and_from_native_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(write, log=str(tmp_path / "log.txt"))
    assert (tmp_path / "log.txt").read_text().splitlines() == ["from python", "from native code"]
    assert capfd.readouterr() == ("", "")


def test_the_out_of_memory_killer_is_told_to_prefer_the_child() -> None:
    assert run(oom_score) == "1000"


def test_a_killed_parent_leaves_no_process(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from bench.driver.process import begin_server, run_isolated\n"
        "from tests.driver.test_process import hang, task\n"
        "begin_server(())\n"
        f"hanging = task(hang, {str(tmp_path / 'pids')!r})\n"
        "object.__setattr__(hanging, 'limits_s', {'measure': 600})\n"
        "run_isolated(hanging, lambda *_: None, Path('/dev/null'))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child, grandchild = map(int, (tmp_path / "pids").read_text().split())
        time.sleep(0.3)
        assert is_running(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until_gone(child, grandchild)


def test_a_second_command_of_a_process_gets_the_imports_of_its_own_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "another_engine.py").write_text("def fork_unsafe(): return None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    begin_server(("another_engine",))
    assert check_server(("another_engine",), NO_PHASE) is None
    begin_server(())
    assert run(is_imported, "another_engine") is False


@pytest.fixture(params=["linux", "elsewhere"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the end of another process is seen by the end of its pipe alone."""
    if request.param == "elsewhere":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.mark.usefixtures("system")
def test_another_interpreter_runs_a_task_too() -> None:
    pid, total = run_isolated(task(add, 2, 3, python=sys.executable), NO_PHASE, Path(os.devnull))
    assert total == 5
    assert pid != os.getpid()


def test_an_interpreter_that_is_not_there_is_failed_with_its_name() -> None:
    with pytest.raises(CellFailure, match=r"engine\.python=/no/such/python cannot be started"):
        run_isolated(task(add, 2, 3, python="/no/such/python"), NO_PHASE, Path(os.devnull))


@pytest.mark.usefixtures("system")
def test_another_interpreter_that_dies_is_failed_too() -> None:
    dying = task(die, int(signal.SIGKILL), python=sys.executable)
    with pytest.raises(CellFailure, match="SIGKILL in phase measure"):
        run_isolated(dying, NO_PHASE, Path(os.devnull))


def fork_server() -> psutil.Process:
    (found,) = [
        child
        for child in psutil.Process().children()
        if any("forkserver" in word for word in child.cmdline())
    ]
    return found


def test_a_killed_fork_server_costs_one_process_and_is_started_anew(tmp_path: Path) -> None:
    server = fork_server()
    server.suspend()  # as it is about to fork
    killer = threading.Timer(0.3, server.kill)
    killer.start()
    with pytest.raises(CellFailure, match="the process that the measured ones are forked from has"):
        run(add, 1, 2, log=str(tmp_path / "log.txt"))
    killer.join()
    while server.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    _, total = run(add, 1, 2, log=str(tmp_path / "log.txt"))
    assert total == 3
    assert fork_server().pid != server.pid
