"""llama.cpp's C functions as two objects: a ``Model`` (weights) and a ``Context`` (one sequence).

The C functions are called, not ``llama_cpp.Llama``: that class keeps the logits of every position,
takes its threads from the machine, looks for a common prefix between two prompts and so would skip
the second prefill of a benchmark. Every setting that decides a number is set here, since defaults
change from version to version.
"""

import ctypes
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np

from bench.engine.prompts import Ids
from bench.engine.protocol import Floats
from bench.errors import CellFailure

KV_DTYPE_BYTES = 2  # keys and values in F16, llama.cpp's default
_WARN, _ERROR = 3, 4  # of ggml_log_level in ggml.h
_LARGEST_PRODUCT = 512  # tokens that go through the layers together; llama.cpp's default


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _say_warnings(level: int, text: bytes, user_data: Any) -> None:
    """llama.cpp tells of every tensor that it loads; the cell's log gets what is amiss."""
    if level in (_WARN, _ERROR):
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


def start() -> None:
    """Load the library and let it find its devices."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torch, and would say so
    c.llama_log_set(_say_warnings, ctypes.c_void_p(0))
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
        # No weights packed anew for AMX: that code dies of SIGSEGV where gcc 12 compiled it
        # (ggml-org/llama.cpp#26954), and F16 has no other packing.
        how.use_extra_bufts = False
        self.file = file
        self.pointer: Any = c.llama_model_load_from_file(str(file).encode(), how)
        if not self.pointer:
            raise CellFailure("failed", f"llama.cpp cannot load {file}; the cell's log says why")
        weakref.finalize(self, c.llama_model_free, self.pointer)
        vocabulary = c.llama_model_get_vocab(self.pointer)
        self.vocabulary: int = c.llama_vocab_n_tokens(vocabulary)
        self.context_tokens: int = c.llama_model_n_ctx_train(self.pointer)
        self.ends = frozenset(
            token for token in range(self.vocabulary) if c.llama_vocab_is_eog(vocabulary, token)
        )


class Context:
    """A KV cache for one sequence, and the buffers to extend it. Freed with the object.

    Args:
        tokens: of the whole sequence, at most.
        piece: tokens of one ``read``, at most.
        outputs: positions of one ``read`` that give logits, at most: 1, or all of the piece.
        fused: attention in one kernel (flash attention), which llama.cpp by itself takes on a CPU,
            or as separate products.
    """

    def __init__(
        self, model: Model, threads: int, tokens: int, piece: int, outputs: int, fused: bool
    ) -> None:
        how = c.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch = tokens, piece, min(piece, _LARGEST_PRODUCT)
        how.n_seq_max, how.n_outputs_max = 1, outputs
        how.n_threads = how.n_threads_batch = threads
        how.type_k = how.type_v = c.GGML_TYPE_F16
        how.flash_attn_type = (
            c.LLAMA_FLASH_ATTN_TYPE_ENABLED if fused else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        how.no_perf = False  # it counts tokens, for the attestation
        self.pointer: Any = c.llama_init_from_model(model.pointer, how)
        if not self.pointer:
            raise CellFailure(
                "failed", f"llama.cpp has no context of {tokens} tokens; the cell's log says why"
            )
        weakref.finalize(self, c.llama_free, self.pointer)
        self.model, self.tokens, self.piece = model, tokens, piece
        self._all = (ctypes.c_int8 * outputs)(*[1] * outputs) if outputs > 1 else None
        self._memory = c.llama_get_memory(self.pointer)

    def clear(self) -> None:
        """Forget the sequence. Stale keys and values stay in place, behind the mask."""
        c.llama_memory_clear(self._memory, False)

    def read(self, tokens: Ids) -> Floats:
        """The logits after reading these tokens, as a view that the next read overwrites.

        Shapes: tokens (n,); returns (1, vocabulary) of the last one, or (n, vocabulary) of all.
        """
        count = len(tokens)
        ids = (c.llama_token * count)(*tokens.tolist())
        batch = c.llama_batch_get_one(ids, count)
        if self._all is not None:
            batch.logits = self._all
        status = c.llama_decode(self.pointer, batch)
        if status != 0:
            raise CellFailure(
                "failed", f"llama_decode of {count} tokens returned {status}; see the cell's log"
            )
        shape = (1 if self._all is None else count, self.model.vocabulary)
        logits: Floats = np.ctypeslib.as_array(c.llama_get_logits(self.pointer), shape)
        return logits

    def read_counts(self) -> tuple[int, int]:
        """Tokens read in pieces, and one by one, since the last call."""
        performance = c.llama_perf_context(self.pointer)
        c.llama_perf_context_reset(self.pointer)
        return performance.n_p_eval, performance.n_eval

    def state_bytes(self) -> int:
        """What the sequence would take if it were saved: keys, values, and a few bytes a token."""
        return int(c.llama_state_seq_get_size(self.pointer, 0))
