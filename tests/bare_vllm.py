"""TTFT and TPOT of one cell, with vLLM alone: arguments and output as of ``bare_loop.py``."""

import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path

folder, text, quant, batch, threads, *counts = sys.argv[1:]
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": threads,
}

from transformers import AutoTokenizer  # noqa: E402  the environment first
from vllm import LLM, SamplingParams  # noqa: E402

prompt_tokens, new_tokens, warmups, repeats = map(int, counts)
rows = int(batch)
llm = LLM(
    folder,
    dtype={"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[quant],
    enforce_eager=True,
    enable_prefix_caching=False,
    max_model_len=512,
    max_num_batched_tokens=4096,
    kv_cache_memory_bytes=512 * 2**20,
)
ring = AutoTokenizer.from_pretrained(folder)(Path(text).read_text(encoding="utf-8")).input_ids
step = len(ring) // rows
prompts = [(ring[row * step :] + ring)[:prompt_tokens] for row in range(rows)]
how = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
ttft, tpot, steps = [], [], []
for request in range(warmups + repeats):
    start = time.perf_counter()
    for row, ids in enumerate(prompts):
        llm.llm_engine.add_request(f"{request}-{row}", {"prompt_token_ids": ids}, how)
    stamps = []
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        stamps.append(time.perf_counter())
    assert len(stamps) == new_tokens
    ttft.append(stamps[0] - start)
    tpot.append((stamps[-1] - stamps[0]) / (new_tokens - 1))
    steps.append([after - before for before, after in itertools.pairwise(stamps)])
quickest = [min(position) for position in zip(*steps[warmups:], strict=True)]
times = [statistics.median(ttft[warmups:]), statistics.median(tpot[warmups:])]
print(json.dumps([*times, min(ttft[warmups:]), statistics.fmean(quickest)]))
