"""Peaks of memory, phase by phase."""

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
