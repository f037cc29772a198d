"""The pictures of the report: what each shows stands in its title, computed from the same
numbers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.analysis import cost, readings
from bench.analysis.columns import coordinate, short_name
from bench.analysis.comparison import Comparison
from bench.analysis.divergence import ranked_kl_nats
from bench.analysis.metrics import METRIC, MIB, Metric, peak_memory_bytes
from bench.record.result import Result
from bench.report import depth
from bench.report.drawing import (
    COLOURS,
    TEXT,
    Chart,
    colours_of,
    dots,
    legend,
    logarithmic,
    name_points,
    panels,
)

_MOST_BARS = 24
_MOST_COLUMNS = 12  # of a heat map with its numbers in it


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell with a number, as charts see it."""

    result: Result
    label: str
    group: str  # value of the compared axis, which has a colour
    rest: str  # what the colour does not say
    values: Mapping[str, float]
    memory_mib: float  # at the peak; nan where it was not read


def charts(comparison: Comparison) -> Iterator[Chart]:
    """All that the data allows; nothing without a cell that has a number."""
    cells = [_shown(comparison, result) for result in comparison.measured]
    if not cells:
        return
    fastest = sorted(cells, key=lambda cell: -cell.values["output_tok_s"])[:_MOST_BARS]
    bars = [cell for cell in cells if cell in fastest]
    few = "" if len(bars) == len(cells) else f" (the {len(bars)} fastest of {len(cells)} cells)"
    yield _throughput_and_memory(bars, few)
    yield _tradeoffs(cells, set(comparison.front))
    if len({c.result.cell.rows for c in cells}) > 1 and len({c.group for c in cells}) > 1:
        yield _heat_maps(cells)
    yield _phases(bars, few)
    yield _memory_split(bars, few)
    if all(cell.result.peaks is not None for cell in cells):
        yield _roofline(cells)
    if comparison.deep:
        yield depth.chart(comparison)


def _shown(comparison: Comparison, result: Result) -> Shown:
    values = comparison.values[result.cell_id]
    label = short_name(result.cell, comparison.columns)
    group = coordinate(result.cell, comparison.axis)
    others = [column for column in comparison.columns if column != comparison.axis]
    rest = short_name(result.cell, others)
    return Shown(result, label, group, rest, values, peak_memory_bytes(result, values) / MIB)


def _colours(cells: Sequence[Shown]) -> dict[str, str]:
    return colours_of(cell.group for cell in cells)


def _bar_height(cells: Sequence[Shown]) -> float:
    return 1.1 + 0.24 * len(cells)


def _throughput_and_memory(cells: Sequence[Shown], few: str) -> Chart:
    colours, best = _colours(cells), max(cells, key=lambda c: c.values["output_tok_s"])
    figure, (speed, memory) = panels(2, 9, _bar_height(cells))
    places = range(len(cells))
    paint = [colours[cell.group] for cell in cells]
    speed.barh(places, [cell.values["output_tok_s"] for cell in cells], color=paint)
    speed.set_yticks(places, [cell.label for cell in cells])
    speed.set_xlabel("output tokens / s")
    memory.barh(places, [cell.memory_mib for cell in cells], color=paint)
    memory.set_yticks(places, [])
    memory.set_xlabel("peak memory, MiB")
    for axis in (speed, memory):
        axis.invert_yaxis()
        axis.grid(axis="x")
    title = f"{best.label} gives the most output: {best.values['output_tok_s']:,.0f} tokens/s{few}"
    return Chart("throughput", title, figure)


