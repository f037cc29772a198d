"""Each scheme knows its own parameters, what its layers take and how they are recognized."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from torch import nn

from bench.config.cell import Quant
from bench.engine.protocol import ENGINES, engine_at
from bench.engine.transformers.packed import kind, own_tensors
from bench.engine.transformers.schemes import (
    SCHEMES,
    dtype_name,
    parameters_of,
    torch_dtype,
    unknown_names,
)
from bench.engine.transformers.schemes.bitsandbytes import FourBit, Int8
from bench.engine.transformers.schemes.torchao import Int4
from bench.errors import ConfigError
from tests import fakes
from tests.engine.quants import QUANTS, tried

OUTPUTS, INPUTS = 96, 192  # 288 blocks of 64 weights: the last nested block is not full


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
    configuration = SCHEMES[wanted.scheme].configuration(wanted, "cpu")
    model = nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=torch_dtype(wanted.dtype)))
    make = SCHEMES[wanted.scheme].layer
    if SCHEMES[wanted.scheme].is_own and make is not None:
        return make(model[0], wanted)
    if configuration is None:
        return model[0]
    if SCHEMES[wanted.scheme].package == "torchao":
        return by_torchao(model, configuration.made())
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    weight = model[0].weight
    replaced = replace_with_bnb_linear(model, [], configuration.made())[0]
    settings = {key: value for key, value in replaced.weight.__dict__.items() if key != "data"}
    replaced.weight = type(replaced.weight)(weight.data, requires_grad=False, **settings)
    quantized: nn.Module = replaced.to("cpu")
    return quantized


def by_torchao(model: nn.Sequential, configuration: Any) -> nn.Module:
    from torchao.quantization import quantize_

    quantize_(model, configuration.get_apply_tensor_subclass())
    return model[0]


def stored_bytes(wanted: Quant, of: nn.Module) -> int:
    """Of weights and state, each storage once."""
    tensors = [*own_tensors(of), *SCHEMES[wanted.scheme].state(of)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.mark.parametrize("name", tried(QUANTS))
def test_a_layer_takes_what_its_scheme_says(name: str) -> None:
    wanted = quant(name)
    real = layer(wanted)
    scheme = SCHEMES[wanted.scheme]
    assert kind(real) in scheme.layer_classes
    # On a GPU bitsandbytes repacks nothing: what is stored there is here before the first use
    before = "cuda" if scheme.package == "bitsandbytes" else "cpu"
    assert stored_bytes(wanted, real) == scheme.matrix_bytes(OUTPUTS, INPUTS, wanted, before)
    with torch.inference_mode():
        real.eval()(torch.ones(1, INPUTS, dtype=torch_dtype(wanted.dtype)))
    assert stored_bytes(wanted, real) == scheme.matrix_bytes(OUTPUTS, INPUTS, wanted, "cpu")


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("repacks", [False, True])
def test_what_a_cpu_with_avx512_bf16_repacks_is_counted_as_it_is_then(
    is_nested: bool, repacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: repacks)
    wanted = quant("nf4", double_quant=is_nested)
    plain = 4096 + 4 * 16 + 4 * 256 + 4 if is_nested else 4 * 4096  # 4,096 blocks of 64 weights
    packed = 2 * 4096 + 4 * is_nested
    for device, scales in (("cpu", packed if repacks else plain), ("cuda", plain)):
        found = SCHEMES["bnb_4bit"].matrix_bytes(512, 512, wanted, device)
        assert found - 512 * 512 // 2 - 64 == scales


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 128), (30, 1536), (576, 1024)])
def test_torchaos_tiles_are_padded_on_a_gpu(
    group: int, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out by torchao's own code, on the meta device."""
    quantization = pytest.importorskip("torchao.quantization")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    wanted = quant("torchao_int4", group_size=group)
    scheme = SCHEMES["torchao_int4"]
    configuration = scheme.configuration(wanted, "cuda")
    assert configuration is not None
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16))
    quantization.quantize_(model, configuration.made().get_apply_tensor_subclass())
    real = model[0]
    assert kind(real) in scheme.layer_classes
    held = sum(tensor.nbytes for tensor in own_tensors(real))
    assert held == scheme.matrix_bytes(outputs, inputs, wanted, "cuda")
    assert scheme.obstacle(outputs, inputs, wanted, "cuda") is None
    assert scheme.settings(real) == scheme.wanted(wanted)


def test_groups_that_do_not_divide_the_inputs_are_told_before_torchao_passes_over_them() -> None:
    scheme, wanted = SCHEMES["torchao_int4"], quant("torchao_int4")
    for device in ("cpu", "cuda"):
        reason = "torchao cannot split 96 inputs into groups of quant.parameters.group_size=64"
        assert str(scheme.obstacle(64, 96, wanted, device)).startswith(reason)
        assert scheme.obstacle(64, 128, wanted, device) is None
    assert "want a multiple of that instead of 40" in str(scheme.obstacle(40, 64, wanted, "cpu"))
    assert scheme.obstacle(40, 64, wanted, "cuda") is None


@pytest.mark.parametrize(
    ("capability", "dtype", "need"),
    [
        (8.0, "bf16", None),
        (7.5, "bf16", "compute capability 8.0, some GPU has 7.5"),
        (8.0, "fp16", "dtype bf16, quant=torchao_int4 computes in fp16"),
    ],
)
def test_what_a_packing_wants_of_a_gpu_it_does_not_want_of_a_cpu(
    capability: float, dtype: str, need: str | None
) -> None:
    engine = engine_at(ENGINES["transformers"])
    asked = fakes.group("quant", "torchao_int4", dtype=dtype)
    gpu = fakes.host(device="cuda", device_name="some GPU", capability=capability)
    found = engine.why_not(fakes.resolved(quant=asked, device="cuda"), gpu)
    wanted = None if need is None else f"quant=torchao_int4 needs {need}"
    assert (found and found.reason) == wanted
    assert engine.why_not(fakes.resolved(quant=asked), fakes.host()) is None


