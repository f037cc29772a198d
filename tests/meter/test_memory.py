"""Peaks of memory, phase by phase."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.engine.scripted import ScriptedSession
from bench.meter import memory
from bench.meter.memory import PhaseMemory
from bench.record.measurement import Memory
from tests.scripted import scripted

MIB = 2**20


class WithAllocator(ScriptedSession):
    """A session whose allocator gave out 300 bytes at most, and held 500."""

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        return 300, 500


def session(kind: type[ScriptedSession] = ScriptedSession) -> ScriptedSession:
    return kind(scripted())


def after_filling(phase: PhaseMemory, size: int) -> Memory:
    phase.begin()
    np.ones(size, dtype=np.uint8)
    return phase.end(session())


def test_a_peak_belongs_to_its_phase() -> None:
    phase = PhaseMemory(None)
    high, low = (after_filling(phase, size).rss_peak_bytes for size in (400 * MIB, 10 * MIB))
    assert high is not None
    assert low is not None
    assert high - low > 300 * MIB


def test_the_resident_set_has_an_anonymous_part_and_files() -> None:
    found = after_filling(PhaseMemory(None), 1)
    assert found.rss_anon_bytes is not None
    assert found.rss_file_bytes is not None
    assert found.rss_anon_bytes + found.rss_file_bytes <= (memory.rss_bytes() or 0) + MIB


def test_without_an_accelerator_there_is_no_vram() -> None:
    found = after_filling(PhaseMemory(None), 1)
    assert (found.allocated_peak_bytes, found.device_used_bytes) == (None, None)


def test_the_engines_allocator_is_asked_at_the_end_of_a_phase() -> None:
    phase = PhaseMemory(None)
    phase.begin()
    found = phase.end(session(WithAllocator))
    assert (found.allocated_peak_bytes, found.reserved_peak_bytes) == (300, 500)


def test_a_peak_that_could_not_be_reset_is_no_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no" / "such" / "file")
    assert not memory.reset_peak()
    found = after_filling(PhaseMemory(None), 1)
    assert found.rss_peak_bytes is None
    assert found.rss_anon_bytes is not None


def test_what_was_freed_before_does_not_decide_how_the_heap_grows() -> None:
    """In a fresh process 4 MiB are mapped at first, and come from the heap once it is settled."""
    code = (
        "import ctypes, sys\n"
        "from bench.meter.memory import settle_heap\n"
        "class Info(ctypes.Structure):\n"
        "    _fields_ = [(name, ctypes.c_size_t) for name in 'abchdefgij']\n"  # h: blocks mapped
        "libc = ctypes.CDLL(None)\n"
        "libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p\n"
        "if 'settled' in sys.argv: print(sorted(settle_heap()))\n"
        "before = libc.mallinfo2().h\n"
        "libc.malloc(4 * 2**20)\n"
        "print(libc.mallinfo2().h - before)\n"
    )

    def mapped(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert mapped() == ["1"]
    assert mapped("settled") == ["['mmap_threshold_bytes', 'trim_threshold_bytes']", "0"]
