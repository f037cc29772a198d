"""TTFT and TPOT of one cell, with torch and transformers alone: what the tool is compared with.

Arguments: folder of the model, text file, quant, batch, threads, prompt tokens, new tokens,
warm-ups, repeats. Prints the medians of both over the repeats as a JSON list, in seconds.
"""

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
ttft, tpot = [], []
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
        for _ in range(new_tokens - 1):
            token = (
                model(token, past_key_values=cache, logits_to_keep=1)
                .logits[:, -1]
                .argmax(-1, keepdim=True)
            )
        end = time.perf_counter()
        ttft.append(first - start)
        tpot.append((end - first) / (new_tokens - 1))
print(json.dumps([statistics.median(ttft[warmups:]), statistics.median(tpot[warmups:])]))
