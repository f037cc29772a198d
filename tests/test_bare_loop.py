"""Does the tool read what is there? Its TTFT and TPOT against a bare loop of torch and transformers alone.

Both sides run in fresh processes, in pairs of which every other one begins with the other side, so that the machine's
moods fall on both. The bare side shares no code with the package: model, loop and clock are written out below, with the
same shapes, threads and settings. They are equivalent when the 90 % interval of the mean log ratio over the pairs lies
within 3 % (two one-sided tests). Not in the default run: `pytest -m slow -s tests/test_bare_loop.py` prints the ratios.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench.analysis.metrics import derive
from bench.analysis.stats import geometric_interval
from bench.meter.host import usable_cpus
from bench.model import sources
from tests import fakes
from tests.command_line import bench, environment, results

PAIRS = 10
MARGIN = 0.03
PROMPT_TOKENS, NEW_TOKENS, WARMUPS, REPEATS = 32, 16, 4, 10

BARE_LOOP = """
import json, statistics, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

folder, text, quant, batch, threads, *counts = sys.argv[1:]
prompt_tokens, new_tokens, warmups, repeats = map(int, counts)
batch = int(batch)
torch.set_num_threads(int(threads))
options = {"dtype": torch.float32}
if quant == "nf4":
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    options = {"dtype": torch.bfloat16, "quantization_config": config}
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options).eval()
ring = AutoTokenizer.from_pretrained(folder)(open(text, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
step = len(ring) // batch
ids = torch.stack([ring.roll(-row * step)[:prompt_tokens] for row in range(batch)])
ttft, tpot = [], []
with torch.inference_mode():
    for _ in range(warmups + repeats):
        start = time.perf_counter()
        cache = DynamicCache(config=model.config)
        token = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        token.tolist()
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = model(token, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        end = time.perf_counter()
        ttft.append(first - start)
        tpot.append((end - first) / (new_tokens - 1))
print(json.dumps([statistics.median(ttft[warmups:]), statistics.median(tpot[warmups:])]))
"""


def bare(folder: Path, quant: str, batch: int, tmp_path: Path) -> tuple[float, float]:
    text = Path(__file__).parent.parent / "bench" / "data" / "text" / "prose.txt"
    shapes = [batch, usable_cpus(), PROMPT_TOKENS, NEW_TOKENS, WARMUPS, REPEATS]
    command = [sys.executable, "-c", BARE_LOOP, str(folder), str(text), quant, *map(str, shapes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(tmp_path))
    ttft_s, tpot_s = json.loads(done.stdout.splitlines()[-1])
    return ttft_s, tpot_s


def ours(quant: str, batch: int, place: Path) -> tuple[float, float]:
    place.mkdir()
    shapes = [f"workload.prompt_tokens={PROMPT_TOKENS}", f"workload.new_tokens={NEW_TOKENS}"]
    care = ["measure=standard", "measure.passes=1", "resume=false", "quality=none", "tracking=none"]
    care += os.environ.get("BARE_LOOP_CARE", "").split()  # measure.repeats=10 halves the half hour that all of it takes
    done = bench(place, f"quant={quant}", f"batch={batch}", *shapes, *care)
    assert done.returncode == 0, done.stderr
    (result,) = results(place)
    metrics = derive(result)
    return metrics["ttft_s"], metrics["tpot_s"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("quant", os.environ.get("BARE_LOOP_QUANTS", "fp32,nf4").split(","))
def test_the_tool_reads_what_a_bare_loop_reads(tmp_path: Path, quant: str, batch: int) -> None:
    folder = sources.fetch(fakes.cell().model)
    assert folder is not None
    pairs = []
    for i in range(PAIRS):
        if i % 2:
            loop = bare(folder, quant, batch, tmp_path)
            tool = ours(quant, batch, tmp_path / str(i))
        else:
            tool = ours(quant, batch, tmp_path / str(i))
            loop = bare(folder, quant, batch, tmp_path)
        pairs.append((tool, loop))
    intervals = {}
    for name, index in (("TTFT", 0), ("TPOT", 1)):
        ratios = [tool[index] / loop[index] for tool, loop in pairs]
        intervals[name] = geometric_interval(ratios, 0.90)
        tool_s, loop_s = (statistics.median(side[index] for side in sides) for sides in zip(*pairs, strict=True))
        print(f"\n{quant} batch {batch} {name}: tool {tool_s * 1e3:.2f} ms, bare {loop_s * 1e3:.2f} ms")
        print(f"ratio of medians {tool_s / loop_s:.3f}; {intervals[name]}")
        print(f"of each pair {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    for name, found in intervals.items():
        assert found.low > 1 / (1 + MARGIN), name
        assert found.high < 1 + MARGIN, name
