"""A Slurm of one node on this machine, for tests: real daemons, two slots, no accounting.

Its packages are Debian's ``slurm-wlm`` and ``munge``; as root, since its daemons change users.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
_KEY = Path("/etc/munge/munge.key")

_CONFIGURATION = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={port}
SlurmdPort={node_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
KillWait=0
MinJobAge=300
MaxArraySize={most}
SlurmdTimeout=10
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 Features=calm State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str | None:
    """Why there can be no Slurm here."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        return f"Slurm is not installed: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "Slurm's daemons want root"


@contextmanager
def slurm(folder: Path, most: int = 1001) -> Iterator[Path]:
    """Run the daemons; gives the folder with their process ids. ``most``: jobs of an array."""
    host = socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = {"port": _free_port(), "node_port": _free_port()}
    file = folder / "slurm.conf"
    file.write_text(_CONFIGURATION.format(host=host, folder=folder, most=most, **ports))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(file)
    own = _munge(folder)
    try:
        subprocess.run(["slurmctld", "-f", str(file)], check=True)
        start_node(folder)
        _wait_for_idle()
        yield folder
    finally:
        subprocess.run(["scancel", "--user", "root"], check=False, capture_output=True)
        for name in ("slurmd.pid", "slurmctld.pid"):
            end(folder / name)
        if own is not None:
            own.terminate()
            own.wait()
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


def start_node(folder: Path) -> None:
    """The daemon of the one node."""
    file = str(folder / "slurm.conf")
    subprocess.run(["slurmd", "-f", file, "-N", socket.gethostname()], check=True)


def end(pid_file: Path, number: signal.Signals = signal.SIGTERM) -> None:
    """Send a daemon a signal, and wait until it is gone."""
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text())
    for _ in range(100):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def _munge(folder: Path) -> "subprocess.Popen[bytes] | None":
    """The daemon that signs messages, unless one runs."""
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return None
    if not _KEY.is_file():
        _KEY.write_bytes(os.urandom(1024))
        _KEY.chmod(0o400)
        shutil.chown(_KEY, "munge", "munge")
    run = Path("/run/munge")
    run.mkdir(exist_ok=True)
    shutil.chown(run, "munge", "munge")
    log = folder / "munge"
    log.mkdir(mode=0o700)
    shutil.chown(log, "munge", "munge")
    folder.chmod(0o755)
    daemon = subprocess.Popen(
        ["munged", "--foreground", "--force", "--log-file", str(log / "log")],
        user="munge",
        group="munge",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(50):
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
            return daemon
        time.sleep(0.1)
    raise RuntimeError("munged does not start")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for_idle() -> None:
    for _ in range(100):
        state = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False
        )
        if "idle" in state.stdout:
            return
        time.sleep(0.1)
    raise RuntimeError(f"Slurm's node does not come up: {state.stdout}{state.stderr}")
