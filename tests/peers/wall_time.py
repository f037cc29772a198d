"""How long the same nine cells take: this tool, a bare loop in a process for each cell,
optimum-benchmark 0.6.0.

The headline grid with 32 + 16 tokens, 1 warm-up and 3 repeats, samples off. The peer lives in an
environment of its own, because it needs transformers < 5, and runs its ``process`` launcher:

    python -m venv PEER PEER/bin/pip install torch==2.13.0 "transformers<5" bitsandbytes==0.50.2
    accelerate optimum-benchmark==0.6.0 python -m tests.peers.wall_time PEER/bin

Without an argument only the first two run. Prints seconds and, of the peer, what it reads.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.engine import sources
from bench.meter.host import usable_cpus
from bench.paths import ROOT
from tests import fakes

QUANTS, BATCHES = ("fp16", "int8", "nf4"), (1, 8, 32)
PROMPT_TOKENS, NEW_TOKENS, WARMUPS, REPEATS = 32, 16, 1, 3

_GRID = """
defaults: [benchmark, scenario: inference, launcher: process, backend: pytorch, quant: fp16, _self_]
name: peer
scenario:
  iterations: {repeats}
  duration: 0
  warmup_runs: {warmups}
  input_shapes: {{batch_size: 1, sequence_length: {prompt_tokens}}}
  generate_kwargs: {{max_new_tokens: {new_tokens}, min_new_tokens: {new_tokens}}}
backend: {{device: cpu, model: {folder}, attn_implementation: sdpa, task: text-generation, library: transformers}}
hydra:
  sweep: {{dir: {place}/runs, subdir: "${{hydra.job.override_dirname}}"}}
  job: {{chdir: true}}
"""
_QUANT = {
    "fp16": "torch_dtype: float16",
    "int8": (
        "torch_dtype: bfloat16\n  quantization_scheme: bnb\n  quantization_config: {load_in_8bit:"
        " true, llm_int8_threshold: 6.0}"
    ),
    "nf4": (
        "torch_dtype: bfloat16\n  quantization_scheme: bnb\n  quantization_config: {load_in_4bit:"
        " true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: bfloat16}"
    ),
}


def ours(folder: Path, place: Path) -> None:
    shapes = [f"workload.prompt_tokens={PROMPT_TOKENS}", f"workload.new_tokens={NEW_TOKENS}"]
    care = [
        f"measure.warmups={WARMUPS}",
        f"measure.repeats={REPEATS}",
        "measure.target=null",
        "measure.budget_s=null",
    ]
    grid = [f"quant={','.join(QUANTS)}", f"batch={','.join(map(str, BATCHES))}"]
    command = [
        sys.executable,
        "-m",
        "bench",
        "-m",
        *grid,
        *shapes,
        *care,
        "quality=none",
        f"output_dir={place}",
    ]
    subprocess.run(command, check=True, cwd=ROOT)


def bare(folder: Path, place: Path) -> None:
    text = ROOT / "bench" / "data" / "text" / "prose.txt"
    counts = [usable_cpus(), PROMPT_TOKENS, NEW_TOKENS, WARMUPS, REPEATS]
    for quant in QUANTS:
        for batch in BATCHES:
            arguments = [folder, text, quant, batch, *counts]
            script = ROOT / "tests" / "bare_loop.py"
            subprocess.run(
                [sys.executable, str(script), *map(str, arguments)], check=True, cwd=place
            )


def peer(binaries: Path, folder: Path, place: Path) -> None:
    (place / "quant").mkdir()
    for name, text in _QUANT.items():
        (place / "quant" / f"{name}.yaml").write_text(f"# @package _global_\nbackend:\n  {text}\n")
    counts = {
        "repeats": REPEATS,
        "warmups": WARMUPS,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
    }
    (place / "grid.yaml").write_text(_GRID.format(**counts, folder=folder, place=place))
    grid = [
        f"quant={','.join(QUANTS)}",
        f"scenario.input_shapes.batch_size={','.join(map(str, BATCHES))}",
    ]
    command = [
        str(binaries / "optimum-benchmark"),
        "--config-dir",
        str(place),
        "--config-name",
        "grid",
        "-m",
        *grid,
    ]
    subprocess.run(command, check=True, cwd=place, env={**os.environ, "OVERRIDE_BENCHMARKS": "1"})


def main() -> None:
    folder = sources.fetch(fakes.cell().model)
    assert folder is not None
    sides = {"bare loop": bare, "this tool": ours}
    if len(sys.argv) > 1:
        binaries = Path(sys.argv[1]).absolute()
        sides["optimum-benchmark"] = lambda folder, place: peer(binaries, folder, place)
    took_s = {}
    for name, run in sides.items():
        with tempfile.TemporaryDirectory() as place:
            started = time.perf_counter()
            run(folder, Path(place))
            took_s[name] = time.perf_counter() - started
    for name, seconds in took_s.items():
        print(f"{name}: {seconds:.0f} s, {seconds / took_s['bare loop']:.2f} times the bare loop")


if __name__ == "__main__":
    main()
