"""A sensitivity study as pictures, and as one page that needs no network."""

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import markupsafe
import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from bench.analysis.allocation import block_of
from bench.analysis.sensitivity import loss_nats, ranked
from bench.analysis.stats import ALPHA, mean_interval
from bench.record.sensitivity import Module, Study
from bench.report.drawing import COLOURS, GRID, TEXT, Chart, legend, logarithmic, panels, png, svg
from bench.report.page import template
from bench.store.files import write_aside

_LEAST_SHARE = 1e-4  # of the loss: smaller ones have one colour
_COLUMNS = 3  # of scatter plots


def write_page(
    folder: Path, study: Study, found: Sequence[str], table: Sequence[str], given: Mapping[str, str]
) -> list[Path]:
    """Write the page and its pictures into the study's folder; returns the files, the page first.

    Args:
        found: what came out, in words.
        table: the allocation and its controls, line by line.
        given: the scheme of each layer in the allocation; empty without one.

    Raises:
        StoreError: when the folder cannot be written to.
    """
    pictures = list(charts(study, given))
    files = {"sensitivity.html": _page(study, found, table, pictures).encode()}
    files |= {f"{chart.name}.png": png(chart) for chart in pictures}
    for name, content in files.items():
        write_aside(folder / name, content)
    return [folder / name for name in files]


def _page(
    study: Study, found: Sequence[str], table: Sequence[str], pictures: Sequence[Chart]
) -> str:
    scheme = study.cell.quant.name
    headings = ["layer", "share", "KL", "low", "high", "output error", "cosine", "bytes"]
    rows = []
    for layer, share in ranked(study.readings, scheme):
        effect = layer.effects[scheme]
        loss = mean_interval(loss_nats(effect), 1 - ALPHA)
        interval = [f"{each:.2g}" for each in (loss.value, loss.low, loss.high)]
        error, cosine = f"{effect.output_error:.3f}", f"{effect.cosine:.4f}"
        stored = f"{effect.stored_bytes:,}"
        rows.append([layer.name, f"{share:.2%}", *interval, error, cosine, stored])
    return template("sensitivity.html.j2").render(
        title=f"Which layers of {study.cell.model.name} suffer from {scheme}?",
        findings=found,
        allocated="\n".join(table),
        pictures=[(chart.title, markupsafe.Markup(svg(chart))) for chart in pictures],
        scheme=scheme,
        headings=headings,
        layers=rows,
        asked=study.asked,
        commit="" if study.commit is None else study.commit[:12],
        device=study.host.device_name,
    )


def charts(study: Study, given: Mapping[str, str]) -> Iterator[Chart]:
    """Losses by layer, the allocation, errors over depth, and the outputs of the worst modules."""
    yield _losses(study)
    if given:
        yield _allocation(study, given)
    if any(module.mean_square_error for module in study.readings.modules):
        yield _depth(study)
        yield _worst(study)


def place_of(name: str) -> str:
    """What a layer is called within its block; numbers of experts are not told apart."""
    block = re.search(r"(?:^|\.)\d+\.", name)
    return re.sub(r"\d+", "*", name[block.end() :] if block else name)


