"""Orders as job arrays of Slurm, by submitit; answers come back as files on a shared disk.

Whether a job lives is asked of ``squeue``, not of accounting (``sacct``), which many clusters do
not have and without which submitit waits for ever. An array holds as many jobs as the cluster
allows (``MaxArraySize``). A job that Slurm has no more and whose answers do not end is lost.
"""

import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
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
_NUMBERS = "numbers"  # file of the jobs that a driver has queued
# A shared disk may show a file later than Slurm shows its job's end
_PATIENCE = 3  # how many times in a row squeue does not have a job whose answers do not end


class SlurmCluster:
    """The Slurm whose commands are on this machine."""

    def __init__(self, where: Where, outputs: Path) -> None:
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise ConfigError(
                ["where=slurm: no sbatch and squeue here; start it on a login node of the cluster"]
            )
        for numbers in (outputs / "jobs").glob(f"*/{_NUMBERS}"):  # of a driver that was killed
            _cancel(numbers.read_text(encoding="utf-8").split())
            numbers.unlink()
        self._folder = new_folder(outputs, "jobs")
        self._executor = submitit.SlurmExecutor(self._folder / "submitit")
        gpus = _has_gpus() if where.gpus is None else where.gpus
        self._executor.update_parameters(
            job_name="bench",
            time=where.limit_min,
            cpus_per_task=where.cpus,
            exclusive=True if where.cpus is None else None,
            gpus_per_node=gpus or None,
            constraint=where.constraint,
            use_srun=False,  # a step of its own may be confined to one CPU of the job's
            # What is lost is handed out again by us, into a folder of its own
            additional_parameters={"no-requeue": True, **where.options},
        )
        self._most = _most_in_an_array()
        self._jobs: dict[str, str] = {}  # Slurm's number of each order's job
        self._read: dict[str, int] = {}  # answers that were read, by order
        self._missed: dict[str, int] = {}  # by order, how often squeue did not have it
        self._asked_at = time.monotonic()
        self._has_lost = False
        self._refused: list[tuple[str, Answer | Lost]] = []

    def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
        if avoid:
            self._executor.update_parameters(exclude=",".join(sorted(avoid)))
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
                what = " ".join(str(error).split())
                if not avoid:
                    raise ConfigError([f"where=slurm: sbatch refuses: {what}"]) from error
                self._refused += [(name, Lost(f"sbatch refuses: {what}")) for name in some]
                continue
            self._jobs |= {name: job.job_id for name, job in zip(some, jobs, strict=True)}
            numbers = "\n".join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))
            with open(self._folder / _NUMBERS, "a", encoding="utf-8") as kept:
                kept.write(f"{numbers}\n")

    def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
        deadline = time.monotonic() + limit_s
        while True:
            found, self._refused = self._refused, []
            found += [each for name in list(self._jobs) for each in self._new(name)]
            if not found and time.monotonic() - self._asked_at > _ASK_EVERY_S:
                found = self._gone()
            if found or time.monotonic() > deadline:
                return found
            time.sleep(_POLL_S)

    def close(self) -> None:
        _cancel(list(self._jobs.values()))
        if self._has_lost:  # its logs may say why
            (self._folder / _NUMBERS).unlink(missing_ok=True)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)  # a job that ends may still write

    def _new(self, name: str) -> list[tuple[str, Answer | Lost]]:
        """Answers that have come of an order; with its last one it is over."""
        found: list[tuple[str, Answer | Lost]] = []
        # Listed, which makes a network disk look again, instead of asked for one by one
        there = {file.name for file in (self._folder / name).iterdir()}
        while True:
            index = self._read.get(name, 0)
            file = self._folder / name / f"{index:06d}.answer"
            if file.name not in there:
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
        lost: list[tuple[str, Answer | Lost]] = []
        for name, job in list(self._jobs.items()):
            self._missed[name] = 0 if job in alive else self._missed.get(name, 0) + 1
            if self._missed[name] >= _PATIENCE:
                del self._jobs[name]
                self._has_lost = True
                lost.append((name, Lost(f"Slurm's job {job} {_how_it_ended(job)}")))
        return lost


def _cancel(jobs: Sequence[str]) -> None:
    if jobs:
        subprocess.run(["scancel", *jobs], check=False, capture_output=True)


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
