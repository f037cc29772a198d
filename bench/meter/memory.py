"""Peaks of memory, phase by phase, and the state of the heap that they begin from.

The kernel keeps the peak resident set of a process (``VmHWM``) and resets it when 5 is written to
``/proc/self/clear_refs``; without the reset the peak of loading would hide that of running. File
pages (weights that are memory-mapped) count in it and are told apart at the end of the phase. On a
GPU the engine's allocator keeps its own peaks, and NVML tells what the whole device holds: by the
UUID of the device, because NVML's indices ignore CUDA_VISIBLE_DEVICES.
"""

import ctypes
from pathlib import Path

from bench.engine.protocol import Accelerator, Session
from bench.meter.nvml import nvml_uuid, used_bytes
from bench.record.measurement import Memory

# Parameters of mallopt and what they are set to: the highest that glibc rises to by itself; and
# freed memory at the end of the heap is kept
_HEAP = {"mmap_threshold_bytes": (-3, 32 * 2**20), "trim_threshold_bytes": (-1, 2**31 - 1)}

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def rss_bytes() -> int | None:
    """The resident set of this process, now."""
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    """A field of ``/proc/self/status`` like VmRSS; None where the system has no such file."""
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def settle_heap() -> dict[str, int]:
    """Set what glibc otherwise learns from what was freed before; returns what was set.

    An allocation above the mmap threshold (128 KiB at first) is mapped, faulted in page by page and
    unmapped again; the first large block that is freed raises the threshold for good, up to 32 MiB.
    So the same prefill took 0.26 s in a process that had loaded a tokenizer and 0.29 to 0.32 s in
    one that had not (fp32, 3 x 77 tokens of smollm2-135m, 2 threads of a Xeon, 2026-11-25). Here
    every process begins where that ends. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # glibc's
        return {}
    return {
        name: value
        for name, (parameter, value) in _HEAP.items()
        if libc.mallopt(parameter, value) == 1
    }


def reset_peak() -> bool:
    """Begin the peak of the resident set anew; returns whether it does: some sandboxes forbid
    it."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


class PhaseMemory:
    """Peaks between ``begin`` and ``end``; made before the process touches the device."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        # NVML's name of the device
        self.uuid = None if accelerator is None else nvml_uuid(accelerator.uuid)
        self._used_before = used_bytes(self.uuid)
        self._has_reset = False

    def begin(self) -> None:
        """Begin a phase."""
        self._has_reset = reset_peak()

    def end(self, session: Session) -> Memory:
        """The peaks of the phase; without a reset its peak is an earlier one's, and no reading."""
        allocated, reserved = session.allocated_peaks()
        used, before = used_bytes(self.uuid), self._used_before
        return Memory(
            rss_peak_bytes=_status_bytes("VmHWM") if self._has_reset else None,
            rss_anon_bytes=_status_bytes("RssAnon"),
            rss_file_bytes=_status_bytes("RssFile"),
            allocated_peak_bytes=allocated,
            reserved_peak_bytes=reserved,
            device_used_bytes=None if used is None or before is None else used - before,
        )
