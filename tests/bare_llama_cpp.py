"""TTFT and TPOT of one cell, with llama-cpp-python's own class alone: as ``bare_loop.py``.

Arguments: the GGUF file, then as there; the folder of the tokenizer comes last. Batch 1.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

from llama_cpp import Llama
from transformers import AutoTokenizer

file, text, _, batch, threads, *counts, folder = sys.argv[1:]
prompt_tokens, new_tokens, warmups, repeats = map(int, counts)
assert batch == "1"
llama = Llama(
    file,
    n_ctx=256,
    n_threads=int(threads),
    n_threads_batch=int(threads),
    use_mmap=False,
    flash_attn=True,
    verbose=False,
)
ids = AutoTokenizer.from_pretrained(folder)(Path(text).read_text(encoding="utf-8")).input_ids
ttft, tpot, steps = [], [], []
for _ in range(warmups + repeats):
    start = time.perf_counter()
    llama.reset()
    stamps = []
    for _ in itertools.islice(llama.generate(ids[:prompt_tokens], temp=0.0), new_tokens):
        stamps.append(time.perf_counter())
    ttft.append(stamps[0] - start)
    tpot.append((stamps[-1] - stamps[0]) / (new_tokens - 1))
    steps.append([after - before for before, after in itertools.pairwise(stamps)])
quickest = [min(position) for position in zip(*steps[warmups:], strict=True)]
times = [statistics.median(ttft[warmups:]), statistics.median(tpot[warmups:])]
print(json.dumps([*times, min(ttft[warmups:]), statistics.fmean(quickest)]))
