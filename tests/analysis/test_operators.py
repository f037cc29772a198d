"""Kinds of operation: made-up traces whose times can be added up in the head."""

import pytest

from bench.analysis.operators import DECODE_MARK, PREFILL_MARK, Span, by_kind, per_step_s


def host(name: str, start_s: float, end_s: float, operator: int = 0, thread: int = 1) -> Span:
    return Span(name, start_s, end_s, thread, operator, on_device=False)


def kernel(start_s: float, end_s: float, operator: int, name: str = "some_kernel") -> Span:
    return Span(name, start_s, end_s, 7, operator, on_device=True)


def test_each_time_goes_to_the_outermost_known_operator_and_the_rest_to_the_interpreter() -> None:
    spans = [
        host(PREFILL_MARK, 0, 10),
        host("aten::linear", 1, 5),
        host("aten::mm", 2, 4),  # a part of the linear layer
        host("aten::mul", 6, 7),
        host("aten::argmax", 7, 8),
        host(DECODE_MARK, 10, 20),
        host("aten::scaled_dot_product_attention", 11, 15),
        host("aten::bmm", 12, 13),
        host("aten::cat", 16, 18),
    ]
    prefill, decode = by_kind(spans, decode_steps=2)
    assert (prefill.phase, prefill.wall_s, prefill.steps) == ("prefill", 10, 1)
    assert prefill.seconds == {
        "matrix product": 4,
        "interpreter": 4,
        "other operators": 1,
        "sampling": 1,
    }
    assert decode.seconds == {"attention": 4, "interpreter": 4, "cache copies": 2}
    assert per_step_s(decode) == {"attention": 2, "interpreter": 2, "cache copies": 1}


def test_inside_an_int8_layer_operators_say_better() -> None:
    spans = [
        host(DECODE_MARK, 0, 12),
        host("MatMul8bitLt", 1, 11),
        host("bitsandbytes::int8_vectorwise_quant", 2, 4),
        host("bitsandbytes::int8_scaled_mm", 4, 10),
        host("bitsandbytes::int8_linear_matmul", 5, 7),
        host("bitsandbytes::int8_mm_dequant", 7, 9),
        host("aten::mul", 7.5, 8.5),  # a part of the dequantization
        host("aten::to", 10, 10.5),  # unknown inside an open one: the layer's own kind
    ]
    (decode,) = by_kind(spans, decode_steps=1)
    assert decode.seconds == pytest.approx(
        {"activations to int8": 6, "matrix product": 2, "dequantization": 2, "interpreter": 2}
    )


def test_products_outside_linear_layers_are_attention_and_inside_are_not() -> None:
    spans = [
        host(PREFILL_MARK, 0, 6),
        host("aten::matmul", 0, 2),
        host("aten::bmm", 0.5, 1.5),
        host("aten::linear", 2, 6),
        host("aten::matmul", 3, 5),
        host("aten::bmm", 4, 5),
    ]
    (prefill,) = by_kind(spans, decode_steps=1)
    assert prefill.seconds == {"matrix product": 4, "attention": 2, "interpreter": 0}


def test_torchaos_products_are_products() -> None:
    spans = [
        host(PREFILL_MARK, 0, 8),
        host("aten::to", 0, 1),
        host("aten::mm", 1, 2),  # of int8's copied weights
        host("aten::matmul", 3, 6),  # of fp8's dequantized weights
        host("aten::mm", 3, 6),
        host("aten::_weight_int4pack_mm_for_cpu", 6, 8),
    ]
    (prefill,) = by_kind(spans, decode_steps=1)
    assert {kind: seconds for kind, seconds in prefill.seconds.items() if seconds} == {
        "matrix product": 4,
        "product with packed weights": 2,
        "other operators": 1,
        "interpreter": 1,
    }


def test_other_threads_and_what_is_outside_the_marks_do_not_count() -> None:
    spans = [
        host("aten::linear", 0, 1),
        host(PREFILL_MARK, 1, 3),
        host("cudaLaunchKernel", 1, 2, thread=99),
    ]
    (prefill,) = by_kind(spans, decode_steps=1)
    assert prefill.seconds == {"interpreter": 2}


def test_on_a_gpu_a_kernel_has_the_kind_of_the_operator_that_launched_it() -> None:
    spans = [
        host(DECODE_MARK, 10, 14),
        host("aten::linear", 10, 13, operator=5),
        host("aten::mm", 11, 12, operator=6),
        host("aten::mul", 13, 14, operator=7),
        kernel(12, 16, operator=6),
        kernel(17, 18, operator=7),
        kernel(18, 19, operator=12345),  # of nobody
    ]
    (decode,) = by_kind(spans, decode_steps=1)
    assert decode.wall_s == 8  # to the end of its last kernel: the host was ahead
    assert decode.seconds == {"matrix product": 4, "idle": 3, "other operators": 1}
    assert list(decode.seconds) == ["matrix product", "idle", "other operators"]  # largest first


def test_a_product_of_four_bits_that_unpacks_first_shows_how_long_that_takes() -> None:
    """On CUDA it is one operator either way; names of kernels as in bitsandbytes 0.50.2."""
    fused = "void gemm_4bit_simt<__half, 1>(__half const*, unsigned char const*, float const*)"
    unpack = "void kDequantizeBlockwise<__half, 512, 64, 8, 2>(float*, unsigned char*, float*)"
    spans = [
        host(PREFILL_MARK, 0, 4),
        host("bitsandbytes::gemm_4bit", 0, 4, operator=1),
        host("aten::linear", 2, 4, operator=2),
        kernel(4, 7, operator=1, name=unpack),
        kernel(7, 12, operator=2, name="ampere_fp16_s16816gemm_fp16"),
        host(DECODE_MARK, 20, 22),
        host("bitsandbytes::gemm_4bit", 20, 21, operator=3),
        kernel(21, 24, operator=3, name=fused),
    ]
    prefill, decode = by_kind(spans, decode_steps=1)
    assert prefill.seconds == {"matrix product": 5, "idle": 4, "dequantization": 3}
    assert decode.seconds == {"product with packed weights": 3, "idle": 1}
