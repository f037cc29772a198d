"""The tests on a machine that takes its CPUs away: finds those that hang on the clock.

``python -m tests.peers.stalls SEED [pytest arguments]`` stops one, two or all processes of the test
run for up to two seconds, again and again, beside a busy process: as neighbours of a virtual machine
do. A test that fails here and passes alone waits for time where it should wait for an event.
"""

import contextlib
import random
import subprocess
import sys
import time

import psutil

_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
_EVERY_S, _LONGEST_S = 3.0, 2.0


def stall(root: psutil.Process, chance: random.Random) -> None:
    """Stop some of its descendants for a while."""
    family = root.children(recursive=True)
    some = chance.sample(family, min(len(family), chance.choice([1, 2, len(family)])))
    stopped = []
    for process in some:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            stopped.append(process)
    time.sleep(chance.uniform(0.2, _LONGEST_S))
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def main(seed: str, *arguments: str) -> int:
    """Returns pytest's exit code."""
    chance = random.Random(seed)
    busy = subprocess.Popen([sys.executable, "-c", _BUSY])
    tests = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
    root = psutil.Process(tests.pid)
    try:
        while tests.poll() is None:
            time.sleep(chance.expovariate(1 / _EVERY_S))
            with contextlib.suppress(psutil.NoSuchProcess):  # the whole run has ended
                stall(root, chance)
    finally:
        busy.kill()
        busy.wait()
    return tests.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
