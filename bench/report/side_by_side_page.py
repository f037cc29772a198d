"""``python -m bench report SWEEP SWEEP...``: several sweeps side by side on one page that needs no
network, and as Markdown and CSV."""

import csv
import io
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import markupsafe
from rich.console import Console

from bench.analysis.columns import coordinate, short_name
from bench.analysis.side_by_side import MEMORY, QUALITIES, Against, SideBySide
from bench.analysis.verdict import COMPARED, Change
from bench.report.drawing import (
    GRID,
    TEXT,
    Chart,
    colours_of,
    dots,
    legend,
    logarithmic,
    panels,
    svg,
)
from bench.report.gated import TIMES
from bench.report.page import template
from bench.report.side_by_side import LETTERS, grids, notes, summary, verdicts, what_differs
from bench.report.side_by_side import legend as letters_of
from bench.store.files import write_aside

_OF_FILES = 400  # characters: nothing is left out there
_MOST_ROWS = 24
_FARTHEST = 2.0  # times its value, that an end of a bar is drawn at
_HEADS = ("metric", "sweep", "value", "compared_with", "ratio", "low", "high", "verdict")


def write_comparison(folder: Path, found: SideBySide) -> list[Path]:
    """Write the page, the ticket and the table into a folder; returns the files, the page first.

    Raises:
        StoreError: when the folder cannot be written to.
    """
    files = {
        "comparison.html": page(found),
        "comparison.md": as_markdown(found),
        "comparison.csv": table(found),
    }
    for name, text in files.items():
        write_aside(folder / name, text.encode())
    return [folder / name for name in files]


def page(found: SideBySide) -> str:
    """The whole page, with its picture in it."""
    names = [side.sweep.sweep_id for side in found.sides]
    picture = chart(found)
    return template("side_by_side.html.j2").render(
        title=f"{', '.join(names)} side by side",
        letters=letters_of(found),
        differences=what_differs(found),
        verdicts=verdicts(found),
        picture=None
        if picture is None
        else (picture.title, markupsafe.Markup(svg(picture))),  # drawn here, escaped there
        tables=grids(found),
        notes=notes(found),
        commands=[
            (letter, f"python -m bench {shlex.join(side.sweep.overrides)}".strip())
            for letter, side in zip(LETTERS, found.sides, strict=False)
        ],
    )


def chart(found: SideBySide) -> Chart | None:
    """How many times as fast each cell is, with its interval; None where no time was compared."""
    drawn = [
        (f"{short_name(row.any_result.asked, found.columns)}", index, against.times)
        for row in found.rows
        for index, against in enumerate(row.against)
        if against is not None and against.times
    ]
    if not drawn:
        return None
    most = sorted(drawn, key=lambda each: -max(map(_moved, each[2].values())))[:_MOST_ROWS]
    shown = [each for each in drawn if each in most]
    colours = colours_of(LETTERS[index] for _, index, _ in drawn)
    figure, axes = panels(len(COMPARED), 9, 1.3 + 0.24 * len(shown))
    for axis, metric in zip(axes, COMPARED, strict=True):
        axis.axvspan(1 / (1 + found.margin), 1 + found.margin, color=GRID, alpha=0.5, linewidth=0)
        axis.axvline(1, color=TEXT, linewidth=0.8)
        for place, (_, index, times) in enumerate(shown):
            _draw(axis, place, times[metric], colours[LETTERS[index]])
        first = axis is axes[0]
        axis.set_yticks(range(len(shown)), [name for name, *_ in shown] if first else [])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        low, high = axis.get_xlim()
        if high > 2 * low:  # below that logarithms have hardly a round number, and are straight
            logarithmic(axis, "x")
        axis.grid(axis="x")
        axis.set_xlabel(f"{TIMES[metric]}: times as fast (bars: 95%, grey: margin)")
    if len(colours) > 1:
        legend(figure, "upper right", dots(colours), columns=len(colours))
    return Chart("ratios", _title(shown, len(drawn)), figure)


def _moved(change: Change) -> float:
    return abs(math.log(change.ratio))


def _draw(axis: Any, place: int, change: Change, colour: str) -> None:
    style: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 4, "capsize": 2}
    bars = None
    if change.low is not None and change.high is not None:
        # An interval with hardly a degree of freedom would leave no room for the others
        low, high = (
            max(change.low, change.ratio / _FARTHEST),
            min(change.high, change.ratio * _FARTHEST),
        )
        bars = [[change.ratio - low], [high - change.ratio]]
    axis.errorbar([change.ratio], [place], xerr=bars, **style)


def _title(shown: Sequence[tuple[str, int, Any]], cells: int) -> str:
    """What moved most."""
    name, index, metric, change = max(
        ((n, i, metric, change) for n, i, times in shown for metric, change in times.items()),
        key=lambda each: _moved(each[3]),
    )
    few = "" if len(shown) == cells else f" (the {len(shown)} that moved most, of {cells})"
    words = {change.word for _, _, times in shown for change in times.values()}
    if not words & {"faster", "slower", "different"}:
        return f"No cell is shown to have become faster or slower{few}"
    return (
        f"{TIMES[metric]} of {name} moved most: {change.ratio:.2f} times as fast in"
        f" {LETTERS[index]}{few}"
    )


def as_markdown(found: SideBySide) -> str:
    """The same for a ticket."""
    plain = Console(width=_OF_FILES, color_system=None, force_terminal=False, highlight=False)
    with plain.capture() as capture:
        plain.print(summary(found, brief=False))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    names = ", ".join(side.sweep.sweep_id for side in found.sides)
    return "\n".join([f"# {names} side by side", "", "```", *lines, "```", ""])


def table(found: SideBySide) -> str:
    """Every number as CSV, in SI units: a row for each cell, metric and sweep.

    ``ratio`` is how many times as fast for times, a difference for kl_nats, else how many times as
    much.
    """
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["cell_id", *found.columns, *_HEADS])
    for row in found.rows:
        cell = row.any_result
        place = [cell.cell_id, *(coordinate(cell.asked, name) for name in found.columns)]
        for key in (*COMPARED, MEMORY, *QUALITIES):
            for side, values, against in zip(found.sides, row.values, row.against, strict=True):
                if key in values:
                    compared = ["", "", "", "", ""]
                    if against is not None:
                        base = found.sides[against.base].sweep.sweep_id
                        compared = [base, *map(str, _numbers(against, key))]
                    rows.writerow([*place, key, side.sweep.sweep_id, values[key], *compared])
    return out.getvalue()


def _numbers(against: Against, key: str) -> Sequence[float | str]:
    nothing = ("", "", "", against.apart or "")
    if key == MEMORY:
        return nothing if against.memory is None else (against.memory, "", "", "")
    if key in QUALITIES:
        shift = against.quality.get(key)
        if shift is None:
            return nothing
        return shift.value.value, shift.value.low, shift.value.high, shift.word
    change = against.times.get(key)
    if change is None:
        return nothing
    low, high = (("" if end is None else end) for end in (change.low, change.high))
    return change.ratio, low, high, change.word
