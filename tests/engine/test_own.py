"""Quantization of our own: grids, kernels against plain torch, calibration, and packed folders."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.config.cell import Cell, LayerQuant, Quant
from bench.engine.protocol import ENGINES, engine_at
from bench.engine.transformers.assignment import assigned, fits
from bench.engine.transformers.load import load
from bench.engine.transformers.own import build, ops
from bench.engine.transformers.own.calibration import calibrated
from bench.engine.transformers.own.export import export_cell
from bench.engine.transformers.own.grids import (
    Int4Matrix,
    dequantize_int4,
    dequantize_int8,
    int4_bytes,
    int8_bytes,
    padded,
    quantize_int4,
    quantize_int8,
    unpacked_int4,
)
from bench.engine.transformers.own.layers import Int4Linear, Int8Linear
from bench.errors import CellFailure, ConfigError
from bench.paths import CALIBRATION_TEXT, ROOT, TEXTS
from tests import fakes

ENGINE: Any = engine_at(ENGINES["transformers"])
# outputs, inputs: whole blocks, short groups, less than a block, odd numbers
SHAPES = [(16, 64), (33, 576), (7, 100), (5, 130), (18, 1536), (1, 1)]


def weights(outputs: int, inputs: int) -> Tensor:
    torch.manual_seed(outputs * 10_000 + inputs)
    return torch.randn(outputs, inputs) * 0.02


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
def test_four_bits_are_the_nearest_of_their_grid(
    outputs: int, inputs: int, group_size: int | None
) -> None:
    size = group_size or padded(inputs)
    weight = weights(outputs, inputs)
    matrix = quantize_int4(weight, size)
    step, zero = (
        each.float().repeat_interleave(size, 1)[:, :inputs, None]
        for each in (matrix.scale, unpacked_int4(matrix, inputs)[1])
    )
    grid = (torch.arange(16) - zero) * step
    least = (grid - weight[..., None]).abs().amin(-1)
    assert torch.allclose((dequantize_int4(matrix, inputs) - weight).abs(), least, atol=1e-7)
    assert (least <= 1.001 * step[..., 0] + 1e-7).all()  # half for the zero point's own rounding
    stored = (matrix.weight, matrix.scale, matrix.zero)
    assert sum(tensor.nbytes for tensor in stored) == int4_bytes(outputs, inputs, size)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_byte_is_the_nearest_of_its_row(outputs: int, inputs: int) -> None:
    weight = weights(outputs, inputs)
    matrix = quantize_int8(weight)
    step = matrix.scale[:, None]
    assert ((dequantize_int8(matrix, inputs) - weight).abs() <= 0.501 * step + 1e-9).all()
    assert matrix.weight.nbytes + matrix.scale.nbytes == int8_bytes(outputs, inputs)


def test_four_bits_lie_as_the_layout_says() -> None:
    """By hand: input i of a block in the low nibble of byte i, input i + 32 in its high one."""
    q = torch.arange(64)[None] % 16
    matrix = quantize_int4(q.float() * 0.5, 64)
    assert matrix.scale.tolist() == [[0.5]]
    assert matrix.weight[0, :3].tolist() == [0 | 0 << 4, 1 | 1 << 4, 2 | 2 << 4]
    shifted = quantize_int4((q.float() - 3) * 0.5, 64)
    assert shifted.zero.tolist() == [[3]]
    three = quantize_int4(torch.cat([q.float(), q.float() - 1, q.float() - 2], 1), 64)
    assert three.zero.tolist() == [[0 | 1 << 4, 2]]
    far = torch.zeros(1, 64)
    far[0, 5], far[0, 37] = 15.0, 1.0
    assert quantize_int4(far, 64).weight[0, 5] == 15 | 1 << 4


def test_rows_of_zeros_stay_zeros() -> None:
    zeros = torch.zeros(2, 70)
    assert not dequantize_int4(quantize_int4(zeros, 32), 70).any()
    assert not dequantize_int8(quantize_int8(zeros), 70).any()


# ---- Kernels


def products(
    weight: Tensor, group_size: int, x: Tensor, extras: bool, int8_activations: bool
) -> list[tuple[Tensor, Tensor]]:
    """Ours and plain torch's, with 4 bits and with 8."""
    outputs, inputs = weight.shape
    scale = (torch.rand(inputs) + 0.5).half() if extras else None
    bias = torch.randn(outputs).to(x.dtype) if extras else None
    four, eight = quantize_int4(weight, group_size), quantize_int8(weight)
    given = (scale, bias)
    tail = (*given, four.group_size, int8_activations)
    return [
        (
            ops.int4_linear(x, four.weight, four.scale, four.zero, *tail),
            ops.portable_int4(x, four.weight, four.scale, four.zero, *tail),
        ),
        (
            ops.int8_linear(x, eight.weight, eight.scale, *given, int8_activations),
            ops.portable_int8(x, eight.weight, eight.scale, *given, int8_activations),
        ),
    ]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-9))


