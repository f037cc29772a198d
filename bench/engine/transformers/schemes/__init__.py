"""What the names of quantization schemes mean.

A scheme is a function from the cell's ``Quant`` to the configuration object that transformers'
``from_pretrained`` takes (None for plain weights), plus the class that its layers must have
afterwards. To add one: a YAML in ``conf/quant``, a function here, a line in ``SCHEMES``.

Dtypes are always passed: left to the library, nf4 computes in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from bench.config.cell import Quant

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class SchemeMeaning:
    """How transformers is asked for a scheme, and by which class of layers it is recognized
    afterwards."""

    configuration: Callable[[Quant], Any]
    layer_class: str


def _none(quant: Quant) -> None:
    return None


def _bnb_int8(quant: Quant) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=quant.threshold)


def _bnb_4bit(quant: Quant) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant.quant_type,
        bnb_4bit_use_double_quant=quant.double_quant,
        bnb_4bit_compute_dtype=DTYPES[str(quant.compute_dtype)],
    )


SCHEMES = {
    "none": SchemeMeaning(_none, "Linear"),
    "bnb_int8": SchemeMeaning(_bnb_int8, "Linear8bitLt"),
    "bnb_4bit": SchemeMeaning(_bnb_4bit, "Linear4bit"),
}
