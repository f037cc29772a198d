"""Sweeps on a real Ray and a real Slurm of this machine, with the scripted engine: jobs, workers,
nodes and the driver are killed in the middle.

Skipped by name where the packages are missing: ``make cluster`` installs Ray and submitit, Slurm is
Debian's slurm-wlm.
"""

import fcntl
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import command_line
from tests import slurm as one_node
from tests.command_line import from_readme

GRID = ("engine=scripted", "model=tiny", "quality=none", "tracking=none", "quant=fp32,nf4")
TWICE = ("measure.passes=2", "measure.repeats=2", "measure.warmups=1", "batch=1,2")
_LONGEST_S = 240


def start(folder: Path, *overrides: str, **environment: str) -> "subprocess.Popen[str]":
    """The command line, in ``folder``."""
    return command_line.start(folder, ["-m", *GRID, *overrides], CI="1", **environment)


def ended(process: "subprocess.Popen[str]") -> str:
    """What it printed."""
    return "".join(process.communicate(timeout=_LONGEST_S))


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen within two minutes")


def nodes() -> list[psutil.Process]:
    """The processes that carry out orders."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[-2:] == ["-m", "bench.driver.node"]:
            found.append(process)
    return found


def youngest() -> psutil.Process | None:
    """Of these, the one that has most before it."""
    return max(nodes(), key=lambda process: process.create_time(), default=None)


def results(folder: Path) -> list[dict[str, Any]]:
    """Of the newest sweep."""
    sweeps = sorted((folder / "outputs" / "sweeps").glob("*"))
    return [json.loads(file.read_text()) for file in sorted(sweeps[-1].glob("*/result.json"))]


def finished_processes(folder: Path) -> int:
    sweeps = folder / "outputs" / "sweeps"
    return sum(len(json.loads(f.read_text())["replicates"]) for f in sweeps.glob("*/*/result.json"))


def assert_whole(folder: Path) -> None:
    """Every cell has all its passes, each of them once, with those that it is compared with."""
    cells = results(folder)
    assert len(cells) == 4
    blocks = set()
    for cell in cells:
        assert cell["outcome"]["status"] == "ok"
        origins = [replicate["origin"] for replicate in cell["replicates"]]
        assert [origin["pass_index"] for origin in origins] == [0, 1]
        blocks |= {(origin["block"], cell["cell"]["batch"]) for origin in origins}
    assert len(blocks) == 2


# Ray


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray of two slots."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: make cluster")
    with raylet(tmp_path_factory.mktemp("ray"), "--head", "--port=0") as head:
        yield head


class raylet:  # noqa: N801
    """A node of Ray; as a head it gives its address."""

    def __init__(self, folder: Path, *arguments: str, slots: int = 2) -> None:
        own = {"RAY_AUTH_MODE": "disabled", "BENCH_LOCK": str(folder / "lock")}
        os.environ["RAY_AUTH_MODE"] = "disabled"
        self._before = {p.pid for p in _raylets()}
        command = [str(Path(sys.executable).parent / "ray"), "start", *arguments]
        if "--head" in arguments:
            command.append("--include-dashboard=false")
        self._said = subprocess.run(
            [*command, f"--num-cpus={slots}", "--disable-usage-stats"],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def __enter__(self) -> str:
        found = re.search(r"--address='([^']+)'", self._said)
        return found[1] if found is not None else ""

    @property
    def process(self) -> psutil.Process:
        return next(p for p in _raylets() if p.pid not in self._before)

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            [str(Path(sys.executable).parent / "ray"), "stop", "--force"],
            capture_output=True,
            check=False,
        )


def _raylets() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"]


def test_the_readmes_command_runs_on_a_cluster(ray_address: str, tmp_path: Path) -> None:
    command = from_readme("python -m bench -m quant=bf16,nf4 batch=1,8 where=ray")
    tiny = ("engine=scripted", "model=tiny", "quality=none", "tracking=none")
    process = command_line.start(
        tmp_path, [*command, *tiny, f"where.address={ray_address}"], CI="1"
    )
    out = ended(process)
    assert process.returncode == 0, out
    assert len(results(tmp_path)) == 4


def on_ray(address: str) -> tuple[str, ...]:
    return ("where=ray", f"where.address={address}", "where.cpus=1")


def test_a_worker_of_ray_that_is_killed_costs_its_block_alone(
    ray_address: str, tmp_path: Path
) -> None:
    process = start(tmp_path, *on_ray(ray_address), *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 1)
    victim = wait_for(youngest).parent()
    assert victim.name().startswith("ray::")
    victim.kill()
    out = ended(process)
    assert process.returncode == 0, out
    assert "again, WorkerCrashedError" in out, out
    assert_whole(tmp_path)


def test_ctrl_c_keeps_what_is_finished_and_ends_what_runs_on_ray(
    ray_address: str, tmp_path: Path
) -> None:
    process = start(tmp_path, *on_ray(ray_address), *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 1)
    process.send_signal(signal.SIGINT)
    out = ended(process)
    assert process.returncode == 130, out
    kept = finished_processes(tmp_path)
    assert 1 <= kept < 8
    wait_for(lambda: not nodes())


def test_a_killed_driver_leaves_nothing_running_and_the_next_one_goes_on(
    ray_address: str, tmp_path: Path
) -> None:
    process = start(tmp_path, *on_ray(ray_address), *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 3)
    process.kill()
    ended(process)
    wait_for(lambda: not nodes())
    kept = finished_processes(tmp_path)
    again = start(tmp_path, *on_ray(ray_address), *TWICE, "resume=true")
    out = ended(again)
    assert again.returncode == 0, out
    cells = results(tmp_path)
    assert [len(cell["replicates"]) for cell in cells] == [2] * 4
    assert kept >= 3
    assert sum(cell["reused_from"] is not None for cell in cells) >= 1


def test_a_constraint_that_no_node_has_is_a_sentence(ray_address: str, tmp_path: Path) -> None:
    process = start(tmp_path, *on_ray(ray_address), "where.constraint=accelerator_type:H100")
    out = ended(process)
    assert process.returncode == 2, out
    assert "where=ray: no node has 1 CPU and accelerator_type:H100; the cluster's" in out


def test_a_lost_node_of_ray_costs_its_block_alone(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: make cluster")
    with raylet(tmp_path, "--head", "--port=0", slots=1) as address:
        second = raylet(tmp_path, f"--address={address}", slots=1)
        process = start(tmp_path, *on_ray(address), *TWICE)
        wait_for(lambda: finished_processes(tmp_path) >= 1)
        wait_for(lambda: len(nodes()) == 2)
        second.process.kill()
        out = ended(process)
        assert process.returncode == 0, out
        assert_whole(tmp_path)


# Slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Slurm of two slots whose arrays hold two jobs."""
    why = one_node.why_not()
    if why is not None:
        pytest.skip(why)
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed: make cluster")
    folder = tmp_path_factory.mktemp("slurm")
    for place in (folder, folder.parent, folder.parent.parent):
        place.chmod(0o755)  # munge's user has to come here
    with one_node.slurm(folder, most=2) as running:
        yield running


