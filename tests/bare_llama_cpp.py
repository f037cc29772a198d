"""TTFT and TPOT of one cell, with llama.cpp's C functions alone: as ``bare_loop.py``.

Not by llama-cpp-python's class ``Llama``: it copies logits and builds candidates of all 49,152
tokens in each step, 8 % of a step of SmolLM2-135M in f16 (EPYC, 2026-11-26). Arguments: the GGUF
file, then as there; the folder of the tokenizer comes last. Batch 1.
"""

import ctypes
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import llama_cpp as c
import numpy as np
from transformers import AutoTokenizer

file, text, _, batch, threads, *counts, folder = sys.argv[1:]
prompt_tokens, new_tokens, warmups, repeats = map(int, counts)
assert batch == "1"
silent = c.llama_log_callback(lambda *_: None)  # kept, as C calls it
c.llama_log_set(silent, ctypes.c_void_p(0))
c.llama_backend_init()
how = c.llama_model_default_params()
how.load_mode, how.lazy_mode = c.LLAMA_LOAD_MODE_NONE, c.LLAMA_LAZY_MODE_OFF  # read, not mapped
model = c.llama_model_load_from_file(file.encode(), how)
settings = c.llama_context_default_params()
settings.n_ctx, settings.n_batch = 256, prompt_tokens
settings.n_threads = settings.n_threads_batch = int(threads)
context = c.llama_init_from_model(model, settings)
vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
ring = AutoTokenizer.from_pretrained(folder)(Path(text).read_text(encoding="utf-8")).input_ids


def read(tokens: list[int]) -> int:
    array = (c.llama_token * len(tokens))(*tokens)
    assert c.llama_decode(context, c.llama_batch_get_one(array, len(tokens))) == 0
    logits = c.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())


ttft, tpot, steps = [], [], []
for _ in range(warmups + repeats):
    start = time.perf_counter()
    c.llama_memory_clear(c.llama_get_memory(context), True)
    token = read(ring[:prompt_tokens])
    stamps = [time.perf_counter()]
    for _ in range(new_tokens - 1):
        token = read([token])
        stamps.append(time.perf_counter())
    ttft.append(stamps[0] - start)
    tpot.append((stamps[-1] - stamps[0]) / (new_tokens - 1))
    steps.append([after - before for before, after in itertools.pairwise(stamps)])
quickest = [min(position) for position in zip(*steps[warmups:], strict=True)]
times = [statistics.median(ttft[warmups:]), statistics.median(tpot[warmups:])]
print(json.dumps([*times, min(ttft[warmups:]), statistics.fmean(quickest)]))
