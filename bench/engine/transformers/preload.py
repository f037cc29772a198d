"""What a fork server imports once, so that each cell's process starts in 0.02 s instead of 8 s.

A forked child cannot use CUDA if its parent has initialized it. Importing torch and transformers
does not; importing bitsandbytes does (0.50 asks every device for its capability), and so may
flash-attn. So where there is an NVIDIA driver these are left to the child. torchao asks for the
capability too (0.18.0, prototype/mx_formats/kernels.py:1014), and transformers imports it wherever
it is installed. So here transformers finds none, and a child that needs it imports it: that takes
0.3 s after all the rest, and a broken one costs only the cells that need it. Whether the rule held
is what ``fork_unsafe`` says; if it did not, the driver starts each process from nothing. The
environment is that of the moment when the server starts.
"""

import contextlib
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator

import tqdm

# Else torch.cuda.is_available() may initialize CUDA.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of each start and stop
# One line for each int8 layer and call about casts: it would be timed along with the layer.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="bitsandbytes")
# torchao tells of deprecations and of kernels for other devices, in every process that imports it.
for _chatty in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)


def has_nvidia_driver() -> bool:
    """Whether NVML answers; asks no CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


NEEDED = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
    "bench.engine.transformers.session",
)


def optional(nvidia: bool) -> tuple[str, ...]:
    """What may be imported before the fork besides; a broken one is named where it is needed."""
    return () if nvidia else ("bitsandbytes",)


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """What is imported meanwhile finds no such package, unless somebody has imported it before."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # how Python marks an absent module
    try:
        yield
    finally:
        del sys.modules[package]


tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed child leaves behind

with without("torchao"):
    for _name in NEEDED:
        try:
            importlib.import_module(_name)
        except Exception as error:  # the fork server survives an ImportError alone, and is asked
            raise ImportError(f"{_name}: {type(error).__name__}: {error}") from error
    for _name in optional(has_nvidia_driver()):
        with contextlib.suppress(Exception):
            importlib.import_module(_name)

import torch  # noqa: E402
from transformers.utils import is_torchao_available  # noqa: E402

is_torchao_available.cache_clear()  # it answered while torchao was hidden


def fork_unsafe() -> str | None:
    """Why a fork of this process cannot use the device; None: it can.

    torch's own flag is not enough: counting devices without NVML already makes a fork unusable, and
    only a fork can tell.
    """
    if CUDA_INITIALIZED or torch.cuda._is_in_bad_fork():
        return "a library initialized CUDA at import"
    return None


CUDA_INITIALIZED = torch.cuda.is_initialized()
