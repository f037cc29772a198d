"""What NVML says about the device, without torch: the driver process asks too, and must not touch
CUDA."""

import time

import pynvml

_TOLERANCE_BYTES = 64 * 2**20  # what else may come and go on a device in a while


def nvml_used_bytes(uuid: str | None) -> int | None:
    """Memory in use on the whole device; None where NVML is absent, refuses, or does not know the
    device."""
    if uuid is None:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).used)
    except pynvml.NVMLError:  # NOT_SUPPORTED is no reading, not 0
        return None
    finally:
        pynvml.nvmlShutdown()


def wait_until_free(uuid: str | None, baseline_bytes: int | None, limit_s: float = 30.0) -> int:
    """Wait until the device holds no more than before the first cell; returns the bytes that stay
    held after all.

    A process that has ended may still hold memory for a moment: the next cell would start from a
    false baseline.
    """
    deadline = time.monotonic() + limit_s
    while True:
        used = nvml_used_bytes(uuid)
        if used is None or baseline_bytes is None or used <= baseline_bytes + _TOLERANCE_BYTES:
            return 0
        if time.monotonic() > deadline:
            return used - baseline_bytes
        time.sleep(0.2)
