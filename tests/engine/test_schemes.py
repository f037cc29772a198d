"""Each scheme knows its own parameters, what its layers take and how they are recognized."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from bench.config.cell import Quant
from bench.engine.transformers.schemes import (
    SCHEMES,
    dtype_name,
    parameters_of,
    torch_dtype,
    unknown_names,
)
from bench.engine.transformers.schemes.bitsandbytes import FourBit, Int8, four_bit_bytes
from bench.errors import ConfigError
from bench.paths import CONF
from tests import fakes

# What a checkpoint is depends on its folder: tests/engine/test_checkpoint.py
QUANTS = sorted({path.stem for path in (CONF / "quant").glob("*.yaml")} - {"checkpoint"})
OUTPUTS, INPUTS = 96, 160  # 240 blocks of 64 weights: the last nested block is not full


def quant(name: str, **parameters: Any) -> Quant:
    """A value of conf/quant as it is on a CPU, with some of its parameters changed."""
    values = fakes.group("quant", name)
    return Quant(
        name,
        values["scheme"],
        "bf16" if values["dtype"] == "auto" else values["dtype"],
        values.get("parameters", {}) | parameters,
    )


def layer(wanted: Quant, outputs: int = OUTPUTS, inputs: int = INPUTS) -> nn.Module:
    """A layer as transformers makes it of the scheme's configuration, quantized on the CPU."""
    configuration = SCHEMES[wanted.scheme].configuration(wanted)
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=torch_dtype(wanted.dtype)))
    if configuration is None:
        return model[0]
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    weight = model[0].weight
    replaced = replace_with_bnb_linear(model, [], configuration.made())[0]
    settings = {key: value for key, value in replaced.weight.__dict__.items() if key != "data"}
    replaced.weight = type(replaced.weight)(weight.data, requires_grad=False, **settings)
    quantized: nn.Module = replaced.to("cpu")
    return quantized


def stored_bytes(wanted: Quant, of: nn.Module) -> int:
    """Of weights and state, each storage once."""
    tensors = [*of.parameters(), *SCHEMES[wanted.scheme].state(of)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.mark.parametrize("name", QUANTS)
def test_a_layer_takes_what_its_scheme_says(name: str) -> None:
    wanted = quant(name)
    real = layer(wanted)
    scheme = SCHEMES[wanted.scheme]
    assert type(real).__name__ == scheme.layer_class
    # On a GPU nothing is repacked: what is stored there is what is stored here before the first use
    assert stored_bytes(wanted, real) == scheme.matrix_bytes(OUTPUTS, INPUTS, wanted, "cuda")
    with torch.inference_mode():
        real(torch.ones(1, INPUTS, dtype=torch_dtype(wanted.dtype)))
    assert stored_bytes(wanted, real) <= scheme.matrix_bytes(OUTPUTS, INPUTS, wanted, "cpu")


@pytest.mark.parametrize("is_nested", [False, True])
def test_what_a_cpu_with_avx512_bf16_repacks_is_counted_before_and_after(is_nested: bool) -> None:
    wanted = quant("nf4", double_quant=is_nested)
    large = 64 * 64 * 64  # weights, of 4,096 blocks
    before = four_bit_bytes(large, is_nested, is_repacked=False)
    after = four_bit_bytes(large, is_nested, is_repacked=True)
    assert before - large // 2 - 64 == (4096 + 4 * 16 + 4 * 256 + 4 if is_nested else 4 * 4096)
    assert after - large // 2 - 64 == 2 * 4096 + 4 * is_nested
    assert SCHEMES["bnb_4bit"].matrix_bytes(512, 512, wanted, "cpu") == max(before, after)
    from bitsandbytes.functional import has_avx512bf16

    if has_avx512bf16():
        real = layer(wanted, 512, 512)
        with torch.inference_mode():
            real(torch.ones(1, 512, dtype=torch.bfloat16))
        assert stored_bytes(wanted, real) == after


@pytest.mark.parametrize(
    ("name", "device", "workspace", "beside"),
    [
        ("bf16", "cpu", 0, 0),
        ("int8", "cpu", 4, 12),
        ("int8", "cuda", 0, 12),
        ("nf4", "cpu", 8, 0),
        ("nf4", "cuda", 2, 0),
    ],
)
def test_a_product_takes_room_while_it_is_made(
    name: str, device: str, workspace: int, beside: int
) -> None:
    wanted = quant(name)
    scheme = SCHEMES[wanted.scheme]
    assert scheme.workspace_bytes(10, 20, wanted, device) == 200 * workspace
    assert scheme.product_bytes == beside


def test_what_is_in_force_in_a_layer_is_what_was_wanted() -> None:
    for wanted in map(quant, QUANTS):
        scheme = SCHEMES[wanted.scheme]
        assert scheme.settings(layer(wanted)) == scheme.wanted(wanted), wanted.name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("nf4", {"quant_type": "fp4"}),
        ("nf4", {"double_quant": True}),
        ("nf4", {"compute_dtype": "fp32"}),
        ("int8", {"threshold": 0.0}),
    ],
)
def test_a_layer_with_another_setting_is_seen(name: str, changes: Mapping[str, Any]) -> None:
    scheme = SCHEMES[quant(name).scheme]
    found, wanted = scheme.settings(layer(quant(name, **changes))), scheme.wanted(quant(name))
    assert {key for key in wanted if found[key] != wanted[key]} == set(changes)


