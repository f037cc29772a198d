"""What the fits of times over the context length (``depth``) say: numbers, sentences, and scores of
later cells that they predicted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.analysis.columns import assignments
from bench.analysis.crossover import Crossover, sentence, three_digits
from bench.analysis.depth import (
    Configuration,
    at,
    coefficient,
    configuration_of,
    even_tokens,
    is_off,
)
from bench.analysis.readings import contexts, fewest_requests, least_times_s
from bench.analysis.stats import Estimate
from bench.record.depth import Fit, Growth
from bench.record.result import Result


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that the cells of a configuration share, from a fit over all of them."""

    key: str
    unit: str
    doc: str


# By fit, the lowest power first
_COEFFICIENTS: Mapping[str, tuple[Quantity, ...]] = {
    "step": (
        Quantity("step_base_s", "s", "a decode step without context: a of step = a + b context"),
        Quantity(
            "step_per_context_token_s", "s", "b: what each token of context adds to a decode step"
        ),
    ),
    "prefill": (
        Quantity("prefill_base_s", "s", "c of TTFT = c + d n + e n^2, n prompt tokens"),
        Quantity("prefill_per_token_s", "s", "d of the same"),
        Quantity("prefill_per_token_squared_s", "s", "e of the same"),
    ),
}
_EVEN = Quantity(
    "step_even_tokens", "token", "context at which its share of a decode step is half: a / b"
)
_LACKS = {
    name: Quantity(
        f"{name}_lack_of_fit_p", "1", f"how often noise alone leaves depths so far off {curve}"
    )
    for name, curve in (("step", "the line"), ("prefill", "the curve"))
}
QUANTITIES = (*_COEFFICIENTS["step"], *_COEFFICIENTS["prefill"], _EVEN, *_LACKS.values())


def fits(growth: Growth) -> dict[str, Fit]:
    """By name; without that of the prefill where there is none."""
    named = {"step": growth.step, "prefill": growth.prefill}
    return {name: fit for name, fit in named.items() if fit is not None}


def values(growth: Growth) -> dict[str, float]:
    """``QUANTITIES`` with their intervals at 95 % (``_low``, ``_high``), as far as they can be
    told. Units: SI."""
    numbers: dict[str, float] = {}
    for name, fit in fits(growth).items():
        for power, quantity in enumerate(_COEFFICIENTS[name]):
            numbers |= _with_ends(quantity.key, coefficient(fit, power))
        if fit.lack_of_fit_p is not None:
            numbers[_LACKS[name].key] = fit.lack_of_fit_p
    if (even := _even(growth.step)) is not None:
        numbers |= _with_ends(_EVEN.key, even)
    return numbers


def _with_ends(key: str, estimate: Estimate) -> dict[str, float]:
    return {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}


def _even(step: Fit) -> Estimate | None:
    """None too where it may lie before the first token."""
    even = even_tokens(step)
    return even if even is not None and even.low > 0 else None


def sentences(
    deep: Sequence[Configuration],
    crossovers: Sequence[Crossover],
    columns: Sequence[str],
) -> Iterator[str]:
    """What a reader should know of it in two sentences; the report has the rest.

    Args:
        crossovers: of these lines.
        columns: what tells cells apart.
    """
    if not deep:
        return
    ordered = sorted(deep, key=lambda each: each.growth.step.coefficients[1])
    shown = ordered if len(ordered) <= 2 else [ordered[0], ordered[-1]]
    parts = [_costs(each, columns) for each in shown]
    more = len(deep) - len(shown)
    parts += [f"{more} more in the report"] if more else []
    if all(each.growth.step.lack_of_fit_p is None for each in deep):
        parts.append("one process a depth cannot tell whether these are straight lines")
    yield f"context: {'; '.join(parts)}"
    if crossovers:
        more = len(crossovers) - 1
        rest = f"; {more} more crossover{'s' if more > 1 else ''} in the report" if more else ""
        yield f"{sentence(crossovers[0])}{rest}"


def _costs(of: Configuration, columns: Sequence[str]) -> str:
    step, name = of.growth.step, place(of, columns)
    slope, even = coefficient(step, 1), _even(step)
    per_thousand = _range(slope, 1e6, " ms")
    if slope.low > 0:
        text = f"each 1,000 tokens cost a step {per_thousand}"
        if even is not None:
            text += f", and beyond {in_tokens(even, of.contexts)} attention outweighs the rest"
    else:
        text = (
            f"up to {of.growth.prompt_tokens[-1]:,} tokens no growth of a step can be told,"
            f" {per_thousand} for each 1,000"
        )
    if is_off(step):
        text += f" (no straight line: depths are up to {step.farthest:.0%} off it)"
    return f"{name}: {text}" if name else text


def place(of: Configuration, columns: Sequence[str]) -> str:
    """What tells a configuration apart, like ``quant=nf4 batch=8``."""
    return " ".join(f"{column}={value}" for column, value in of.named(columns).items())


def in_tokens(tokens: Estimate, measured: Sequence[float]) -> str:
    """A number of tokens with its interval, and whether that is beyond what was measured."""
    is_far = not min(measured) <= tokens.value <= max(measured)
    ends = f"{three_digits(tokens.low)} to {three_digits(tokens.high)}"
    return f"{three_digits(tokens.value)} tokens ({ends}{', extrapolated' if is_far else ''})"


def _range(estimate: Estimate, factor: float, unit: str) -> str:
    value, low, high = (
        f"{end * factor:.3g}" for end in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}{unit} ({low} to {high})"


def scored(
    results: Sequence[Result], earlier: Mapping[str, Growth], columns: Sequence[str]
) -> Iterator[str]:
    """What fits of earlier sweeps said of depths that they did not have, beside what was measured
    there since. ``earlier``: by configuration."""
    said: dict[str, list[str]] = {}
    for result in results if earlier else ():
        growth = earlier.get(configuration_of(result)) if result.measurements else None
        if growth is None or result.reused_from is not None:
            continue
        tokens = result.measurements[0].prompt_tokens
        is_here = growth.device_name == result.host.device_name
        if is_here and tokens not in growth.prompt_tokens:
            said.setdefault(growth.sweep_id, []).append(_score(result, growth, columns))
    for sweep_id, cells in said.items():
        yield f"predicted by the fits of sweep {sweep_id}: {'; '.join(cells)}"


def _score(result: Result, growth: Growth, columns: Sequence[str]) -> str:
    measured, tokens = result.measurements, result.measurements[0].prompt_tokens
    times = least_times_s(measured, min(growth.requests, fewest_requests([result])))
    context = contexts(result, measured[0])[0]
    parts = []
    for name, heading, metric, length in (
        ("step", "TPOT", "tpot_s", context),
        ("prefill", "TTFT", "ttft_s", tokens),
    ):
        if (fit := fits(growth).get(name)) is not None:
            predicted, found_s = at(fit, length, len(measured)), fmean(times[metric])
            word = "held" if predicted.low <= found_s <= predicted.high else "missed"
            text = (
                f"{heading} {_range(predicted, 1e3, '')}, measured {found_s * 1e3:.3g} ms: {word}"
            )
            parts.append(text)
    others = [column for column in columns if not column.startswith("workload")]
    who = assignments(result.cell, others)
    return f"{who} at {tokens:,} tokens {', '.join(parts)}".strip()
