"""Triton's kernels of our own weights, without a GPU: what they compute, under its interpreter, and
what they are compiled to for each chip. tests/gpu/test_own_kernels.py runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.engine.transformers import ENGINE
from bench.engine.transformers.schemes import torch_dtype
from bench.paths import ROOT
from tests import fakes
from tests.engine.own_products import MOST, Product, as_json

pytest.importorskip("triton", reason="needs triton, which requirements.lock has")

FORMATS = (None, 0, 32, 64, 128)  # int8, and 4 bits by group size
# What a program may have. Source: CUDA C++ programming guide 13, table of compute capabilities
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async)\b")
# Of each model's matrices so many outputs: the kernels' loops are over inputs
SLICE = 24


def interpreted(products: list[Product]) -> list[float]:
    """Their errors, from a process in which nothing has imported Triton yet."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.own_products"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        input=as_json(products),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    errors: list[float] = json.loads(done.stdout)
    return errors


def wrong(products: list[Product]) -> list[tuple[Product, float]]:
    pairs = zip(products, interpreted(products), strict=True)
    return [(product, error) for product, error in pairs if not error <= MOST[product.dtype]]


_ODD = [(1, 5, 7), (1, 21, 200), (3, 37, 100), (9, 35, 200), (40, 67, 200)]
QUICK = {
    # Rows for each kind of tile; a short last group and a block that is padded
    "odd sizes": [
        Product(*size, group, dtype, input_scale=bool(index % 2), bias=bool(group))
        for index, size in enumerate(
            [(1, 5, 7), (1, 21, 200), (3, 37, 100), (9, 35, 200), (40, 67, 200)]
        )
        for group, dtype in zip(FORMATS, ("bf16", "fp32", "bf16", "fp16", "fp32"), strict=True)
    ],
    # Few outputs and long rows: several programs for one output, each of 8 steps and more
    "split inputs": [
        Product(rows, 8, inputs, group, "fp32", bias=True)
        for rows, inputs, group in ((2, 2150, 32), (2, 2150, 128), (1, 8200, 64), (1, 8200, None))
    ],
    "the default model's inputs": [
        Product(rows, 16, inputs, group, "bf16")
        for rows, group in ((1, 64), (8, 128), (40, None))
        for inputs in (576, 1536)
    ],
}


@pytest.fixture(scope="module")
def quick_errors() -> dict[Product, float]:
    products = [product for some in QUICK.values() for product in some]
    return dict(zip(products, interpreted(products), strict=True))


@pytest.mark.parametrize("kind", QUICK)
def test_products_are_right(kind: str, quick_errors: dict[Product, float]) -> None:
    errors = {product: quick_errors[product] for product in QUICK[kind]}
    assert {p: error for p, error in errors.items() if not error <= MOST[p.dtype]} == {}


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "conf/model").glob("*.yaml")), ids=lambda f: f.stem)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_products_of_a_models_sizes_are_right(file: Path, dtype: str) -> None:
    model = fakes.group("model", file.stem, weights="random")
    described = ENGINE.describe(fakes.resolved(model=model))
    assert described is not None
    sizes = {(min(matrix.outputs, SLICE), matrix.inputs) for matrix in described.matrices}
    products = [
        Product(rows, *size, group, dtype, input_scale=rows == 8)
        for size in sorted(sizes)
        for group in FORMATS
        for rows in (1, 8, 40)
    ]
    assert wrong(products) == []


@pytest.mark.slow
def test_products_of_all_numbers_of_rows_are_right() -> None:
    products = [
        Product(rows, 130, 100, group, dtype, input_scale=rows % 2 == 0, bias=rows % 3 == 0)
        for rows in range(1, 41)
        for group in FORMATS
        for dtype in MOST
    ]
    assert wrong(products) == []


