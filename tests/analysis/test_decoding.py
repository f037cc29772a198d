"""What a decode strategy brings beside the plain loop."""

from typing import Any

import pytest

from bench.analysis.decoding import of_strategies
from bench.record.measurement import PhaseProfile, Repeat
from bench.record.result import Result
from tests import fakes


def of(
    decode: str,
    step_s: float,
    ready_s: float = 0.0,
    details: dict[str, Any] | None = None,
    **cell: Any,
) -> Result:
    """A result whose decode steps take so long."""
    repeat = Repeat(0.1, (step_s,) * 4, 0.1 + 4 * step_s)
    profile = PhaseProfile("decode", 1.0, 4, {"matrix product": 0.45, "attention": 0.3})
    measured = fakes.measurement(repeats=(repeat,) * 3, ready_s=ready_s, step_profile=profile)
    return fakes.result(
        cell=fakes.cell(decode=decode, **cell),
        measurement=measured,
        attestation=fakes.attestation(details={"decode": details or {}}),
    )


COMPILED = {"graphs": 1, "first_token_unlike_loop": None}


def said(*results: Result) -> list[tuple[str, str]]:
    return [each for sentences in of_strategies(results).values() for each in sentences]


def test_it_pays_once_the_shorter_steps_have_brought_the_preparation_back() -> None:
    results = of("loop", 0.030), of("compiled", 0.020, ready_s=48.0, details=COMPILED)
    assert said(*results) == [
        (
            "the decode strategy gets ready first, once in each process, which pays later",
            "48 s, after 4,800 tokens of a row",
        )
    ]


@pytest.mark.parametrize(
    ("attn", "left", "share"),
    [("eager", "matrix products", "45%"), ("sdpa", "matrix products and fused attention", "75%")],
)
def test_where_it_is_no_faster_what_it_leaves_of_the_loop_says_why(
    attn: str, left: str, share: str
) -> None:
    loop = of("loop", 0.030, attn=attn)
    compiled = of("compiled", 0.0299, ready_s=48.0, details=COMPILED, attn=attn)
    assert said(loop, compiled) == [
        (
            f"compiling makes this no faster, it leaves {left} as they are",
            f"{share} of the loop's step",
        )
    ]


@pytest.mark.parametrize("other", [{"batch": 8}, {"quant": "nf4"}])
def test_only_the_cell_that_differs_in_nothing_else_is_compared(other: dict[str, Any]) -> None:
    assert said(of("loop", 0.03, **other), of("compiled", 0.02, 48.0, COMPILED)) == []


def test_a_preparation_that_takes_no_time_is_not_spoken_of() -> None:
    assert said(of("loop", 0.03), of("static", 0.02, ready_s=0.1)) == []


def test_guesses_are_counted() -> None:
    found = {"accepted_share": 0.942, "first_token_unlike_loop": 17}
    result = of("prompt_lookup", 0.03, details=found)
    (sentence, amount), *_ = said(result)
    assert sentence == "tokens a forward, of which the plain loop has 1"
    assert amount == "1.0, 94% of its guesses right"
    assert said(of("loop", 0.03), result)[-1] == (
        "rounding leads the answer away from the plain loop's",
        "from token 17 on",
    )
