"""Triton's kernels of our own int8 and 4-bit weights on the device: what they compute, and how much
of the memory's bandwidth they reach."""

import statistics
from pathlib import Path

import pytest

from bench.engine.protocol import Announce
from bench.record.result import Host
from tests import fakes
from tests.engine.own_products import MOST, Product
from tests.gpu.running import run

pytestmark = pytest.mark.gpu

FORMATS = (None, 0, 32, 64, 128)
# Outputs and inputs: odd ones, SmolLM2-135M's, a slice of Llama-2-7B's and one of a large head's
SIZES = ((5, 7), (67, 200), (576, 1536), (192, 576), (512, 4096), (256, 11008), (40_001, 2048))
_BYTES = 2**29  # of weights that are read in turns: more than any cache holds


@pytest.fixture(autouse=True)
def _has_triton(host: Host) -> None:
    if host.triton is not None:
        pytest.skip(f"Triton needs {host.triton}")
    if (host.capability or 0) < 8.0:
        pytest.skip(f"needs compute capability 8.0, {host.device_name} has {host.capability}")


def errors(announce: Announce, products: list[Product]) -> list[float]:
    from tests.engine.own_products import error

    return [error(product, "cuda") for product in products]


def bits_twice(announce: Announce, product: Product) -> bool:
    """Whether the same product twice is the same to the last bit, where it is split too."""
    import torch

    from tests.engine.own_products import found, operands

    given = operands(product).on("cuda")
    return torch.equal(found(given), found(given))


def captured(announce: Announce, product: Product) -> float:
    """The error of a product that a CUDA graph repeats."""
    import torch

    from tests.engine.own_products import expected, found, operands

    given = operands(product).on("cuda")
    found(given)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = found(given)
    y.zero_()
    graph.replay()
    right = expected(given)
    return float((y - right).abs().max() / right.abs().max())


def joint_error(announce: Announce) -> tuple[dict[str, int], float]:
    """Layers that are one product, and how far logits are from those of the same layers apart."""
    import torch

    from bench.engine.transformers.load import load
    from bench.engine.transformers.own.siblings import joined
    from tests.engine.test_siblings import apart

    model = load(fakes.resolved(model="tiny", quant="int4_g64", device="cuda"), None)
    ids = torch.arange(24, device="cuda").reshape(3, 8)
    names = joined(model)
    with torch.inference_mode():
        together = model(ids).logits.float()
        alone = apart(model)(ids).logits.float()
    return names, float((together - alone).norm() / alone.norm())


def bandwidths(announce: Announce, products: list[Product]) -> list[tuple[float, float]]:
    return [bandwidth(product) for product in products]


def bandwidth(product: Product) -> tuple[float, float]:
    """Bytes of weights, scales and zero points a second, and those of a copy, read and written.

    Products are repeated by a CUDA graph, as launches from Python would take longer than they do.
    """
    import torch

    from tests.engine.own_products import found, operands

    def seconds(graph: torch.cuda.CUDAGraph) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    first = operands(product).on("cuda")
    state = [first.weight, first.scale, *([] if first.zero is None else [first.zero])]
    size = sum(tensor.nbytes for tensor in state)
    copies = [first.on("cpu").on("cuda") for _ in range(max(1, _BYTES // size))]
    found(first)
    products, copying = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(products):
        for each in copies:
            found(each)
    source = torch.ones(_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    with torch.cuda.graph(copying):
        torch.bitwise_not(
            source, out=target
        )  # a plain copy in a graph is the copy engine's, slower
    return (
        len(copies) * size / statistics.median(seconds(products) for _ in range(5)),
        2 * _BYTES / statistics.median(seconds(copying) for _ in range(5)),
    )


@pytest.mark.parametrize("dtype", sorted(MOST))
@pytest.mark.parametrize("group", FORMATS)
def test_products_are_right(group: int | None, dtype: str, log: Path) -> None:
    products = [
        Product(rows, *size, group, dtype, input_scale=rows == 9, bias=rows in (1, 40))
        for size in SIZES
        for rows in (1, 2, 9, 24, 40, 130)
    ]
    found = zip(products, run(errors, products, log=log), strict=True)
    assert [(product, error) for product, error in found if not error <= MOST[dtype]] == []


@pytest.mark.parametrize("group", [None, 64])
@pytest.mark.parametrize("rows", [1, 8])
def test_the_same_product_is_the_same_to_the_last_bit(
    group: int | None, rows: int, log: Path
) -> None:
    assert run(bits_twice, Product(rows, 64, 16384, group, "bf16"), log=log)


@pytest.mark.parametrize("rows", [1, 8, 130])
def test_a_cuda_graph_can_repeat_a_product(rows: int, log: Path) -> None:
    assert run(captured, Product(rows, 192, 16384, 64, "bf16"), log=log) <= MOST["bf16"]


def test_layers_that_are_one_product_compute_the_same_but_for_the_order_of_sums(log: Path) -> None:
    names, error = run(joint_error, log=log)
    assert sorted(names) == ["gate_proj+up_proj", "q_proj+k_proj+v_proj"]
    assert error < 0.02  # bf16 has a step of 2^-8


@pytest.mark.parametrize("group", [None, 64, 128])
def test_products_read_no_faster_than_memory_is(host: Host, group: int | None, log: Path) -> None:
    sizes = ((4096, 4096), (1024, 4096), (11008, 4096), (4096, 11008))
    products = [Product(rows, *size, group, "bf16") for size in sizes for rows in (1, 8)]
    for product, (reached, copy) in zip(products, run(bandwidths, products, log=log), strict=True):
        print(
            f"{host.device_name}, {product}: {reached / 1e9:.0f} GB/s, {reached / copy:.0%} of a"
            f" copy's {copy / 1e9:.0f}"
        )
        # More is a fault of the measurement: reading beats copying
        assert 0 < reached < 1.25 * copy
