"""Does the tool read what is there? Its TTFT and TPOT against a bare loop of each engine's library
alone.

Both sides run in fresh processes, in pairs of which every other one begins with the other side, so
that the machine's moods fall on both. The bare side (`bare_loop.py`, `bare_llama_cpp.py`,
`bare_vllm.py`) shares no code with the package: model, loop and clock are written out there, with
the same shapes, threads and settings, the heap's among them.
They are equivalent when the 90 % interval of the mean log ratio over the pairs lies within 3 % (two
one-sided tests). Medians and minimum times are compared. On a machine whose medians differ by some
10 % between processes (a virtual one with neighbours) ten pairs cannot tell of medians; of minimum
times they can, so there BARE_LOOP_TIMES=minimum asks for these alone. Not in the default run:
`pytest -m slow -s tests/test_bare_loop.py` prints the ratios.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench.analysis.metrics import derive
from bench.analysis.readings import least_times_s
from bench.analysis.stats import geometric_interval
from bench.config.cell import Cell
from bench.engine import sources
from bench.engine.llama_cpp.types import file_type
from bench.meter.host import usable_cpus
from bench.paths import ROOT, interpreter
from tests import fakes
from tests.command_line import bench, environment, results

HERE = Path(__file__).parent
BARE = {
    "transformers": HERE / "bare_loop.py",
    "llama_cpp": HERE / "bare_llama_cpp.py",
    "vllm": HERE / "bare_vllm.py",
}
CASES = [
    ("transformers", "fp32", 1),
    ("transformers", "fp32", 8),
    ("transformers", "nf4", 1),
    ("transformers", "nf4", 8),
    ("llama_cpp", "fp16", 1),
    ("llama_cpp", "gguf_q8_0", 1),
    ("vllm", "fp32", 1),
    ("vllm", "fp32", 8),
]
PAIRS = int(os.environ.get("BARE_LOOP_PAIRS", "10"))
MARGIN = 0.03
# glibc's names of what the tool sets in every measured process (``meter.memory``)
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
TIMES = {"median TTFT": 0, "median TPOT": 1, "minimum TTFT": 2, "minimum TPOT": 3}
PROMPT_TOKENS, NEW_TOKENS, WARMUPS, REPEATS = 32, 16, 4, 10


def bare(cell: Cell, tmp_path: Path) -> list[float]:
    """What the engine's library does by itself."""
    folder = sources.cached(cell.model)
    weights, tokenizer, python = [str(folder)], [], interpreter(cell.engine.python)
    if cell.engine.name == "llama_cpp":
        file = Path(str(folder))
        weights = [str(file.with_name(f"{file.name}-{file_type(cell.quant)}.gguf"))]
        tokenizer = [str(folder)]
    text = ROOT / "bench" / "data" / "text" / "prose.txt"
    shapes = [cell.batch, usable_cpus(), PROMPT_TOKENS, NEW_TOKENS, WARMUPS, REPEATS]
    command = [python or sys.executable, str(BARE[cell.engine.name]), *weights, str(text)]
    done = subprocess.run(
        [*command, cell.quant.name, *map(str, shapes), *tokenizer],
        capture_output=True,
        text=True,
        check=True,
        env=environment(tmp_path, **HEAP),
    )
    times_s: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times_s


def ours(cell: Cell, place: Path) -> list[float]:
    place.mkdir()
    shapes = [f"workload.prompt_tokens={PROMPT_TOKENS}", f"workload.new_tokens={NEW_TOKENS}"]
    care = ["measure=standard", "measure.passes=1", "resume=false", "quality=none", "tracking=none"]
    # As many requests as the loop makes, and not fewer, however slow the machine is
    care += ["measure.target=null", "measure.budget_s=null"]
    # Measure.repeats=10 halves the half hour that all of it takes
    care += os.environ.get("BARE_LOOP_CARE", "").split()
    names = [f"engine={cell.engine.name}", f"quant={cell.quant.name}", f"batch={cell.batch}"]
    done = bench(place, *names, *shapes, *care)
    assert done.returncode == 0, done.stderr
    (result,) = results(place)
    metrics, least = derive(result), least_times_s(result.measurements, REPEATS)
    return [metrics["ttft_s"], metrics["tpot_s"], *least["ttft_s"], *least["tpot_s"]]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("engine", "quant", "batch"), CASES)
def test_the_tool_reads_what_a_bare_loop_reads(
    tmp_path: Path, engine: str, quant: str, batch: int
) -> None:
    cell = fakes.cell(engine=engine, quant=quant, batch=batch)
    if cell.engine.python is not None and not Path(str(interpreter(cell.engine.python))).is_file():
        pytest.skip(f"make engine-{engine} has not been run")
    sources.fetch(cell.model)
    pairs = []
    for i in range(PAIRS):
        if i % 2:
            loop = bare(cell, tmp_path)
            tool = ours(cell, tmp_path / str(i))
        else:
            tool = ours(cell, tmp_path / str(i))
            loop = bare(cell, tmp_path)
        pairs.append((tool, loop))
    intervals = {}
    for name, index in TIMES.items():
        ratios = [tool[index] / loop[index] for tool, loop in pairs]
        intervals[name] = geometric_interval(ratios, 0.90)
        tool_s, loop_s = (
            statistics.median(side[index] for side in sides) for sides in zip(*pairs, strict=True)
        )
        print(
            f"\n{engine} {quant} batch {batch} {name}: tool {tool_s * 1e3:.2f} ms, bare"
            f" {loop_s * 1e3:.2f} ms"
        )
        print(f"ratio of medians {tool_s / loop_s:.3f}; {intervals[name]}")
        print(f"of each pair {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    judged = os.environ.get("BARE_LOOP_TIMES", "")
    for name, found in intervals.items():
        if not name.startswith(judged):
            continue
        assert found.low > 1 / (1 + MARGIN), name
        assert found.high < 1 + MARGIN, name
