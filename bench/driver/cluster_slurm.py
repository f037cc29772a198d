"""Orders as job arrays of Slurm, by submitit; answers come back as files on a shared disk.

Whether a job lives is asked of ``squeue``, not of accounting (``sacct``), which many clusters do
not have and without which submitit waits for ever. An array holds as many jobs as the cluster
allows (``MaxArraySize``). A job that Slurm has no more and whose answers do not end is lost.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import submitit

from bench.config.settings import Where
from bench.driver import launch
from bench.driver.cluster import Lost, read_answer
from bench.driver.orders import Answer, Done, Refused
from bench.errors import ConfigError
from bench.paths import PACKAGE
from bench.store.files import new_folder

_POLL_S = 0.5
_ASK_EVERY_S = 5.0
_USUAL_ARRAY = 1000
# A shared disk may show a file later than Slurm shows its job's end
_PATIENCE = 2  # how many times in a row squeue does not have a job whose answers do not end


class SlurmCluster:
    """The Slurm whose commands are on this machine."""

    def __init__(self, where: Where, outputs: Path) -> None:
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise ConfigError(
                ["where=slurm: no sbatch and squeue here; start it on a login node of the cluster"]
            )
        self._folder = new_folder(outputs, "jobs")
        self._executor = submitit.SlurmExecutor(self._folder / "submitit")
        gpus = _has_gpus() if where.gpus is None else where.gpus
        self._executor.update_parameters(
            job_name="bench",
            time=where.limit_min,
            cpus_per_task=where.cpus,
            gpus_per_node=gpus or None,
            constraint=where.constraint,
            additional_parameters=dict(where.options),
        )
        self._most = _most_in_an_array()
        self._jobs: dict[str, str] = {}  # Slurm's number of each order's job
        self._read: dict[str, int] = {}  # answers that were read, by order
        self._missed: dict[str, int] = {}  # by order, how often squeue did not have it
        self._asked_at = time.monotonic()
        self._has_lost = False

    def submit(self, orders: Mapping[str, bytes]) -> None:
        names = list(orders)
        for begin in range(0, len(names), self._most):
            some = names[begin : begin + self._most]
            files = []
            for name in some:
                (self._folder / name).mkdir()
                file = self._folder / name / "order"
                file.write_bytes(orders[name])
                files.append(str(file))
            folders = [str(self._folder / name) for name in some]
            try:
                jobs = self._executor.map_array(
                    launch.write_answers, files, folders, [str(PACKAGE.parent)] * len(some)
                )
            except submitit.core.utils.FailedJobError as error:
                raise ConfigError([f"where=slurm: sbatch refuses: {error}"]) from error
            self._jobs |= {name: job.job_id for name, job in zip(some, jobs, strict=True)}

    def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
        deadline = time.monotonic() + limit_s
        while True:
            found = [each for name in list(self._jobs) for each in self._new(name)]
            if not found and time.monotonic() - self._asked_at > _ASK_EVERY_S:
                found = self._gone()
            if found or time.monotonic() > deadline:
                return found
            time.sleep(_POLL_S)

    def close(self) -> None:
        if self._jobs:
            subprocess.run(["scancel", *self._jobs.values()], check=False, capture_output=True)
        elif not self._has_lost:
            shutil.rmtree(self._folder)

    def _new(self, name: str) -> list[tuple[str, Answer | Lost]]:
        """Answers that have come of an order; with its last one it is over."""
        found: list[tuple[str, Answer | Lost]] = []
        while True:
            index = self._read.get(name, 0)
            file = self._folder / name / f"{index:06d}.answer"
            if not file.is_file():
                return found
            answer = read_answer(file.read_bytes())
            self._read[name] = index + 1
            found.append((name, answer))
            if isinstance(answer, (Done, Refused)):
                del self._jobs[name]
                return found

    def _gone(self) -> list[tuple[str, Answer | Lost]]:
        """Orders whose jobs Slurm has no more."""
        self._asked_at = time.monotonic()
        asked = subprocess.run(
            ["squeue", "--me", "-h", "-r", "-o", "%i"], check=False, capture_output=True, text=True
        )
        if asked.returncode != 0:  # the controller is busy, or starts anew
            return []
        alive = set(asked.stdout.split())
        lost = []
        for name, job in list(self._jobs.items()):
            self._missed[name] = 0 if job in alive else self._missed.get(name, 0) + 1
            if self._missed[name] >= _PATIENCE:
                del self._jobs[name]
                self._has_lost = True
                lost.append((name, Lost(f"Slurm's job {job} {_how_it_ended(job)}")))
        return list(lost)


def _how_it_ended(job: str) -> str:
    asked = subprocess.run(
        ["scontrol", "-o", "show", "job", job], check=False, capture_output=True, text=True
    )
    fields = dict(word.partition("=")[::2] for word in asked.stdout.split())
    if "JobState" not in fields:
        return "is gone"
    node = f" on {fields['NodeList']}" if fields.get("NodeList") else ""
    return f"ended as {fields['JobState']}{node} ({fields.get('Reason')})"


def _most_in_an_array() -> int:
    asked = subprocess.run(
        ["scontrol", "show", "config"], check=False, capture_output=True, text=True
    )
    for line in asked.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value))
    return _USUAL_ARRAY


def _has_gpus() -> int:
    """One where some node has any."""
    asked = subprocess.run(["sinfo", "-h", "-o", "%G"], check=False, capture_output=True, text=True)
    return int("gpu" in asked.stdout)