def _tradeoffs(cells: Sequence[Shown], front: set[str]) -> Chart:
    colours = _colours(cells)
    has_quality = all("kl_nats" in cell.values for cell in cells)
    figure, axes = panels(2 if has_quality else 1, 9, 3.6)
    across: list[tuple[str, Callable[[Shown], float]]] = [
        ("peak memory, MiB", lambda c: c.memory_mib),
        (
            "divergence, nat (left: closer to the unquantized model)",
            _shown_kl_nats,
        ),
    ]
    for axis, (name, value) in zip(axes, across, strict=False):
        for group, colour in colours.items():
            for on_front in (False, True):
                members = [
                    c for c in cells if c.group == group and (c.result.cell_id in front) is on_front
                ]
                axis.scatter(
                    [value(c) for c in members],
                    [c.values["output_tok_s"] for c in members],
                    color=colour,
                    s=60 if on_front else 18,
                    edgecolors=TEXT if on_front else "none",
                )
        axis.set_xlabel(name)
        logarithmic(axis, "y")
        axis.grid()
    if has_quality:
        logarithmic(axes[1], "x")
    for axis, (_, value) in zip(axes, across, strict=False):
        ordered = sorted(cells, key=lambda c: c.result.cell_id not in front)  # its names first
        named = [(value(c), c.values["output_tok_s"], c.rest) for c in ordered]
        name_points(axis, named if len(cells) <= _MOST_BARS else [])
    axes[0].set_ylabel("output tokens / s")
    legend(figure, "right upper", dots(colours))
    what = "speed, memory and divergence" if has_quality else "speed and memory"
    title = (
        f"{len(front)} of {len(cells)} cells are beaten by none in {what} at once (large, ringed)"
    )
    return Chart("tradeoffs", title, figure)


def _shown_kl_nats(cell: Shown) -> float:
    """What cannot be told from the noise floor stands at it; 0 has no place on logarithms."""
    is_told = ranked_kl_nats(cell.result.divergence) != 0
    return max(cell.values["kl_nats" if is_told else "kl_floor_nats"], 1e-6)


def _scaled(metric: Metric, cell: Shown) -> float:
    return cell.values[metric.key] * metric.factor