def compiled(chip: int, dtype: str, group: int | None, tile: Any) -> Any:
    """A kernel for a chip that is not here, for sizes that 16 divides, as those of most models.
    With scaled inputs and a bias where ``dtype`` is not bf16."""
    import triton
    from triton.backends.compiler import GPUTarget

    from bench.engine.transformers.own import triton_kernels

    kernel = triton_kernels.matvec if tile.rows == 1 else triton_kernels.matmul
    names = kernel.arg_names
    bits = 8 if group is None else 4
    constants = triton_kernels.constants(torch_dtype(dtype), group or 0, bits, tile)
    options = {name: constants.pop(name) for name in tuple(constants) if name not in names}
    constants |= {"zero": None} if group is None else {}
    constants |= {"input_scale": None, "bias": None} if dtype == "bf16" else {}
    weight, scale = ("*i8", "*fp32") if group is None else ("*u8", "*fp16")
    types = {"weight": weight, "scale": scale, "zero": "*u8", "input_scale": "*fp16"}
    types |= dict.fromkeys(("x", "bias", "out"), f"*{dtype}")
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    aligned = {*types, "outputs", "inputs"} - constants.keys()
    source = triton.compiler.ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)


def spills_in_loops(cubin: bytes, folder: Path) -> list[str]:
    """Instructions that keep registers in memory, where they run again and again. Outside, the
    compiler puts a few away so that another program fits beside."""
    from triton import knobs

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    labels = {line.strip()[:-1]: number for number, line in enumerate(lines) if line[:2] == ".L"}
    branches = [(re.search(r"BRA.*`\((\S+)\)", line), n) for n, line in enumerate(lines)]
    loops = [lines[labels[to[1]] : n] for to, n in branches if to and labels[to[1]] < n]
    assert loops, "a kernel without a loop"
    return [line for loop in loops for line in loop if re.search(r"\b(STL|LDL)\b", line)]


@pytest.fixture
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(chip: int, dtype: str, group: int | None, tile: Any, folder: Path) -> None:
    kernel = compiled(chip, dtype, group, tile)
    has_tensor_cores = tile.rows > 1 and dtype != "fp32"
    assert bool(TENSOR_CORES.search(kernel.asm["ptx"])) == has_tensor_cores, tile
    spilled = spills_in_loops(kernel.asm["cubin"], folder)
    # Two groups in a block take more registers: one that no step changes is read again each time
    assert len(spilled) <= (group == 32), tile
    assert not [line for line in spilled if "STL" in line], tile
    assert kernel.metadata.shared <= SHARED_BYTES[chip], tile


@pytest.mark.usefixtures("_no_cache")
@pytest.mark.parametrize(
    ("chip", "dtype", "group", "rows"),
    [(80, "bf16", 64, 1), (80, "bf16", 128, 512), (89, "fp16", 128, 512), (90, "bf16", None, 512)],
)
def test_a_kernel_compiles_for_a_chip_to_tensor_cores_and_without_spills(
    chip: int, dtype: str, group: int | None, rows: int, tmp_path: Path
) -> None:
    from bench.engine.transformers.own.triton_kernels import tile_of, tiles_of

    check(chip, dtype, group, tile_of(rows, tiles_of(chip, torch_dtype(dtype))), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_cache")
@pytest.mark.parametrize("chip", SHARED_BYTES)
@pytest.mark.parametrize("group", FORMATS)
def test_all_kernels_compile_for_all_chips(chip: int, group: int | None, tmp_path: Path) -> None:
    from bench.engine.transformers.own.triton_kernels import tiles_of

    for dtype in MOST:
        for tile in tiles_of(chip, torch_dtype(dtype)):
            check(chip, dtype, group, tile, tmp_path)


def test_the_tile_holds_the_rows_and_a_chip_between_takes_the_one_below() -> None:
    from bench.engine.transformers.own.triton_kernels import TILES, tile_of, tiles_of

    tiles = tiles_of(90, torch.bfloat16)
    assert [tile_of(rows, tiles).rows for rows in (1, 2, 8, 9, 40, 64, 65, 999)] == [
        1, 8, 8, 16, 64, 64, 128, 128
    ]  # fmt: skip
    assert [tiles_of(chip, torch.bfloat16) for chip in (86, 100, 121)] == [
        TILES[80], TILES[90], TILES[120]
    ]  # fmt: skip
    assert tile_of(999, tiles_of(90, torch.float32)).rows == 32


def test_a_product_is_split_until_each_processor_has_four_programs() -> None:
    from bench.engine.transformers.own.triton_kernels import splits_of

    assert splits_of(programs=528, steps=100, processors=132) == 1
    assert splits_of(programs=128, steps=100, processors=132) == 4
    assert splits_of(programs=1, steps=20, processors=132) == 2  # of 8 steps at least
    assert splits_of(programs=1, steps=3, processors=132) == 1
