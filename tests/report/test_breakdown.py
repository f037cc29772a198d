"""What a profile looks like beside others, and the sentence that says why a cell is slower."""

from rich.console import Console

from bench.analysis.comparison import Reference
from bench.record.measurement import PhaseProfile, Profile
from bench.record.result import Result
from bench.report import breakdown
from tests import fakes


def profiled(quant: str, **decode_s: float) -> Result:
    seconds = {kind.replace("_", " "): s for kind, s in decode_s.items()}
    phases = (
        PhaseProfile("prefill", 0.5, 1, {"matrix product": 0.5}),
        PhaseProfile("decode", sum(seconds.values()), 2, seconds),
    )
    return fakes.result(cell=fakes.cell(quant=quant), profile=Profile(phases, 1.2))


PLAIN = profiled("bf16", matrix_product=0.060, interpreter=0.020)
PACKED = profiled("int8", matrix_product=0.040, dequantization=0.050, interpreter=0.021)


def test_a_table_for_each_phase_has_milliseconds_of_one_step() -> None:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        for table in breakdown.tables(
            [PLAIN, PACKED, fakes.result(cell=fakes.cell(quant="nf4"))], ["quant"]
        ):
            console.print(table)
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["bf16", "500.00", "500.00"] in lines
    # Matrix product, dequantization, interpreter, all
    assert ["bf16", "30.00", "-", "10.00", "40.00"] in lines
    assert ["int8", "20.00", "25.00", "10.50", "55.50"] in lines
    assert not any("nf4" in line for line in lines)


def test_the_sentence_names_what_makes_the_difference() -> None:
    (said,) = breakdown.reasons([PLAIN, PACKED], ["quant"], Reference({"quant": "bf16"}))
    parts = "dequantization +25.00, matrix product -10.00"
    assert said == f"quant=int8: a decode step takes 15.50 ms more ({parts}) than quant=bf16"


def test_without_profiles_there_is_nothing_to_say() -> None:
    results = [fakes.result(cell=fakes.cell(quant=quant)) for quant in ("bf16", "int8")]
    assert breakdown.tables(results, ["quant"]) == []
    assert breakdown.reasons(results, ["quant"], Reference({"quant": "bf16"})) == []
