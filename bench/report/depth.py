"""How times grow with the context: a picture and a table of the fits (``bench.analysis.depth``)."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.depth import Configuration, at, coefficient, even_tokens, is_off
from bench.analysis.growth import in_tokens, values
from bench.analysis.stats import ALPHA, t_quantile
from bench.record.depth import Fit
from bench.report.drawing import COLOURS, Chart, colours_of, dots, legend, name_points, panels
from bench.report.grid import Column, Entry, Grid

_LEAD = (
    "Fits over the depth, of least times, with intervals at 95%: step = a + b context, and TTFT ="
    " c + d n + e n^2 of n prompt tokens. Attention outweighs all else in a step from a / b on."
)


def chart(comparison: Comparison) -> Chart:
    """Steps over the context and prefills over the prompt: readings with their intervals, and the
    curves through them."""
    figure, (steps, prefills) = panels(2, 9, 3.6)
    colours = colours_of(coordinate(r.cell, comparison.axis) for r in comparison.measured)
    drawn: dict[str, str] = {}
    ends: tuple[list[tuple[float, float, str]], ...] = ([], [])
    for each in comparison.deep:
        rest = each.named(comparison.columns)
        group = rest.pop(comparison.axis, "")
        drawn[group] = colours.get(group, COLOURS[0])
        name = " ".join(f"{column} {value}" for column, value in rest.items())
        growth = each.growth
        panes = (
            (steps, each.contexts, each.step_s, growth.step),
            (prefills, growth.prompt_tokens, each.prefill_s, growth.prefill),
        )
        for (axis, tokens, times_s, fit), points in zip(panes, ends, strict=True):
            _draw(axis, tokens, times_s, fit, drawn[group])
            points.append((tokens[-1], fmean(times_s[-1]) * 1e3, name))
    for axis, points, (across, up) in zip(
        (steps, prefills),
        ends,
        (("context, tokens", "decode step, ms"), ("prompt, tokens", "prefill (TTFT), ms")),
        strict=True,
    ):
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        named = [point for point in points if point[2]]
        # Names stand to the right of the lines
        axis.set_xlim(0, (1.25 if named else 1.05) * max(point[0] for point in points))
        axis.set_ylim(bottom=0)
        axis.grid()
        name_points(axis, named)
    if len(drawn) > 1:
        legend(figure, "right upper", dots(drawn))
    return Chart("depth", _title(comparison), figure)


def _draw(
    axis: Any,
    tokens: Sequence[float],
    times_s: Sequence[Sequence[float]],
    fit: Fit | None,
    colour: str,
) -> None:
    means_ms = [fmean(each) * 1e3 for each in times_s]
    if fit is None:
        axis.plot(tokens, means_ms, "o", color=colour, markersize=4)
        return
    half = t_quantile(1 - ALPHA / 2, fit.df) * fit.deviation
    errors = [
        mean * half / math.sqrt(len(each)) for mean, each in zip(means_ms, times_s, strict=True)
    ]
    axis.errorbar(tokens, means_ms, errors, fmt="o", color=colour, markersize=4, capsize=3)
    across = np.linspace(min(tokens), max(tokens), 100)
    axis.plot(across, [at(fit, each).value * 1e3 for each in across], color=colour, linewidth=1)


def _title(comparison: Comparison) -> str:
    slopes = [coefficient(each.growth.step, 1) for each in comparison.deep]
    told = [slope.value * 1e6 for slope in slopes if slope.low > 0]
    if not told:
        longest = max(each.growth.prompt_tokens[-1] for each in comparison.deep)
        return f"Up to {longest:,} tokens no growth of a decode step can be told (bars: 95%)"
    least, most = f"{min(told):.2g}", f"{max(told):.2g}"
    cost = least if least == most else f"{least} to {most}"
    return f"Each 1,000 tokens of context cost a decode step {cost} ms (bars: 95%, lines: fits)"


def grid(comparison: Comparison) -> Grid | None:
    """Every fit with its intervals; None where nothing was measured at several depths."""
    if not comparison.deep:
        return None
    shared = set.intersection(*(set(each.named(comparison.columns)) for each in comparison.deep))
    names = [column for column in comparison.columns if column in shared]
    headings = (
        *("step without context, ms", "ms a step for 1,000 tokens", "attention outweighs from"),
        *("line", "prefill base, ms", "ms for 1,000 tokens", "ms for 1,000 tokens squared"),
        "curve",
    )
    rows = []
    for each in comparison.deep:
        step, prefill, named = each.growth.step, each.growth.prefill, each.named(names)
        even = even_tokens(step) if "step_even_tokens" in values(each.growth) else None
        row = [Entry(named[name]) for name in names]
        row += [_scaled(step, 0), _scaled(step, 1)]
        row += [Entry("cannot tell" if even is None else in_tokens(even, each.contexts))]
        row += [Entry(_in_words(step, each))]
        row += [Entry("-") if prefill is None else _scaled(prefill, i) for i in range(3)]
        row += [Entry("too few depths" if prefill is None else _in_words(prefill, each))]
        rows.append(row)
    columns = (*(Column(name, is_axis=True) for name in names), *map(Column, headings))
    return Grid(columns, rows, "How times grow with the context", _LEAD)


def _scaled(fit: Fit, power: int) -> Entry:
    found, factor = coefficient(fit, power), 1e3 * 1e3**power
    value, low, high = (f"{each * factor:.3g}" for each in (found.value, found.low, found.high))
    return Entry(value, found.value, f"({low} to {high})")


def _in_words(fit: Fit, of: Configuration) -> str:
    """Whether the curve fits, or why that was not tested."""
    if fit.lack_of_fit_p is None:
        depths = len(of.results)
        if depths == len(fit.coefficients):
            return f"not tested: {depths} depths fix it"
        return "not tested: one process a depth, no calibration"
    p = "below 0.001" if fit.lack_of_fit_p < 0.001 else f"{fit.lack_of_fit_p:.2g}"
    if is_off(fit):
        return f"does not fit (p {p}, up to {fit.farthest:.1%} off)"
    return f"fits (p {p})"