def _grid(
    values: Mapping[str, float], joined: Callable[[float, float], float] = operator.add
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """By place and block, and the names of the places; what shares a square is joined."""
    places = list(dict.fromkeys(map(place_of, values)))
    grid = np.full((len(places), 1 + max(map(block_of, values))), np.nan)
    for name, value in values.items():
        at = places.index(place_of(name)), block_of(name)
        grid[at] = value if np.isnan(grid[at]) else joined(grid[at], value)
    return grid, places


def _heat_height(places: Sequence[str]) -> float:
    return 0.9 + 0.28 * len(places)


def _label(axis: Any, places: Sequence[str]) -> None:
    axis.set_yticks(range(len(places)), places)
    axis.set_xlabel("block")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _losses(study: Study) -> Chart:
    scheme = study.cell.quant.name
    order = ranked(study.readings, scheme)
    shares = {layer.name: share for layer, share in order}
    names = [layer.name for layer in study.readings.layers if layer.name in shares]
    grid, places = _grid({name: shares[name] for name in names})
    figure, (axis,) = panels(1, 9, _heat_height(places))
    largest = np.nanmax(grid)
    norm = LogNorm(max(np.nanmin(grid), _LEAST_SHARE * largest), largest, clip=True)
    image = axis.imshow(grid, aspect="auto", cmap="viridis", norm=norm)
    _label(axis, places)
    bar = figure.colorbar(image, ax=axis, pad=0.01)
    bar.set_label("share of the loss", color=TEXT)
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(colors=TEXT, which="both")
    worst, share = order[0]
    title = f"{worst.name} has the largest share of the loss under {scheme}: {share:.0%}"
    return Chart("losses", title, figure)


def _allocation(study: Study, given: Mapping[str, str]) -> Chart:
    sizes = {
        scheme: fmean(
            8 * layer.effects[scheme].stored_bytes / layer.weights
            for layer in study.readings.layers
            if scheme in layer.effects
        )
        for scheme in set(given.values())
    }
    schemes = sorted(sizes, key=lambda scheme: sizes[scheme])
    numbers = {name: float(schemes.index(scheme)) for name, scheme in given.items()}
    grid, places = _grid(numbers, max)  # of several experts in one place the largest scheme shows
    figure, (axis,) = panels(1, 9, _heat_height(places) + 0.3)
    colours = [COLOURS[4], COLOURS[0], COLOURS[1], COLOURS[5], *COLOURS][: len(schemes)]
    axis.imshow(
        grid, aspect="auto", cmap=ListedColormap(colours), vmin=-0.5, vmax=len(schemes) - 0.5
    )
    _label(axis, places)
    handles = [
        Patch(color=colour, label=f"{scheme} ({sizes[scheme]:.3g} bits)")
        for colour, scheme in zip(colours, schemes, strict=True)
    ]
    legend(figure, "upper right", handles, columns=len(handles))
    counts = [sum(value == scheme for value in given.values()) for scheme in schemes]
    parts = (f"{n} layers {scheme}" for n, scheme in zip(counts, schemes, strict=True))
    return Chart("allocation", f"The allocation: {', '.join(parts)}", figure)


def _depth(study: Study) -> Chart:
    scheme, layers = study.cell.quant.name, {layer.name for layer in study.readings.layers}
    lines: dict[str, list[Module]] = defaultdict(list)
    for module in study.readings.modules:
        if module.name in layers:
            lines[place_of(module.name)].append(module)
    figure, axes = panels(2, 10, 3.6)
    quantities = (
        ("error, share of the output (root mean square)", _relative_error),
        ("1 - cosine of the outputs", _turned),
    )
    colours = {place: COLOURS[i % len(COLOURS)] for i, place in enumerate(lines)}
    for axis, (name, value) in zip(axes, quantities, strict=True):
        for place, modules in lines.items():
            blocks = [block_of(module.name) for module in modules]
            values = [value(module) or np.nan for module in modules]
            style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1}
            axis.plot(blocks, values, color=colours[place], **style)
        logarithmic(axis, "y")
        axis.set_xlabel("block")
        axis.set_ylabel(name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid()
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3, label=place)
        for place, colour in colours.items()
    ]
    legend(figure, "right upper", handles)
    last = [module for module in study.readings.modules if _relative_error(module)][-1]
    title = (
        f"Errors over depth with every layer under {scheme}: of the output of {last.name} they are"
        f" {_relative_error(last):.1%}"
    )
    return Chart("depth", title, figure)


def _turned(module: Module) -> float:
    return max(1 - module.cosine, 0.0)


def _relative_error(module: Module) -> float:
    square = module.mean_square
    return float(np.sqrt(module.mean_square_error / square)) if square else 0.0


def _worst(study: Study) -> Chart:
    worst = sorted(
        (module for module in study.readings.modules if module.points),
        key=lambda module: module.cosine,
    )
    rows = -(-len(worst) // _COLUMNS)
    figure, axes = panels(_COLUMNS, 9, 0.3 + 2.7 * rows, rows)
    for axis, module in zip(axes, worst, strict=False):
        published, quantized = zip(*module.points, strict=True)
        axis.scatter(published, quantized, s=5, color=COLOURS[0], linewidths=0)
        axis.axline((0, 0), slope=1, color=GRID, linewidth=0.8)
        axis.set_title(f"{module.name}\ncosine {module.cosine:.3f}", color=TEXT, fontsize=7)
        axis.set_xlabel("as published")
        axis.set_ylabel("quantized")
    for axis in axes[len(worst) :]:
        axis.remove()
    title = f"Outputs of the {len(worst)} modules that keep the least of their direction"
    return Chart("worst", title, figure)