def test_products_run_in_the_dtype_that_is_named() -> None:
    executed = {name: SCHEMES[quant(name).scheme].executed_dtype(quant(name)) for name in QUANTS}
    assert executed == {
        **dict.fromkeys(("bf16", "nf4", "nf4_double", "fp4"), "bf16"),
        **dict.fromkeys(("int8", "int8_nodecomp"), "int8"),
        "fp16": "fp16",
        "fp32": "fp32",
    }
    assert SCHEMES["bnb_4bit"].executed_dtype(quant("nf4", compute_dtype="fp16")) == "fp16"


def test_dtypes_have_one_name_in_both_directions() -> None:
    assert torch_dtype("bf16") is torch.bfloat16
    assert dtype_name(torch.float16) == "fp16"
    assert dtype_name(torch.float64) == "float64"


def test_parameters_are_the_schemes_own() -> None:
    assert parameters_of(quant("int8")) == Int8(threshold=6.0)
    assert parameters_of(quant("nf4")) == FourBit("nf4", "auto", double_quant=False)


def mistaken() -> Iterator[tuple[Quant, list[str]]]:
    yield (
        Quant("x", "foo", "bf16"),
        [
            "quant.scheme=foo: no such scheme; engine=transformers has none, bnb_int8, bnb_4bit,"
            " checkpoint",
        ],
    )
    yield (
        Quant("x", "none", "bf16", {"threshold": 1}),
        ["quant.parameters.threshold=1: unknown key; none is wanted here"],
    )
    yield (
        Quant("x", "bnb_int8", "bf16", {"treshold": 1}),
        [
            "quant.parameters.treshold=1: unknown key; did you mean quant.parameters.threshold?",
            "quant.parameters.threshold: missing; want a number, at least 0",
        ],
    )
    yield (
        quant("int8", threshold=-1),
        ["quant.parameters.threshold=-1: want a number, at least 0"],
    )
    yield (
        quant("nf4", quant_type="nf3", double_quant=1),
        [
            "quant.parameters.quant_type=nf3: want one of nf4, fp4",
            "quant.parameters.double_quant=1: want true or false",
        ],
    )


@pytest.mark.parametrize(("wanted", "sentences"), list(mistaken()))
def test_unknown_names_are_sentences(wanted: Quant, sentences: list[str]) -> None:
    assert unknown_names(wanted) == sentences
    with pytest.raises(ConfigError) as caught:
        parameters_of(wanted)
    assert caught.value.problems == sentences


def test_every_shipped_quantization_is_known() -> None:
    assert {name: unknown_names(quant(name)) for name in QUANTS} == {name: [] for name in QUANTS}


def test_the_names_are_known_without_any_library() -> None:
    code = (
        "import sys\n"
        "from bench.engine.transformers.schemes import SCHEMES, unknown_names\n"
        "from bench.config.cell import Quant\n"
        "assert SCHEMES and unknown_names(Quant('x', 'foo', 'bf16'))\n"
        "print(*{'torch', 'transformers', 'bitsandbytes'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
