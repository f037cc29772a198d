"""llama.cpp's C functions as two objects: a ``Model`` (weights) and a ``Context`` (sequences).

The C functions are called, not ``llama_cpp.Llama``: that class keeps the logits of every position,
takes its threads from the machine, looks for a common prefix between two prompts and so would skip
the second prefill of a benchmark. Every setting that decides a number is set here, since defaults
change from version to version.
"""

import ctypes
import os
import re
import sys
import weakref
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np

from bench.engine.llama_cpp.types import KV_TYPES
from bench.engine.prompts import Ids
from bench.engine.protocol import Floats
from bench.errors import CellFailure

_WARN, _ERROR = 3, 4  # of ggml_log_level in ggml.h
_LARGEST_PRODUCT = 512  # tokens that go through the layers together; llama.cpp's default
_ROOM = 256  # a sequence's cache is a multiple of so many tokens; llama.cpp rounds up, and warns
_BUFFER = re.compile(r"load_tensors: +(\S+) model buffer size = +([0-9.]+ MiB)")
_NO_ROOM = re.compile(r"failed to allocate|unable to allocate|cannot allocate", re.IGNORECASE)
_buffers: dict[str, str] = {}  # of the model that was loaded last, as llama.cpp tells them
_no_room: list[str] = []  # what it has said of memory since a context was asked for


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, user_data: Any) -> None:
    """llama.cpp tells of every tensor that it loads; the cell's log gets what is amiss."""
    line = text.decode(errors="replace")
    if level in (_WARN, _ERROR):
        print(line, end="", file=sys.stderr, flush=True)
        if _NO_ROOM.search(line):
            _no_room.append(line.strip())
    elif said := _BUFFER.match(line):
        _buffers[said[1]] = said[2]


