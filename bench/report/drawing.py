"""How a picture of matplotlib becomes part of a page: SVG without script and network, sharp on
paper and on a phone.

Text and lines take the colours of the page around them, so one picture serves light and dark.
Colours of data are Okabe and Ito's (2008), which colour-blind readers can tell apart.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# Of a point and its name, in shares of the axes
_DOT, _CHARACTER, _NAME_HEIGHT, _MARGIN = 0.04, 0.016, 0.05, 0.03
_WIDTH_IN = 4.5  # of the figure that they are of; across they shrink as it grows
_SIDES = (
    ("left", "center", 1, 0),
    ("right", "center", -1, 0),
    ("center", "bottom", 0, 1),
    ("center", "top", 0, -1),
)
TEXT, GRID = "#010203", "#c8c9ca"  # stand for the page's own colours; a PNG has them
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
        chart.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    chart.figure.set_layout_engine("none")  # it is laid out: a second file takes no second search
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
    chart.figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def panels(columns: int, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Any]]:
    """An empty figure with its axes side by side, row after row. Units: inches."""
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
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_axisbelow(True)
    return figure, list(axes)


def colours_of(groups: Iterable[str]) -> dict[str, str]:
    """A colour for each, in their order; from the ninth on they come again."""
    unique = dict.fromkeys(groups)
    return {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(unique)}


def dots(colours: Mapping[str, str]) -> list[Line2D]:
    """What a legend of these groups shows."""
    return [
        Line2D([], [], marker="o", linestyle="", color=colour, label=group)
        for group, colour in colours.items()
    ]


def legend(figure: Figure, place: str, handles: Sequence[Artist], columns: int = 1) -> None:
    """Beside the axes (``right upper``) or above them (``upper right``): it covers no point."""
    style: dict[str, Any] = {"frameon": False, "labelcolor": TEXT, "fontsize": 8}
    style |= {"loc": f"outside {place}", "ncols": columns}
    figure.legend(handles=handles, **style)


def name_points(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """A name at the first side of each point on which it covers no other point or name; none where
    every side is taken."""
    axis.autoscale_view()  # else matplotlib only knows its limits when it draws
    to_axes = axis.transScale + axis.transLimits  # both sides in shares of the axes
    places = [to_axes.transform((x, y)) for x, y, _ in points]
    narrow = _WIDTH_IN / axis.figure.get_figwidth() * axis.get_gridspec().ncols
    dot = _DOT * narrow  # across
    # A little less than a dot, which its own name touches
    taken = [_box(across, up, 0.9 * dot, 0.9 * _DOT) for across, up in places]
    for (x, y, name), (across, up) in zip(points, places, strict=True):
        width = _CHARACTER * narrow * len(name)
        for sideways, upward, right, above in _SIDES:
            centre = across + right * (dot + width) / 2, up + above * (_DOT + _NAME_HEIGHT) / 2
            box = _box(*centre, width, _NAME_HEIGHT)
            if _is_free(box, taken):
                taken.append(box)
                style = {"fontsize": 7, "color": TEXT, "textcoords": "offset points"}
                offset = 6 * right, 6 * above
                axis.annotate(name, (x, y), xytext=offset, ha=sideways, va=upward, **style)
                break


def _box(across: float, up: float, width: float, height: float) -> tuple[float, ...]:
    """Left, right, lower and upper end of what lies around a place."""
    return across - width / 2, across + width / 2, up - height / 2, up + height / 2


def _is_free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]]) -> bool:
    """Whether nothing is there, and the axes go so far, or almost."""
    left, right, low, high = box
    if min(left, low) < -_MARGIN or max(right, high) > 1 + _MARGIN:
        return False
    return not any(left < r and le < right and low < h and lo < high for le, r, lo, h in taken)


def logarithmic(axis: Any, direction: str) -> None:
    """A log scale in plain numbers: matplotlib's own are formulas, and no text here is one.

    Call it after the points are drawn: an axis below two decades is divided at 1, 2 and 5.
    """
    axis.set(**{f"{direction}scale": "log"})
    scale = {"x": axis.xaxis, "y": axis.yaxis}[direction]
    low, high = scale.get_view_interval()
    scale.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
    scale.set_minor_formatter(NullFormatter())