@pytest.mark.parametrize(
    ("name", "device", "workspace", "beside"),
    [
        ("bf16", "cpu", 0, 0),
        ("int8", "cpu", 4, 12),
        ("int8", "cuda", 0, 12),
        ("nf4", "cpu", 8, 0),
        ("nf4", "cuda", 2, 0),
        ("torchao_int8", "cpu", 2, 4),
        ("torchao_fp8", "cuda", 10, 0),
        ("torchao_int4", "cpu", 0, 0),
    ],
)
def test_a_product_takes_room_while_it_is_made(
    name: str, device: str, workspace: int, beside: int
) -> None:
    wanted = quant(name)
    scheme = SCHEMES[wanted.scheme]
    assert scheme.workspace_bytes(10, 20, wanted, device) == 200 * workspace
    assert scheme.product_bytes == beside


@pytest.mark.parametrize("name", tried(QUANTS))
def test_what_is_in_force_in_a_layer_is_what_was_wanted(name: str) -> None:
    wanted = quant(name)
    scheme = SCHEMES[wanted.scheme]
    found, expected = scheme.settings(layer(wanted)), scheme.wanted(wanted)
    assert expected == {key: found[key] for key in expected}


@pytest.mark.parametrize("name", tried(["torchao_int8", "torchao_fp8", "torchao_int4"]))
@pytest.mark.parametrize("tokens", [1, 256])
def test_a_product_takes_no_more_room_than_is_said(name: str, tokens: int) -> None:
    wanted, outputs, inputs = quant(name), 1024, 1024
    real, scheme = layer(wanted, outputs, inputs), SCHEMES[quant(name).scheme]
    activations = torch.randn(tokens, inputs, dtype=torch.bfloat16)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        result = real(activations)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    said = scheme.workspace_bytes(outputs, inputs, wanted, "cpu")
    beside = scheme.product_bytes * result.numel()
    # There oneDNN has as much for a product of any size
    beside += 258 * 2**10 * has_avx512bf16()
    assert 0.9 * said <= held.max() - result.nbytes <= said + beside + 64 * outputs


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


@pytest.mark.parametrize(
    ("configuration", "changed"),
    [
        ("Int8WeightOnlyConfig(granularity=PerGroup(64))", {"per_output"}),
        ("Int8WeightOnlyConfig(granularity=PerTensor())", {"per_output"}),
        ("Int8DynamicActivationInt8WeightConfig()", {"activations"}),
    ],
)
def test_a_layer_that_torchao_quantized_in_another_way_is_seen(
    configuration: str, changed: set[str]
) -> None:
    library = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.bfloat16))
    library.quantize_(model, eval(configuration, vars(library)))
    scheme = SCHEMES["torchao_int8"]
    assert kind(model[0]) in scheme.layer_classes
    found, wanted = scheme.settings(model[0]), scheme.wanted(quant("torchao_int8"))
    assert {key for key in wanted if found[key] != wanted[key]} == changed


def test_products_run_in_the_dtype_that_is_named() -> None:
    executed = {name: SCHEMES[quant(name).scheme].executed_dtype(quant(name)) for name in QUANTS}
    assert executed == {
        **dict.fromkeys(("bf16", "nf4", "nf4_double", "fp4"), "bf16"),
        **dict.fromkeys(("int8", "int8_nodecomp"), "int8"),
        **dict.fromkeys((name for name in QUANTS if name.startswith(("int4_", "int8_c"))), "int8"),
        **dict.fromkeys(("torchao_int8", "torchao_int4", "torchao_fp8"), "bf16"),
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
    assert parameters_of(quant("torchao_int4")) == Int4(group_size=64)


def mistaken() -> Iterator[tuple[Quant, list[str]]]:
    yield (
        Quant("x", "foo", "bf16"),
        [
            "quant.scheme=foo: no such scheme; engine=transformers has none, bnb_int8, bnb_4bit,"
            " torchao_int8, torchao_int4, torchao_fp8, own_int8, own_int4, checkpoint",
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
        quant("torchao_int4", group_size=48),
        ["quant.parameters.group_size=48: want one of 32, 64, 128"],
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


def test_a_configuration_is_written_as_it_is_made() -> None:
    on_cuda = SCHEMES["torchao_int4"].configuration(quant("torchao_int4"), "cuda")
    assert on_cuda is not None
    assert str(on_cuda) == (
        "TorchAoConfig(quant_type=Int4WeightOnlyConfig(group_size=64,"
        " int4_packing_format='tile_packed_to_4d'))"
    )
    assert [(part.module, part.name) for part in on_cuda.parts()] == [
        ("transformers", "TorchAoConfig"),
        ("torchao.quantization", "Int4WeightOnlyConfig"),
    ]


def test_every_shipped_quantization_is_known() -> None:
    assert {name: unknown_names(quant(name)) for name in QUANTS} == {name: [] for name in QUANTS}


def test_the_names_are_known_without_any_library() -> None:
    code = (
        "import sys\n"
        "from bench.engine.transformers.schemes import SCHEMES, unknown_names\n"
        "from bench.config.cell import Quant\n"
        "assert SCHEMES and unknown_names(Quant('x', 'foo', 'bf16'))\n"
        "print(*{'torch', 'transformers', 'bitsandbytes', 'torchao'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