# Rounding of the results, and of sums in another order
BOUNDS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels out of the user's cache, where they are kept; what tests pack goes elsewhere."""
    if build.obstacle() is None:
        build.kernels()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


needs_kernels = pytest.mark.skipif(build.obstacle() is not None, reason=str(build.obstacle()))


@needs_kernels
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("int8_activations", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_kernels_compute_what_plain_torch_does(
    dtype: torch.dtype, int8_activations: bool, outputs: int, inputs: int
) -> None:
    weight = weights(outputs, inputs)
    for group_size in (32, 64, 128, padded(inputs)):
        for rows in (1, 2, 8, 19):
            x = torch.randn(rows, inputs).to(dtype)
            for extras in (False, True):
                for ours, theirs in products(weight, group_size, x, extras, int8_activations):
                    assert ours.dtype == dtype
                    assert relative_error(ours, theirs) < BOUNDS[dtype]


@needs_kernels
def test_batches_and_strides_do_not_matter() -> None:
    weight = weights(24, 128)
    x = torch.randn(3, 5, 256)[..., ::2]
    for ours, theirs in products(weight, 64, x, True, True):
        assert ours.shape == (3, 5, 24)
        assert relative_error(ours, theirs) < BOUNDS[torch.float32]


@needs_kernels
def test_infinite_inputs_do_not_become_numbers() -> None:
    matrix = quantize_int4(weights(16, 64), 64)
    x = torch.full((1, 64), torch.inf)
    args = (matrix.weight, matrix.scale, matrix.zero, None, None, 64)
    assert not torch.isfinite(ops.int4_linear(x, *args, False)).all()
    assert not torch.isfinite(ops.int4_linear(x, *args, True)).all()


@needs_kernels
def test_a_compiled_graph_can_hold_the_operators() -> None:
    layer = Int4Linear(quantize_int4(weights(24, 128), 64), 128, None, True)
    x = torch.randn(2, 128)
    graph = torch.export.export(layer, (x,)).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["bench.int4_linear.default"]


# What SIMDe 0.7.4 lacks is written out
EMULATION = """
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
static inline simde__m512 converted(simde__m512i a) {
  simde__m512i_private from = simde__m512i_to_private(a);
  simde__m512_private to;
  for (int i = 0; i < 16; ++i) to.f32[i] = float(from.i32[i]);
  return simde__m512_from_private(to);
}
static inline simde__m256i some_bytes(uint32_t there, const void* at) {
  simde__m256i_private to;
  for (int i = 0; i < 32; ++i) to.u8[i] = there >> i & 1 ? static_cast<const uint8_t*>(at)[i] : 0;
  return simde__m256i_from_private(to);
}
static inline simde__m256i some_words(uint16_t there, const void* at) {
  simde__m256i_private to;
  for (int i = 0; i < 16; ++i)
    to.u16[i] = there >> i & 1 ? static_cast<const uint16_t*>(at)[i] : 0;
  return simde__m256i_from_private(to);
}
static inline void store_words(void* at, uint16_t there, simde__m256i a) {
  simde__m256i_private from = simde__m256i_to_private(a);
  for (int i = 0; i < 16; ++i)
    if (there >> i & 1) static_cast<uint16_t*>(at)[i] = from.u16[i];
}
static inline simde__m512 some_floats(uint16_t there, const float* at) {
  simde__m512_private to;
  for (int i = 0; i < 16; ++i) to.f32[i] = there >> i & 1 ? at[i] : 0;
  return simde__m512_from_private(to);
}
static inline void store_floats(float* at, uint16_t there, simde__m512 a) {
  simde__m512_private from = simde__m512_to_private(a);
  for (int i = 0; i < 16; ++i)
    if (there >> i & 1) at[i] = from.f32[i];
}
static inline simde__m256i low_words(simde__m512i a) {
  simde__m512i_private from = simde__m512i_to_private(a);
  simde__m256i_private to;
  for (int i = 0; i < 16; ++i) to.u16[i] = uint16_t(from.u32[i]);
  return simde__m256i_from_private(to);
}
static inline simde__m512i wide_words(simde__m256i a) {
  simde__m256i_private from = simde__m256i_to_private(a);
  simde__m512i_private to;
  for (int i = 0; i < 16; ++i) to.u32[i] = from.u16[i];
  return simde__m512i_from_private(to);
}
static inline simde__m512 from_halves(simde__m256i a) {
  simde__m256i_private from = simde__m256i_to_private(a);
  simde__m512_private to;
  for (int i = 0; i < 16; ++i) to.f32[i] = _cvtsh_ss(from.u16[i]);
  return simde__m512_from_private(to);
}
static inline simde__m256i to_halves(simde__m512 a) {
  simde__m512_private from = simde__m512_to_private(a);
  simde__m256i_private to;
  for (int i = 0; i < 16; ++i) to.u16[i] = _cvtss_sh(from.f32[i], 0);
  return simde__m256i_from_private(to);
}
#define _mm256_maskz_loadu_epi8 some_bytes
#define _mm256_maskz_loadu_epi16 some_words
#define _mm256_mask_storeu_epi16 store_words
#define _mm512_maskz_loadu_ps some_floats
#define _mm512_mask_storeu_ps store_floats
#define _mm512_cvtepi32_epi16 low_words
#define _mm512_cvtepu16_epi32 wide_words
#define _mm512_cvtph_ps from_halves
#define _mm512_cvtps_ph(a, mode) to_halves(a)
#define _mm512_cvtepi32_ps converted
"""


def emulated() -> bool:
    return shutil.which("g++") is not None and Path("/usr/include/simde").is_dir()


@pytest.mark.skipif(not emulated(), reason="wants g++ and SIMDe (apt install libsimde-dev)")
def test_instructions_that_this_processor_lacks_compute_the_same(tmp_path: Path) -> None:
    """AVX-512 with VNNI, each instruction emulated by SIMDe."""
    text = build.SOURCE.read_text().replace("#include <immintrin.h>", EMULATION)
    text = re.sub("#define AVX512 .*", "#define AVX512 AVX2", text)
    source, library = tmp_path / "emulated.cpp", tmp_path / "emulated.so"
    source.write_text(text)
    flags = ("-O1", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-w", "-mavx2", "-mfma", "-mf16c")
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    emulation = ctypes.CDLL(str(library)).bench_linear
    emulation.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 4 + [ctypes.c_int32] * 5
    emulation.restype = None
    cases = ((1, 32, torch.float32), (3, 64, torch.float16), (9, 128, torch.bfloat16))
    for outputs, inputs in SHAPES:
        weight = weights(outputs, inputs)
        for rows, size, dtype in (*cases, (2, padded(inputs), torch.float32)):
            x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(outputs).to(dtype)
            four, eight = quantize_int4(weight, size), quantize_int8(weight)
            for matrix, zero in ((four, four.zero), (eight, None)):
                y = torch.empty(rows, outputs, dtype=dtype)
                emulation(
                    x.data_ptr(), y.data_ptr(), None, bias.data_ptr(), matrix.weight.data_ptr(),
                    matrix.scale.data_ptr(), None if zero is None else zero.data_ptr(),
                    rows, inputs, outputs, size, list(BOUNDS).index(dtype), zero is not None,
                    1, 2, 1,
                )  # fmt: skip
                expected = (
                    ops.portable_int4(x, four.weight, four.scale, four.zero, None, bias, size, True)
                    if isinstance(matrix, Int4Matrix)
                    else ops.portable_int8(x, eight.weight, eight.scale, None, bias, True)
                )
                assert relative_error(y, expected) < BOUNDS[dtype]


def test_a_machine_without_a_compiler_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    cell = fakes.resolved(quant="int4_g64")
    outcome = ENGINE.why_not(cell, fakes.host())
    assert outcome.status == "skipped"
    wanted = "quant=int4_g64 needs g++ to compile its kernels, none was found; apt install g++"
    assert outcome.reason == wanted


def test_on_cuda_weights_are_unpacked_and_int8_activations_are_refused() -> None:
    usual = fakes.resolved(quant="int4_g64", device="cuda")
    assert usual.quant.parameters["activations"] == "none"
    assert fakes.resolved(quant="int4_g64").quant.parameters["activations"] == "int8"
    gpu = fakes.host(device="cuda", device_name="some GPU", capability=8.0)
    assert ENGINE.why_not(usual, gpu) is None
    asked = {**usual.quant.parameters, "activations": "int8"}
    outcome = ENGINE.why_not(replace(usual, quant=replace(usual.quant, parameters=asked)), gpu)
    assert outcome.reason.startswith("quant=int4_g64 needs quant.parameters.activations=none")
    old = ENGINE.why_not(usual, replace(gpu, capability=7.5))
    assert old.reason == "quant=int4_g64 needs compute capability 8.0, some GPU has 7.5"
    without = ENGINE.why_not(usual, replace(gpu, triton="a C compiler (gcc or clang)"))
    assert "needs Triton to compile its kernels" in without.reason


def test_a_source_that_does_not_compile_fails_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(build, "SOURCE", broken)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CellFailure, match=r"g\+\+ cannot compile broken.cpp: .*error"):
        build.kernels.__wrapped__()
    assert not list((tmp_path / "cache" / "kernels").glob("*.so"))


def test_the_first_product_loads_the_kernels() -> None:
    done = subprocess.run([sys.executable, "-c", _FIRST], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[2.0, 2.0] [2.0, 2.0]\n"
    assert done.stderr == ""


_FIRST = """
import torch
from bench.engine.transformers.own.grids import quantize_int8
from bench.engine.transformers.own.layers import Int8Linear
layer = Int8Linear(quantize_int8(torch.ones(2, 64)), 64, None, False)
x = torch.full((64,), 2 / 64)
print(layer(x).tolist(), torch.compile(layer, backend="eager")(x).tolist())
"""


def oldest_torch() -> str:
    (asked,) = re.findall(r'"torch>=(\S+?)"', (ROOT / "pyproject.toml").read_text())
    return f"{asked}.0"


@pytest.mark.slow
def test_kernels_compile_against_the_oldest_torch_that_we_take(tmp_path: Path) -> None:
    """Its headers come out of its wheel, which is large and is not installed."""
    wheel = f"torch=={oldest_torch()}"
    platform = ["--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", *platform, "--dest", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "download", *options, wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip cannot have {wheel}: {done.stderr.strip()}")
    (file,) = tmp_path.glob("torch-*.whl")
    with zipfile.ZipFile(file) as archive:
        headers = [name for name in archive.namelist() if name.startswith("torch/include/")]
        archive.extractall(tmp_path, headers)
    where = ["-fsyntax-only", f"-I{tmp_path / 'torch' / 'include'}"]
    command = [str(build.compiler()), *build._FLAGS, *where, str(build.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- Calibration


def quant(name: str, **parameters: Any) -> Quant:
    values = fakes.group("quant", name)
    return Quant(name, values["scheme"], "fp32", values["parameters"] | parameters)


@pytest.mark.parametrize("group_size", [32, 64, 128, "row"])
def test_calibration_makes_a_layer_err_less_on_the_text(group_size: int | str) -> None:
    torch.manual_seed(0)
    outputs, inputs = 48, 200  # the last group and the last block of GPTQ are short
    mixed = torch.randn(2000, inputs) @ torch.randn(inputs, inputs)
    x = mixed * torch.rand(inputs).mul(3).exp()  # some inputs are much larger than others
    layer = nn.Linear(inputs, outputs)
    exact = layer(x)

    def error(quantizer: str) -> float:
        asked = quant("int4_g64", quantizer=quantizer, group_size=group_size, activations="none")
        made = calibrated(layer, asked, x.T @ x)
        return relative_error(made(x), exact)

    errors = {name: error(name) for name in ("nearest", "awq", "gptq", "awq_gptq")}
    assert errors["awq"] <= errors["nearest"]  # it may choose not to scale
    assert errors["gptq"] < 0.9 * errors["nearest"]
    assert errors["awq_gptq"] <= min(errors["awq"], errors["gptq"])


def test_inputs_that_never_move_do_no_harm() -> None:
    x = torch.randn(500, 64)
    x[:, ::2] = 0
    layer = nn.Linear(64, 8)
    for quantizer in ("awq", "gptq", "awq_gptq"):
        made = calibrated(layer, quant("int4_g64", quantizer=quantizer), x.T @ x)
        assert relative_error(made(x), layer(x)) < 0.2


def test_no_quality_profile_reads_the_calibration_text() -> None:
    calibration = CALIBRATION_TEXT.read_text(encoding="utf-8")
    paragraphs = {part.strip() for part in calibration.split("\n\n") if len(part) > 80}
    assert len(paragraphs) > 20
    for name, file in TEXTS.items():
        text = file.read_text(encoding="utf-8")
        assert not [part for part in paragraphs if part in text], name


# ---- Which layer gets what


def test_patterns_of_names() -> None:
    name = "model.layers.29.mlp.down_proj"
    assert fits("model.layers.{0,29}.mlp.down_proj", name)
    assert fits("**.down_proj", name)
    assert fits("model.layers.*.mlp.*", name)
    assert not fits("model.layers.2.mlp.down_proj", name)
    assert not fits("*.down_proj", name)
    assert not fits("down_proj", name)


def with_layers(base: Quant, **named: str) -> Quant:
    layers = {}
    for pattern, name in named.items():
        values = {"scheme": "none"} if name == "none" else fakes.group("quant", name)
        layers[pattern] = LayerQuant(
            name, values["scheme"], parameters=values.get("parameters", {})
        )
    return replace(base, layers=layers)


def tiny(folder: Path, asked: Quant) -> Cell:
    own = {"weights": "pretrained", "tokenizer": "bytes", "path": str(folder)}
    cell = fakes.resolved(model=fakes.group("model", "tiny", **own), quant="fp32")
    return replace(cell, quant=asked)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    load(fakes.cell(model="tiny", quant="fp32"), None).save_pretrained(folder)
    return folder


def test_a_pattern_that_fits_nothing_is_an_error_that_shows_a_name(saved: Path) -> None:
    model = load(tiny(saved, quant("int8_channel")), None)
    asked = with_layers(quant("nf4"), **{"model.layers.0.mlp.down_prj": "none"})
    plain = load(fakes.cell(model="tiny", quant="fp32"), None)
    with pytest.raises(ConfigError, match=r"quant.layers.model.layers.0.mlp.down_prj: no layer"):
        assigned(plain, asked)
    assert isinstance(model.model.layers[0].mlp.down_proj, Int8Linear)


@pytest.mark.parametrize(
    ("base", "layers", "kinds"),
    [
        ("int4_g64", {}, {"Int4Linear": 14, "Linear": 1}),
        ("int4_g64", {"**.down_proj": "int8_channel"}, {"Int4Linear": 12, "Int8Linear": 2}),
        ("nf4", {"model.layers.1.mlp.*": "none"}, {"Linear4bit": 11, "Linear": 4}),
        ("nf4", {"**.q_proj": "int8_channel"}, {"Linear4bit": 12, "Int8Linear": 2}),
        ("int4_g64_awq_gptq", {"**.o_proj": "int8_nodecomp"}, {"Linear8bitLt": 2}),
        ("fp32", {"**.up_proj": "int4_g32"}, {"Int4Linear": 2, "Linear": 13}),
    ],
)
def test_mixed_models_are_loaded_attested_and_described(
    base: str, layers: dict[str, str], kinds: dict[str, int], saved: Path
) -> None:
    values = fakes.group("quant", base)
    parameters = {
        key: "fp32" if value == "auto" else value
        for key, value in values.get("parameters", {}).items()
    }
    asked = with_layers(Quant(base, values["scheme"], "fp32", parameters), **layers)
    cell = tiny(saved, asked)
    session = ENGINE.open(cell, ENGINE.provide(cell, print))
    attestation = session.attest(torch.arange(8)[None].numpy(), 2)
    found = attestation.details["layers"]
    assert attestation.mismatches == ()
    assert {name: found.get(name) for name in kinds} == kinds
    assert attestation.weight_bytes <= ENGINE.describe(cell).weight_bytes
    wrong = replace(cell, quant=replace(asked, layers={}))
    if layers:
        session.cell = wrong
        assert session.attest(torch.arange(8)[None].numpy(), 2).mismatches


def test_a_head_of_ours_is_no_embedding_any_more(saved: Path) -> None:
    cell = tiny(saved, quant("int4_g64", head="int8"))
    session = ENGINE.open(cell, ENGINE.provide(cell, print))
    head = session.model.get_output_embeddings()
    assert isinstance(head, Int8Linear)
    embedding = session.model.get_input_embeddings().weight
    assert relative_error(dequantize_int8_of(head), embedding) < 0.01
    attestation = session.attest(torch.arange(8)[None].numpy(), 2)
    description = ENGINE.describe(cell)
    assert attestation.mismatches == ()
    assert attestation.weight_bytes == description.weight_bytes
    assert attestation.head_bytes == description.head_bytes == int8_bytes(*embedding.shape)


def dequantize_int8_of(layer: Int8Linear) -> Tensor:
    return dequantize_int8(layer.matrix(), layer.in_features)


def test_weights_are_packed_once_and_again_for_another_scheme(saved: Path) -> None:
    shown: list[str] = []
    first = ENGINE.provide(tiny(saved, quant("int4_g32")), shown.append).packed
    assert shown == ["quantizing, once"]
    again = ENGINE.provide(tiny(saved, quant("int4_g32", activations="none")), shown.append).packed
    assert (again, shown) == (first, ["quantizing, once"])
    assert ENGINE.provide(tiny(saved, quant("int4_g128")), shown.append).packed != first


def test_weights_for_a_gpu_are_packed_without_a_compiler(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(ops, "kernels", lambda: pytest.fail("kernels of the CPU were asked for"))
    build.kernels.cache_clear()
    cell = replace(tiny(saved, quant("int4_g64", activations="none")), device="cuda")
    assert ENGINE.provide(cell, print).packed is not None


def test_a_folder_without_a_tokenizer_is_packed_where_nothing_is_calibrated(saved: Path) -> None:
    cell = tiny(saved, quant("int4_g32"))
    silent = replace(cell, model=replace(cell.model, tokenizer="pretrained"))
    assert ENGINE.provide(silent, print).packed is not None
    asked = replace(silent, quant=quant("int4_g64_gptq"))
    with pytest.raises(CellFailure, match="tokenizer"):
        ENGINE.provide(asked, print)


def test_a_folder_that_is_broken_or_quantized_is_a_sentence(saved: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CellFailure, match="cannot load"):
        ENGINE.provide(tiny(broken, quant("int4_g32")), print)
    packed = tmp_path / "packed"
    shutil.copytree(saved, packed)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CellFailure, match="already quantized by gptq"):
        ENGINE.provide(tiny(packed, quant("int4_g32")), print)


def test_bits_per_weight_are_those_of_the_issue_of_formats() -> None:
    """Of 576 inputs, as in SmolLM2-135M: 4 bits, a scale of 16 and a zero point of 4 a group."""
    bits = {size: int4_bytes(1536, 576, size) * 8 / (1536 * 576) for size in (32, 64, 128)}
    assert bits == pytest.approx({32: 4.625, 64: 4.319, 128: 4.181}, abs=1e-3)
    assert int8_bytes(1536, 576) * 8 / (1536 * 576) == pytest.approx(8.056, abs=1e-3)


# ---- Export


def announced(phase: str, detail: str = "") -> None:
    """Nobody waits."""


@pytest.mark.parametrize("name", ["int4_g64", "int4_g32", "int8_channel", "int4_g64_gptq"])
def test_a_checkpoint_is_what_transformers_loads(name: str, saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    said = export_cell(announced, tiny(saved, quant(name)), str(tmp_path / "out"))
    assert "transformers loads it" in said
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= files


def test_a_head_and_layers_that_stay_as_they_are_are_exported(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    asked = with_layers(quant("int8_channel", head="int8"), **{"**.o_proj": "none"})
    said = export_cell(announced, tiny(saved, asked), str(tmp_path / "out"))
    assert "transformers loads it" in said


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("int4_g64_awq", "the inputs of model.layers.0.self_attn.q_proj are scaled"),
        ("int4_g64_head", "one kind of numbers from it, these are 4 bits and 8 bits"),
        ("nf4", "only pretrained weights that this project quantizes are exported"),
    ],
)
def test_what_does_not_fit_the_format_is_refused(
    name: str, why: str, saved: Path, tmp_path: Path
) -> None:
    asked = {
        "nf4": lambda: quant("nf4", compute_dtype="fp32"),
        "int4_g64_head": lambda: quant("int4_g64", head="int8"),
    }.get(name, lambda: quant(name))()
    with pytest.raises(CellFailure, match=why):
        export_cell(announced, tiny(saved, asked), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
