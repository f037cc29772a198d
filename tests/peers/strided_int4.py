"""Why a study's own 4 bits beat bitsandbytes' nf4, and what unpacking them in Python costs.

    python -m tests.peers.strided_int4

The study (github.com/automatedtomato/llm-inference-mini-lab, Qwen2.5-3B) reports perplexity 9.00 in
fp16, 9.98 in nf4, 9.20 in its own "block 128" and 6645 with one scale a row. Its code lays a row of
weights out as (inputs / 128, 128) and takes smallest and largest along the *first* of these: a row
has 128 groups, of inputs that lie 128 apart, and as many scales and zero points of 16 bits. That is
4 + 4096 / inputs bits a weight, where groups of 128 neighbours have 4.25. Each product unpacks the
whole matrix, by some ten operators of torch.

Written anew here, from that description. Prints

* the bits of the layers of Qwen2.5-3B and Llama-3.2-3B, whose weights are not needed for that;
* of the default model with dithered weights, for each grid: bits, relative error of the weights,
  divergence from itself in fp32 (``quality=samples``) with weights alone quantized, products in
  fp32. Its rows are shorter than Qwen's, so the study's layout is there as it is, and with groups
  as large as Qwen's (16 weights, 86 in down_proj);
* least times of one matrix and one row of inputs, for a matrix of Qwen's MLP.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from torch.nn import functional

from bench.config.cell import Cell
from bench.engine.conversion import layer_matrices
from bench.engine.protocol import ENGINES
from bench.meter.cell import opened
from bench.meter.divergence import evaluate
from bench.meter.host import usable_cpus
from bench.meter.reference import keep_reference
from tests import fakes

PLACE = ENGINES["transformers"]
LEVELS = 15  # steps of 4 bits
SCALE_AND_ZERO = 32  # bits, as the study keeps them
SHORT_ZERO = 20  # bits, with a zero point in 4
TIMED_S = 3.0


@dataclass(frozen=True, slots=True)
class Grid:
    """A way to round a matrix (outputs, inputs), and what it stores for one row."""

    rounded: Callable[[torch.Tensor], torch.Tensor]
    row_bits: Callable[[int], float]  # of a row of so many inputs


def affine(groups: torch.Tensor, dim: int) -> torch.Tensor:
    """Each group along ``dim`` on 16 values from its smallest to its largest, with a scale in fp16
    and a whole number as zero point."""
    low, high = groups.aminmax(dim=dim, keepdim=True)
    scale = ((high - low).clamp(min=1e-5) / LEVELS).half().float()
    zero = (-low / scale).round().clamp(0, LEVELS)
    return ((groups / scale + zero).round().clamp(0, LEVELS) - zero) * scale


def strided(count: int) -> Grid:
    """``count`` groups a row, of inputs that lie ``count`` apart; filled up where the row does not
    come out even, which the study's code refuses."""

    def rounded(matrix: torch.Tensor) -> torch.Tensor:
        outputs, inputs = matrix.shape
        filled = functional.pad(matrix[None], (0, -inputs % count), "replicate")
        return affine(filled.view(outputs, -1, count), 1).view(outputs, -1)[:, :inputs]

    return Grid(rounded, lambda inputs: 4 * inputs + SCALE_AND_ZERO * count)


def neighbours(size: int | None, group_bits: int = SHORT_ZERO) -> Grid:
    """Groups of ``size`` inputs beside each other, the last one shorter where the row does not come
    out even; None: the whole row."""

    def rounded(matrix: torch.Tensor) -> torch.Tensor:
        return torch.cat([affine(g, 1) for g in matrix.split(size or matrix.shape[1], 1)], 1)

    return Grid(
        rounded, lambda inputs: 4 * inputs + group_bits * math.ceil(inputs / (size or inputs))
    )


def normal_float(is_double: bool) -> Grid:
    """bitsandbytes' nf4 with its blocks of 64, and with scales quantized again in blocks of 256."""

    def rounded(matrix: torch.Tensor) -> torch.Tensor:
        packed, state = bnb.quantize_4bit(
            matrix.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=is_double
        )
        whole: torch.Tensor = bnb.dequantize_4bit(packed, state)
        return whole

    scale_bits = 8 + 32 / 256 if is_double else 32
    return Grid(rounded, lambda inputs: (4 + scale_bits / 64) * inputs)


def by_inputs(grids: Mapping[int, Grid]) -> Grid:
    """Another grid for rows of another length."""
    return Grid(
        lambda matrix: grids[matrix.shape[1]].rounded(matrix),
        lambda inputs: grids[inputs].row_bits(inputs),
    )