def start() -> None:
    """Load the library and let it find its devices."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torch, and would say so
    c.llama_log_set(_listen, ctypes.c_void_p(0))
    c.llama_backend_init()


class Model:
    """Weights in memory. Freed with the object."""

    def __init__(self, file: Path) -> None:
        how = c.llama_model_default_params()
        # Read, not mapped: mapped weights would come in during the first request, load_s would be
        # next to nothing, and the resident set could not be compared with other engines'.
        how.load_mode = c.LLAMA_LOAD_MODE_NONE
        how.lazy_mode = c.LLAMA_LAZY_MODE_OFF
        how.n_gpu_layers = 0
        # Some types are packed anew for the processor's instructions, as llama.cpp by itself does;
        # but for AMX that code dies of SIGSEGV where gcc 12 compiled it (ggml-org/llama.cpp#26954).
        how.use_extra_bufts = b"AMX_INT8 = 1" not in c.llama_print_system_info()
        _buffers.clear()
        self.pointer: Any = c.llama_model_load_from_file(str(file).encode(), how)
        if not self.pointer:
            raise CellFailure("failed", f"llama.cpp cannot load {file}; the cell's log says why")
        weakref.finalize(self, c.llama_model_free, self.pointer)
        self.buffers = dict(_buffers)
        vocabulary = c.llama_model_get_vocab(self.pointer)
        self.vocabulary: int = c.llama_vocab_n_tokens(vocabulary)
        self.context_tokens: int = c.llama_model_n_ctx_train(self.pointer)
        self.ends = frozenset(
            token for token in range(self.vocabulary) if c.llama_vocab_is_eog(vocabulary, token)
        )


class Batch:
    """Arguments of ``llama_decode`` for the next tokens of the first ``rows`` sequences.

    Positions follow those that a sequence has. Shapes: ids (rows, count), which the caller fills.
    """

    def __init__(self, rows: int, count: int, everywhere: bool) -> None:
        self.ids = np.zeros((rows, count), dtype=np.int32)
        wants = np.full((rows, count), everywhere, dtype=np.int8)
        wants[:, -1] = True
        self.outputs = int(wants.sum())
        sequences = np.repeat(np.arange(rows, dtype=np.int32), count)
        places = sequences.ctypes.data + sequences.itemsize * np.arange(rows * count)
        ones, places = np.ones(rows * count, dtype=np.int32), places.astype(np.uintp)
        self._kept = wants, sequences, places, ones  # llama.cpp gets their addresses
        self.arguments = c.llama_batch(
            n_tokens=rows * count,
            token=_address(self.ids, c.llama_token),
            n_seq_id=_address(ones, ctypes.c_int32),
            seq_id=_address(places, ctypes.POINTER(c.llama_seq_id)),
            logits=_address(wants, ctypes.c_int8),
        )


def _address(array: np.ndarray[Any, Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


class Context:
    """KV caches of some sequences, and the buffers to extend them together. Freed with the object.

    Each sequence has a cache of its own (``kv_unified`` false): in one for all of them, each token
    would be multiplied with the keys of every other sequence too, behind a mask. llama.h advises it
    where sequences share no long prefix.

    Args:
        rows: sequences.
        tokens: of each sequence, at most.
        piece: tokens of each sequence in one ``read``, at most.
        everywhere: logits at each position of the only sequence, or of the last ones alone.
        fused: attention in one kernel (flash attention), which llama.cpp by itself takes on a CPU,
            or as separate products. Packed values need it.
        kv: type of keys and values.

    Raises:
        CellFailure: ``oom`` for more sequences than llama.cpp has, and where it finds no memory;
            ``failed`` when it has no such context.
    """

    def __init__(
        self,
        model: Model,
        threads: int,
        rows: int,
        tokens: int,
        piece: int,
        everywhere: bool,
        fused: bool,
        kv: str,
    ) -> None:
        if rows > c.llama_max_parallel_sequences():
            most = c.llama_max_parallel_sequences()
            raise CellFailure("oom", f"llama.cpp runs at most {most} sequences, not {rows}")
        how = c.llama_context_default_params()
        how.n_ctx, how.n_batch = rows * -(-tokens // _ROOM) * _ROOM, rows * piece
        how.n_ubatch = min(how.n_batch, _LARGEST_PRODUCT)
        how.n_seq_max, how.n_outputs_max = rows, piece if everywhere else rows
        how.kv_unified = False
        how.n_threads = how.n_threads_batch = threads
        how.type_k = how.type_v = KV_TYPES[kv].number
        how.flash_attn_type = (
            c.LLAMA_FLASH_ATTN_TYPE_ENABLED if fused else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        how.no_perf = False  # it counts tokens, for the attestation
        _no_room.clear()
        self.pointer: Any = c.llama_init_from_model(model.pointer, how)
        if not self.pointer and _no_room:
            said = _no_room[0]
            raise CellFailure("oom", f"no room for {rows} x {tokens:,} tokens in {kv}: {said}")
        if not self.pointer:
            raise CellFailure(
                "failed",
                f"llama.cpp has no context of {rows} x {tokens} tokens in {kv}; the cell's log says"
                " why",
            )
        weakref.finalize(self, c.llama_free, self.pointer)
        self.model, self.rows, self.tokens, self.piece = model, rows, tokens, piece
        self.fused, self.kv, self._everywhere = fused, kv, everywhere
        self._batches: dict[tuple[int, int], Batch] = {}
        self._memory = c.llama_get_memory(self.pointer)

    def clear(self) -> None:
        """Forget the sequences. Stale keys and values stay in place, behind the mask."""
        c.llama_memory_clear(self._memory, False)

    def read(self, tokens: Ids) -> Floats:
        """The logits after reading these tokens, as a view that the next read overwrites.

        Shapes: tokens (rows, n); returns (rows, vocabulary) of the last ones, or (n, vocabulary) of
        one row's all.
        """
        rows, count = tokens.shape
        batch = self._batches.get((rows, count))
        if batch is None:
            batch = self._batches[rows, count] = Batch(rows, count, self._everywhere)
        batch.ids[:] = tokens
        status = c.llama_decode(self.pointer, batch.arguments)
        if status != 0:
            raise CellFailure(
                "failed",
                f"llama_decode of {tokens.size} tokens returned {status}; see the cell's log",
            )
        shape = (batch.outputs, self.model.vocabulary)
        logits: Floats = np.ctypeslib.as_array(c.llama_get_logits(self.pointer), shape)
        return logits

    def read_counts(self) -> tuple[int, int]:
        """Tokens read together, and one by one, since the last call; it counts both from 1."""
        performance = c.llama_perf_context(self.pointer)
        c.llama_perf_context_reset(self.pointer)
        return performance.n_p_eval, performance.n_eval

    def state_bytes(self) -> int:
        """What the first sequence would take on disk: keys, values, and a few bytes a token."""
        return int(c.llama_state_seq_get_size(self.pointer, 0))