def queued() -> list[str]:
    asked = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=True
    )
    return asked.stdout.splitlines()


def waiting_job() -> str | None:
    """Of two that run, the later one."""
    running = [each.split()[0] for each in queued() if "RUNNING" in each]
    if len(running) < 2:
        return None
    return max(running, key=lambda job: tuple(map(int, job.split("_"))))


def test_a_cancelled_job_of_slurm_runs_again_and_arrays_are_cut(
    slurm: Path, tmp_path: Path
) -> None:
    secrets = {"HF_TOKEN": "hf_planted", "MLFLOW_TRACKING_PASSWORD": "word-planted"}
    calm = ("where.cpus=1", "where.constraint=calm")
    process = start(tmp_path, "where=slurm", *calm, *TWICE, **secrets)
    wait_for(lambda: any("_" in each for each in queued()))  # it has looked at the node
    with open(tmp_path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what runs now waits for the machine
        latest = wait_for(waiting_job)
        subprocess.run(["scancel", latest], check=True)
        wait_for(lambda: not any(latest in each for each in queued()))
    out = ended(process)
    assert process.returncode == 0, out
    assert f"again, Slurm's job {latest} ended as CANCELLED" in out
    assert_whole(tmp_path)
    written = [file for file in (tmp_path / "outputs").rglob("*") if file.is_file()]
    assert any("jobs" in file.parts for file in written)  # what was lost may be looked at
    for file in written:
        assert not [s for s in secrets.values() if s.encode() in file.read_bytes()], file


def test_a_worker_of_slurm_that_is_killed_costs_its_block_alone(
    slurm: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "where=slurm", "where.cpus=1", *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 1)
    victim = wait_for(youngest).parent()
    assert "submitit" in " ".join(victim.cmdline())
    victim.kill()
    out = ended(process)
    assert process.returncode == 0, out
    assert "again, Slurm's job " in out, out
    assert_whole(tmp_path)


def test_ctrl_c_cancels_what_slurm_has_not_begun(slurm: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "where=slurm", "where.cpus=1", *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 1)
    process.send_signal(signal.SIGINT)
    out = ended(process)
    assert process.returncode == 130, out
    wait_for(lambda: not queued())
    wait_for(lambda: not nodes())
    assert 1 <= finished_processes(tmp_path) < 8


def test_the_next_sweep_ends_what_a_killed_driver_left_in_slurm(
    slurm: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "where=slurm", *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 1)
    process.kill()
    ended(process)
    left = {each.split()[0] for each in queued()}
    assert left
    again = start(tmp_path, "where=slurm", *TWICE, "resume=true")
    wait_for(lambda: not left & {each.split()[0] for each in queued()})
    out = ended(again)
    assert again.returncode == 0, out
    assert [len(cell["replicates"]) for cell in results(tmp_path)] == [2] * 4


def test_a_node_of_slurm_whose_daemon_is_killed_comes_back(slurm: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "where=slurm", "where.cpus=1", *TWICE)
    wait_for(lambda: finished_processes(tmp_path) >= 1)
    one_node.end(slurm / "slurmd.pid", signal.SIGKILL)
    one_node.start_node(slurm)
    out = ended(process)
    assert process.returncode == 0, out
    assert_whole(tmp_path)


@pytest.mark.slow
def test_what_breaks_slurms_time_limit_is_lost(slurm: Path, tmp_path: Path) -> None:
    hang = ("engine.options.script='nf4: then hang; ttft 1.0 steps 0.5'", "measure=quick")
    limits = ("where.limit_min=1", "where.retries=0", "measure.limits_s.warm-up=600")
    process = start(tmp_path, "where=slurm", *hang, *limits)
    out = ended(process)
    assert process.returncode == 1, out
    statuses = {c["cell"]["quant"]["name"]: c["outcome"] for c in results(tmp_path)}
    assert statuses["fp32"]["status"] == "ok"
    assert statuses["nf4"]["status"] == "lost"
    assert "ended as TIMEOUT" in statuses["nf4"]["reason"]