# Rows of 576 and 1,536 inputs in 36 and 18 groups: 16 and 85.3 weights each, as Qwen's have
QWEN_GROUPS = {576: 36, 1536: 18}
GRIDS = {
    "one scale a row (the study's collapse)": neighbours(None, SCALE_AND_ZERO),
    "strided, 128 a row (the study's code)": strided(128),
    "strided, groups as large as Qwen's": by_inputs(
        {n: strided(c) for n, c in QWEN_GROUPS.items()}
    ),
    "neighbours, groups as large as Qwen's": by_inputs(
        {n: neighbours(math.ceil(n / c), SCALE_AND_ZERO) for n, c in QWEN_GROUPS.items()}
    ),
    "neighbours, 128": neighbours(128),
    "neighbours, 64": neighbours(64),
    "neighbours, 32": neighbours(32),
    "neighbours, 16": neighbours(16),
    "nf4": normal_float(False),
    "nf4_double": normal_float(True),
}


def matrix_shapes(model: str) -> list[tuple[int, int]]:
    """Outputs and inputs of the linear layers of one of the model's layers."""
    of = fakes.group("model", model)["architecture"]
    hidden, wide = of["hidden_size"], of["intermediate_size"]
    keys = of["num_key_value_heads"] * hidden // of["num_attention_heads"]
    return [(hidden, hidden)] * 2 + [(keys, hidden)] * 2 + [(wide, hidden)] * 2 + [(hidden, wide)]


def bits(grid: Grid, shapes: list[tuple[int, int]]) -> float:
    """A weight, in the mean over all matrices."""
    stored = sum(outputs * grid.row_bits(inputs) for outputs, inputs in shapes)
    return stored / sum(outputs * inputs for outputs, inputs in shapes)


def print_bits() -> None:
    names = ("strided, 128 a row (the study's code)", "neighbours, 128", "nf4", "nf4_double")
    for model in ("qwen2.5-3b", "llama-3.2-3b"):
        shapes = matrix_shapes(model)
        print(f"{model}: " + ", ".join(f"{n} {bits(GRIDS[n], shapes):.3f} bits" for n in names))


def print_quality(cell: Cell, file: Path) -> None:
    keep_reference(_quiet, PLACE, cell, cell.quant, str(file))
    session = opened(_quiet, PLACE, cell)
    matrices = dict(layer_matrices(session.model))  # type: ignore[attr-defined]
    kept = {name: matrix.clone() for name, matrix in matrices.items()}
    shapes = [(matrix.shape[0], matrix.shape[1]) for matrix in kept.values()]
    print("grid | bits | relative error of the weights | KL nat | top-1 %")
    for name, grid in GRIDS.items():
        wrong = whole = 0.0
        for place, matrix in kept.items():
            matrices[place].copy_(grid.rounded(matrix))
            wrong += float((matrices[place] - matrix).square().sum())
            whole += float(matrix.square().sum())
        found = evaluate(session, file)
        assert found is not None
        kl = sum(window.kl_nats for window in found.windows) / len(found.windows)
        same = sum(window.top1_agreement for window in found.windows) / len(found.windows)
        error = math.sqrt(wrong / whole)
        print(f"{name} | {bits(grid, shapes):.3f} | {error:.4f} | {kl:.4f} | {100 * same:.1f}")


def unpacked(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """A matrix (outputs, inputs) out of bytes (outputs, inputs / 2), whose high half is the input
    with the even number; scale and zero: (outputs, 1, groups)."""
    outputs, groups = packed.shape[0], scale.shape[2]
    halves = torch.stack(((packed >> 4) & 15, packed & 15), dim=-1)
    rows = halves.view(outputs, -1, groups).to(dtype)
    return ((rows - zero.to(dtype)) * scale.to(dtype)).view(outputs, -1)


def least_s(product: Callable[[], torch.Tensor]) -> float:
    """Of as many calls as fit in a few seconds, after one that is not timed."""
    product()
    times: list[float] = []
    while sum(times) < TIMED_S:
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return min(times)


def print_times(dtype: torch.dtype) -> None:
    outputs, inputs = 11008, 2048
    packed = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8)
    scale, zero = torch.rand(2, outputs, 1, 128).half()
    row, matrix = torch.randn(1, inputs, dtype=dtype), unpacked(packed, scale, zero, dtype)
    plain = least_s(lambda: functional.linear(row, matrix))
    beside = least_s(lambda: functional.linear(row, unpacked(packed, scale, zero, dtype)))
    print(
        f"{outputs} x {inputs}, one row, {dtype}: F.linear {1e3 * plain:.2f} ms, unpacked in Python"
        f" first {1e3 * beside:.1f} ms, {beside / plain:.0f} times"
    )


def _quiet(phase: str, detail: str = "") -> None: ...


def main() -> None:
    print_bits()
    model = fakes.group("model", "smollm2-135m", weights="dithered")
    quality = fakes.group("quality", "samples", prompts=None)
    cell = fakes.cell(model=model, quant="fp32", quality=quality, threads=usable_cpus())
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            print_times(dtype)
        with tempfile.TemporaryDirectory() as folder:
            print_quality(cell, Path(folder) / "reference.safetensors")


if __name__ == "__main__":
    main()
