"""Peaks of memory, phase by phase.

On a CPU the kernel keeps the peak resident set of a process (``VmHWM``) and resets it when 5 is
written to ``/proc/self/clear_refs``; without the reset the peak of loading would hide that of
running. File pages (weights that are memory-mapped) count in it and are told apart at the end of
the phase. On CUDA torch's allocator keeps its own peaks, and NVML tells what the whole device
holds: by the UUID of the device, because NVML's indices ignore CUDA_VISIBLE_DEVICES.
"""

from pathlib import Path

import torch

from bench.meter.device import nvml_used_bytes
from bench.record.measurement import Memory

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def status_bytes(field: str) -> int | None:
    """A field of ``/proc/self/status`` like VmRSS; None where the system has no such file."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def reset_peaks(device: str) -> bool:
    """Begin a phase; returns whether the peak of the resident set begins anew, which some sandboxes
    forbid."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def read_peaks(device: str, device_used_before: int | None, has_reset: bool) -> Memory:
    """End a phase.

    Args:
        device_used_before: NVML's reading before this process had a CUDA context.
        has_reset: what ``reset_peaks`` said; without it the peak is that of an earlier phase, and
            no reading.
    """
    cuda = device == "cuda"
    used = nvml_used_bytes(cuda_uuid()) if cuda else None
    return Memory(
        rss_peak_bytes=status_bytes("VmHWM") if has_reset else None,
        rss_anon_bytes=status_bytes("RssAnon"),
        rss_file_bytes=status_bytes("RssFile"),
        allocated_peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        reserved_peak_bytes=torch.cuda.max_memory_reserved() if cuda else None,
        device_used_bytes=used - device_used_before
        if used is not None and device_used_before is not None
        else None,
    )


def cuda_uuid() -> str:
    """NVML's name of the current torch device, found without making a CUDA context."""
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    instance = f"MIG-{uuid}"  # CUDA gives a MIG instance's UUID without saying that it is one
    return instance if nvml_used_bytes(instance) is not None else f"GPU-{uuid}"
