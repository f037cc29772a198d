"""TTFT and TPOT of one cell, with torch and transformers alone: what the tool is compared with.

Arguments: folder of the model, text file, quant, batch, threads, prompt tokens, new tokens,
warm-ups, repeats. Prints a JSON list, in seconds: the medians of both over the repeats, and their
minimum times: the quickest prefill, and the mean over positions of the quickest decode step there.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

folder, text, quant, batch, threads, *counts = sys.argv[1:]
prompt_tokens, new_tokens, warmups, repeats = map(int, counts)
batch = int(batch)
torch.set_num_threads(int(threads))
options = {"dtype": {"fp32": torch.float32, "fp16": torch.float16}.get(quant, torch.bfloat16)}
if quant == "nf4":
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
elif quant == "int8":
    options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options).eval()
ring = AutoTokenizer.from_pretrained(folder)(
    Path(text).read_text(encoding="utf-8"), return_tensors="pt"
).input_ids[0]
step = len(ring) // batch
ids = torch.stack([ring.roll(-row * step)[:prompt_tokens] for row in range(batch)])
ttft, tpot, steps = [], [], []
with torch.inference_mode():
    for _ in range(warmups + repeats):
        start = time.perf_counter()
        cache = DynamicCache(config=model.config)
        token = (
            model(ids, past_key_values=cache, logits_to_keep=1)
            .logits[:, -1]
            .argmax(-1, keepdim=True)
        )
        token.tolist()
        first = time.perf_counter()
        stamps = [first]
        for _ in range(new_tokens - 1):
            token = (
                model(token, past_key_values=cache, logits_to_keep=1)
                .logits[:, -1]
                .argmax(-1, keepdim=True)
            )
            stamps.append(time.perf_counter())
        ttft.append(first - start)
        tpot.append((stamps[-1] - first) / (new_tokens - 1))
        steps.append([after - before for before, after in itertools.pairwise(stamps)])
quickest = [min(position) for position in zip(*steps[warmups:], strict=True)]
times = [statistics.median(ttft[warmups:]), statistics.median(tpot[warmups:])]
print(json.dumps([*times, min(ttft[warmups:]), statistics.fmean(quickest)]))
