"""Within a job of a cluster: start the process that takes an order, and pass its answers on.

This runs in a process of the cluster's (a Ray worker, a Slurm task), whose threads, environment and
libraries would disturb what is measured; so the order goes to a fresh interpreter. It ends when its
standard input does, however suddenly this process ends.

Ray takes these functions along by value: they need the standard library alone.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LENGTH_BYTES = 8  # in front of each frame
# What Ray sets for its own workers: one thread for each of their CPUs
_OF_THE_CLUSTER = ("OMP_NUM_THREADS",)


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame; None at the end of the stream, or where it breaks off."""
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head)
    frame = stream.read(length)
    return frame if len(frame) == length else None


def write_frame(stream: IO[bytes], frame: bytes) -> None:
    """Send a frame at once."""
    stream.write(len(frame).to_bytes(_LENGTH_BYTES) + frame)
    stream.flush()


def answers(order: bytes, package_parent: str) -> Iterator[bytes]:
    """What comes out of an order, frame by frame.

    Args:
        package_parent: folder that holds the package on the driver's machine; where it is not here,
            the one that is installed counts.
    Raises:
        RuntimeError: when the process has died, with the last line that it wrote.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OF_THE_CLUSTER}
    path = [package_parent] if os.path.isdir(package_parent) else []  # noqa: PTH112
    path += filter(None, [kept.get("PYTHONPATH")])
    with tempfile.TemporaryFile() as errors:
        node = subprocess.Popen(
            [sys.executable, "-m", "bench.driver.node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**kept, "PYTHONPATH": os.pathsep.join(path)} if path else kept,
        )
        assert node.stdin is not None
        assert node.stdout is not None
        try:
            write_frame(node.stdin, order)
            while (frame := read_frame(node.stdout)) is not None:
                yield frame
            if node.wait() != 0:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                last = f": {lines[-1]}" if lines else ""
                raise RuntimeError(f"its process ended with exit code {node.returncode}{last}")
        finally:
            node.kill()
            node.wait()


def write_answers(order: str, folder: str, package_parent: str) -> None:
    """The same for a shared disk: a file for each frame, written so that it is whole or not there.

    Args:
        order: the order's file.
        folder: where the answers go, named by their number.
    """
    for index, frame in enumerate(answers(Path(order).read_bytes(), package_parent)):
        aside = Path(folder, f"{index:06d}.partial")
        aside.write_bytes(frame)
        aside.rename(aside.with_suffix(".answer"))
