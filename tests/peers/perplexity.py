"""Is our perplexity right? smollm2-135m in fp32 against llama.cpp, which reads the very GGUF that
our weights come from.

Both read the same token ids in the same windows (``quality=samples``) and score the same positions:
no tokenizer and no choice of windows is compared, only what becomes of weights and ids.
llama-cpp-python lives in an environment of its own, the one of ``engine=llama_cpp``:

    make engine-llama_cpp
    python -m tests.peers.perplexity .engines/llama_cpp/bin/python

The peer reads two files. From the published one, in Q4_1, it multiplies with activations rounded to
8 bits, which our fp32 does not. From the one that llama.cpp itself makes of it in F32 (the same
values, unpacked by code that is not ours), it computes as we do: this one is the judge. Prints
perplexities and their ratios to ours; exits 1 when the judge's differs from ours by more than 0.5
%.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bench.config.cell import Cell
from bench.engine import sources
from bench.engine.protocol import ENGINES
from bench.meter.cell import opened
from bench.meter.divergence import evaluate
from bench.meter.host import usable_cpus
from bench.meter.reference import keep_reference
from tests import fakes

TOLERANCE = 0.005
JUDGE = "llama.cpp, F32"

# Runs in the peer's environment, which has nothing of ours. The cache of keys and values is in F32
# too: its default, F16, would be a rounding that we do not have. Extra buffers are weights repacked
# for the CPU, which Llama has no argument for: on a CPU with AMX the code that they lead to dies of
# SIGSEGV where gcc 12 compiled it (ggml-org/llama.cpp#26954).
_PEER = """
import ctypes, json, sys
import llama_cpp, numpy as np

asked = json.load(sys.stdin)
if asked["unpack_from"]:
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize, how.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, asked["threads"]
    names = asked["unpack_from"].encode(), asked["file"].encode()
    if llama_cpp.llama_model_quantize(*names, ctypes.byref(how)) != 0:
        sys.exit("llama.cpp could not unpack " + asked["unpack_from"])
low = llama_cpp.llama_cpp
defaults = low.llama_model_default_params
def without_extra_buffers():
    parameters = defaults()
    parameters.use_extra_bufts = False
    return parameters
low.llama_model_default_params = without_extra_buffers
length, threads = len(asked["windows"][0]), asked["threads"]
model = llama_cpp.Llama(
    asked["file"], n_ctx=length, n_batch=length, n_ubatch=length, n_threads=threads, n_threads_batch=threads,
    logits_all=True, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False, n_gpu_layers=0,
    verbose=False,
)
nll_nats = []
for window in asked["windows"]:
    model.reset()
    model.eval(window)
    logits = model.scores[: length - 1].astype(np.float64)
    top = logits.max(axis=1)
    normalizer = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    nll_nats.append(float((normalizer - logits[np.arange(length - 1), window[1:]]).mean()))
print(json.dumps({"version": llama_cpp.__version__, "nll_nats": nll_nats}))
"""


def ours(cell: Cell, place: Path) -> tuple[list[list[int]], list[float]]:
    """The windows' token ids, and the mean NLL of each, by the functions that a sweep calls."""
    file = place / "reference.safetensors"
    # The noise floor is not asked for: the same type again is the cheapest
    keep_reference(_quiet, ENGINES["transformers"], cell, cell.quant, str(file))
    found = evaluate(opened(_quiet, ENGINES["transformers"], cell), file)
    assert found is not None
    with safe_open(file, framework="numpy") as stored:
        ids = stored.get_tensor("ids").tolist()
    print(
        f"{len(ids)} windows of {len(ids[0])} tokens,"
        f" {sum(window.tokens for window in found.windows)} of them scored"
    )
    return ids, [window.nll_nats for window in found.windows]


def theirs(
    python: str, file: Path, unpack_from: Path | None, windows: Sequence[Sequence[int]]
) -> tuple[str, list[float]]:
    """The peer's version, and the mean NLL of each window."""
    origin = None if unpack_from is None else str(unpack_from)
    asked = json.dumps(
        {"file": str(file), "unpack_from": origin, "windows": windows, "threads": usable_cpus()}
    )
    done = subprocess.run(
        [python, "-c", _PEER], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"the peer ended with {done.returncode}:\n{done.stderr}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return str(said["version"]), list(said["nll_nats"])


def perplexity(nll_nats: Sequence[float]) -> float:
    """Of windows that are equally long."""
    return math.exp(math.fsum(nll_nats) / len(nll_nats))


def _quiet(phase: str, detail: str = "") -> None: ...


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.peers.perplexity PEER/bin/python")
    python = sys.argv[1]
    quality = fakes.group("quality", "samples", prompts=None)  # answers are not asked for
    cell = fakes.cell(quant="fp32", quality=quality, threads=usable_cpus())
    assert cell.model.package is not None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        windows, here = ours(cell, place)
        published = sources.original(cell.model)
        version, packed = theirs(python, published, None, windows)
        _, unpacked = theirs(python, place / "f32.gguf", published, windows)
    print(f"this tool, fp32: perplexity {perplexity(here):.4f}")
    ratios = {}
    for name, there in {"llama.cpp, Q4_1": packed, JUDGE: unpacked}.items():
        ratios[name] = perplexity(there) / perplexity(here)
        apart = max(abs(a - b) for a, b in zip(here, there, strict=True))
        print(
            f"{name}: perplexity {perplexity(there):.4f}, {ratios[name]:.6f} times ours; one window"
            f" by {apart:.6f} nats"
        )
    print(f"llama-cpp-python {version}")
    if abs(ratios[JUDGE] - 1) > TOLERANCE:
        sys.exit(f"{JUDGE}, and ours differ by more than {TOLERANCE:.1%}")


if __name__ == "__main__":
    main()