def _heat_maps(cells: Sequence[Shown]) -> Chart:
    shown = [METRIC[key] for key in ("ttft_s", "tpot_s", "output_tok_s")]
    quantities: list[tuple[str, Callable[[Shown], float]]] = [
        *((m.heading, partial(_scaled, m)) for m in shown),
        ("peak MiB", lambda cell: cell.memory_mib),
    ]
    groups = list(dict.fromkeys(cell.group for cell in cells))
    batches = sorted({cell.result.cell.rows for cell in cells})
    figure, axes = panels(4, 10, 0.9 + 0.35 * len(groups))
    for axis, (name, value) in zip(axes, quantities, strict=True):
        grid = np.full((len(groups), len(batches)), np.nan)
        for cell in reversed(cells):  # where several cells share a place, the first one shows
            grid[groups.index(cell.group), batches.index(cell.result.cell.rows)] = value(cell)
        axis.imshow(np.log(grid), aspect="auto", cmap="viridis")
        middle = np.nanmean([np.nanmin(np.log(grid)), np.nanmax(np.log(grid))])
        legible = len(batches) <= _MOST_COLUMNS
        for row, column in np.argwhere(~np.isnan(grid)) if legible else ():
            colour = "white" if math.log(grid[row, column]) < middle else "black"
            axis.text(
                column,
                row,
                _three_digits(grid[row, column]),
                ha="center",
                va="center",
                color=colour,
                fontsize=7,
            )
        every = -(-len(batches) // _MOST_COLUMNS)
        axis.set_xticks(range(0, len(batches), every), [str(batch) for batch in batches[::every]])
        axis.set_yticks(range(len(groups)), groups if axis is axes[0] else [])
        axis.set_title(name, color=TEXT, fontsize=9)
        axis.set_xlabel("batch")
    slowest = max(cells, key=lambda c: c.values["ttft_s"])
    shared = len(cells) > len({(cell.group, cell.result.cell.rows) for cell in cells})
    title = (
        f"The longest wait for a first token is {slowest.values['ttft_s'] * 1e3:,.0f} ms, with"
        f" {slowest.label}"
    )
    title += " (each square shows the first of several cells)" if shared else ""
    return Chart("heat", title, figure)


def _near_ones_together(flops: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Peaks whose lines would lie on each other, under one name."""
    left = sorted(flops.items(), key=lambda item: -item[1])
    while left:
        highest = left[0][1]
        near = [item for item in left if item[1] > 0.7 * highest]
        left = left[len(near) :]
        yield ", ".join(name for name, _ in near), highest


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _label_bars(axis: Any, cells: Sequence[Shown], unit: str) -> None:
    """Of a chart of stacked bars, one a cell from top to bottom."""
    axis.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.grid(axis="x")
    handles = axis.get_legend_handles_labels()[0]
    legend(axis.figure, "upper right", handles, columns=len(handles))


def _phases(cells: Sequence[Shown], few: str) -> Chart:
    shares = [cell.values["ttft_s"] / cell.values["e2e_s"] for cell in cells]
    figure, (axis,) = panels(1, 9, _bar_height(cells))
    places = range(len(cells))
    prefill = [cell.values["ttft_s"] * 1e3 for cell in cells]
    axis.barh(places, prefill, color=COLOURS[1], label="prefill (to the first token)")
    axis.barh(
        places,
        [c.values["e2e_s"] * 1e3 - s for c, s in zip(cells, prefill, strict=True)],
        left=prefill,
        color=COLOURS[0],
        label="decode",
    )
    _label_bars(axis, cells, "one request, ms")
    title = f"Prefill takes {min(shares):.0%} to {max(shares):.0%} of a request{few}"
    return Chart("phases", title, figure)


def _memory_split(cells: Sequence[Shown], few: str) -> Chart:
    figure, (axis,) = panels(1, 9, _bar_height(cells))
    places, left = range(len(cells)), np.zeros(len(cells))
    weights = np.array([c.values["weight_bytes"] / MIB for c in cells])
    cache = np.array([c.values["kv_bytes"] / MIB for c in cells])
    peak = np.array([c.memory_mib for c in cells])
    parts = (
        ("weights", weights),
        ("KV cache", cache),
        ("activations, the rest of the peak", np.maximum(peak - weights - cache, 0)),
    )
    for (name, part), colour in zip(parts, (COLOURS[0], COLOURS[1], COLOURS[7]), strict=True):
        axis.barh(places, part, left=left, color=colour, label=name)
        left = left + np.nan_to_num(part)
    _label_bars(axis, cells, "MiB")
    title = (
        f"Weights take {weights.min():,.0f} to {weights.max():,.0f} MiB, the KV cache up to"
        f" {cache.max():,.1f} MiB{few}"
    )
    return Chart("memory", title, figure)


def _roofline(cells: Sequence[Shown]) -> Chart:
    """Operations per byte across, operations per second up; the roof is the smaller of bandwidth
    and compute."""
    figure, (axis,) = panels(1, 9, 3.8)
    colours, shares = _colours(cells), []
    peaks = {(c.result.cell.device, c.result.cell.threads): c.result.peaks for c in cells}
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}  # of each group and kind
    above = 0  # every roof of its device
    for cell in cells:
        result, attestation = cell.result, cell.result.attestation
        assert attestation is not None
        assert result.peaks is not None
        measurement = result.measurements[0]
        context, _ = readings.contexts(result, measurement)
        size, tpot_s, ttft_s = (cell.values[key] for key in ("step_bytes", "tpot_s", "ttft_s"))
        shares.append(size / tpot_s / result.peaks.read_bytes_s)
        step = cost.step_flops(attestation, context, result.cell.rows)
        prefill = cost.forward_flops(attestation, measurement.prompt_tokens, result.cell.rows)
        for marker, operations, time_s in (("o", step, tpot_s), ("^", prefill, ttft_s)):
            across, up = operations / size, operations / time_s
            points.setdefault((cell.group, marker), []).append((across, up / 1e9))
            roof = min(across * result.peaks.read_bytes_s, max(result.peaks.flops.values()))
            above += result.peaks.measured and up > 1.05 * roof
    for (group, marker), drawn in points.items():
        axis.scatter(*zip(*drawn, strict=True), color=colours[group], marker=marker, s=24)
    for peak in peaks.values():
        assert peak is not None
        places = np.logspace(-1, 5, 50)
        for names, flops in _near_ones_together(peak.flops):
            heights = np.minimum(places * peak.read_bytes_s, flops) / 1e9
            axis.plot(places, heights, color=TEXT, linewidth=0.8)
            axis.text(
                places[-1], heights[-1], names, fontsize=7, color=TEXT, va="bottom", ha="right"
            )
    legend(figure, "right upper", dots(colours))
    logarithmic(axis, "x")
    logarithmic(axis, "y")
    axis.set_xlabel(
        "operations per byte of weights and cache (circles: decode steps, triangles: prefill)"
    )
    axis.set_ylabel("G operations / s")
    axis.grid()
    best = max(range(len(cells)), key=lambda i: shares[i])
    title = (
        f"Decode steps use {min(shares):.0%} to {max(shares):.0%} of the memory's bandwidth, most"
        f" with {cells[best].label}"
    )
    if above:
        points_lie = "1 point lies" if above == 1 else f"{above} points lie"
        title += f". {points_lie} above the roofs: they were read too low, as beside other work"
    return Chart("roofline", title, figure)
