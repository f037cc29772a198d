"""How a picture of matplotlib becomes part of a page: SVG without script and network, sharp on
paper and on a phone.

Text and lines take the colours of the page around them, so one picture serves light and dark.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TEXT, GRID = "#010203", "#040506"  # stand for the page's own colours
mpl.rcParams["text.parse_math"] = False  # a label may hold dollar signs


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: ``title`` says what it shows, ``figure`` is matplotlib's."""

    name: str
    title: str
    figure: Figure


def svg(chart: Chart) -> str:
    """The chart as an element of a page, its title in it for who cannot see it."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.name}):
        out = io.StringIO()
        chart.figure.savefig(
            out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
        )
    text = out.getvalue()[out.getvalue().index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Ids of several pictures in one page
    text = re.sub(r' id="(?!defs)([^"]+)"', rf' id="{chart.name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{chart.name}-", text)
    text = text.replace(TEXT, "currentColor").replace(GRID, "var(--line)")
    return text.replace("<svg", f'<svg role="img" aria-label="{_escaped(chart.title)}"', 1)


def png(chart: Chart) -> bytes:
    """For where no page can be shown."""
    out = io.BytesIO()
    chart.figure.savefig(out, format="png", dpi=150, facecolor="white", bbox_inches="tight")
    return out.getvalue()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def panels(columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """An empty figure with its axes side by side. Units: inches."""
    style: Any = {
        "font.size": 9,
        "axes.edgecolor": GRID,
        "grid.color": GRID,
        "grid.linewidth": 0.5,
    }
    style |= {
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_axisbelow(True)
    return figure, list(axes)
