"""What a sweep prints: the grid before anything runs, and the table that it ends with."""

import string
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    JustifyMethod,
    RenderableType,
    RenderResult,
)
from rich.table import Table
from rich.text import Text

from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison, compare
from bench.analysis.metrics import MIB
from bench.analysis.notes import Finding
from bench.record.result import Result, is_timed
from bench.report import foreign
from bench.report import grid as grids
from bench.report.grid import Column, Entry, Grid, axes
from bench.store import foreign as foreign_files
from bench.store.files import Stored, read_growths, read_place, read_predictions

_WIDTH = 160  # where there is no terminal
_OF_FILES = 400  # nothing is left out there
_MOST_FINDINGS = 3
_MOST_NAMED = 2  # cells in a line
_BETWEEN = 3  # a space, the divider, a space


def say(text: str) -> None:
    """To the user, beside the results."""
    print(text, file=sys.stderr)


def say_damage(stored: Stored) -> None:
    """Which results cannot be read; nothing when all can."""
    for reason in stored.damaged.values():
        say(f"left out: {reason}")


def compared(folder: Path, price_per_hour: float | None = None) -> Comparison:
    """What lies in a sweep's folder, analysed; what cannot be read is named.

    Args:
        price_per_hour: of the machine, in place of the sweep's own; None: as recorded.

    Raises:
        StoreError: when it is not a sweep's.
    """
    stored = read_place(folder)
    say_damage(stored)
    sweep = stored.sweep
    if price_per_hour is not None:
        sweep = replace(sweep, price_per_hour=price_per_hour)
    predictions = read_predictions(folder, stored.results)
    earlier, imported = read_growths(folder), foreign_files.read(folder)
    return compare(stored.results, sweep, predictions, earlier, imported)


def summary(comparison: Comparison, brief: bool = True) -> RenderableType:
    """The table with its numbers, and what to know about them. ``brief``: only what has a place on
    a terminal."""
    if not comparison.results:
        return Text("no cell has ended")
    marks, lines = legend(comparison) if brief else ({}, grids.notes(comparison))
    cells = grids.marked(comparison, marks) if marks else grids.cells(comparison)
    tables = map(Fitted, [cells, *grids.profiles(comparison)])
    lines = [*grids.profile_reasons(comparison), *lines]
    ours: list[RenderableType] = [
        Text(grids.conditions(comparison), "dim"),
        *tables,
        *map(Text, lines),
    ]
    return Group(*ours, *_foreign(comparison, brief))


def _foreign(comparison: Comparison, brief: bool) -> Iterator[RenderableType]:
    """What was imported, below our own."""
    for table in foreign.tables(comparison):
        about = f"{table.title}, {foreign.TITLE}"
        yield Text(f"\n{about}: {table.lead}" if table.lead else f"\n{about}", "dim")
        yield Fitted(replace(table, title=""))
    notes = foreign.notes(comparison)
    shown = notes[:_MOST_FINDINGS] if brief else notes
    yield from map(Text, shown)
    if len(notes) > len(shown):
        yield Text(f"{len(notes) - len(shown)} more on what was imported: see the report")


def legend(comparison: Comparison) -> tuple[dict[str, str], list[str]]:
    """The findings that matter most, a line each, and by cell_id the letters that stand for them
    where they hold for more cells than a line names.

    All outcomes count as one, and so does what the speedups mean; what comes after the first three
    is only counted.
    """
    kinds: list[str] = []
    marks: dict[str, str] = {}
    lines, letters, left_out = [], iter(string.ascii_lowercase), 0
    for finding in comparison.findings:
        kind = finding.sentence if finding.kind == "doubt" else finding.kind
        kinds += [kind] if kind not in kinds else []
        if kinds.index(kind) >= _MOST_FINDINGS:
            left_out += 1
        elif len(finding.cells) <= _MOST_NAMED:
            lines.append(grids.note(comparison, finding))
        else:
            is_everywhere = len(finding.cells) == len(comparison.results)
            mark = "every cell" if is_everywhere else next(letters)
            lines.append(f"{mark}: {finding.sentence}{_amounts(finding)}")
            for cell, _ in () if is_everywhere else finding.cells:
                marks[cell] = marks.get(cell, "") + mark
    if left_out:
        lines.append(f"{left_out} more note{'s' if left_out > 1 else ''}: see the report")
    return marks, lines


def _amounts(finding: Finding) -> str:
    amounts = list(dict.fromkeys(amount for _, amount in finding.cells if amount))
    more = ", ..." if len(amounts) > _MOST_NAMED else ""
    return f" ({', '.join(amounts[:_MOST_NAMED])}{more})" if amounts else ""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A grid at whatever width there is, no number cut: the least telling columns go first; where
    the others do not fit either, each row is a record of its own."""

    grid: Grid

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        columns = self.grid.columns
        brief = [i for i, column in enumerate(columns) if column.is_brief]
        kept = list(brief)
        while _edged(_narrowest(self.grid, i) for i in kept) > options.max_width:
            least = min(kept, key=lambda i: columns[i].telling)
            if columns[least].telling == grids.STAYS:
                yield from _records(self.grid, brief)
                return
            kept.remove(least)
        yield _table(self.grid, kept, options.max_width)
        gone = [columns[i].heading for i in brief if i not in kept]
        if gone:
            yield Text(f"no room for: {', '.join(gone)}", "dim")


def _edged(widths: Iterable[int]) -> int:
    """The width of a table whose columns have these."""
    widths = list(widths)
    return sum(widths) + _BETWEEN * (len(widths) - 1) + 2


def _narrowest(grid: Grid, i: int) -> int:
    """The least width that a column can have."""
    pieces = [piece for row in grid.rows for piece in _pieces(grid.columns[i], row[i])]
    return max(map(cell_len, (*grid.columns[i].heading.split(), *pieces)))


def _pieces(column: Column, entry: Entry) -> list[str]:
    """What is never broken: a name, a number with its word, an interval; a word of a sentence."""
    if column.wraps:
        return entry.text.split()
    return [entry.text, entry.interval] if column.shows_interval else [entry.text]


def _whole(column: Column, entry: Entry) -> str:
    return " ".join(filter(None, _pieces(column, entry)))


def _table(grid: Grid, kept: Sequence[int], width: int) -> Table:
    table = Table(
        title=grid.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    widths = {i: _narrowest(grid, i) for i in kept}
    spare = width - _edged(widths.values())
    for i in kept:
        column = grid.columns[i]
        wanted = max(cell_len(text) for text in (column.heading, *_column(grid, i)))
        more = min(spare, wanted - widths[i])
        spare, widths[i] = spare - more, widths[i] + more
        justify: JustifyMethod = "right" if column.is_number else "left"
        table.add_column(column.heading, justify=justify, width=widths[i])
    for row in grid.rows:
        # A value may hold brackets, which a plain string would take for markup
        table.add_row(*(Text(_cell(grid.columns[i], row[i], widths[i])) for i in kept))
    return table


def _column(grid: Grid, i: int) -> list[str]:
    return [_whole(grid.columns[i], row[i]) for row in grid.rows]


def _cell(column: Column, entry: Entry, width: int) -> str:
    """An interval has a line of its own where there is no room beside its number."""
    text = _whole(column, entry)
    is_broken = column.shows_interval and cell_len(text) > width
    return "\n".join(_pieces(column, entry)) if is_broken else text


def _records(grid: Grid, kept: Sequence[int]) -> Iterator[Text]:
    if grid.title:
        yield Text(grid.title, "italic")
    for row in grid.rows:
        parts = [(grid.columns[i], _whole(grid.columns[i], row[i])) for i in kept]
        names = [f"{c.heading}={text}" for c, text in parts if c.is_axis]
        yield Text("\n" + " ".join(names), "bold")
        rest = [f"{c.heading} {text}" for c, text in parts if not c.is_axis and text.strip("-")]
        yield Text(", ".join(rest))
    yield Text("")


def as_text(comparison: Comparison) -> str:
    """The whole of it without colours, for files."""
    plain = Console(width=_OF_FILES, color_system=None, force_terminal=False, highlight=False)
    with plain.capture() as capture:
        plain.print(summary(comparison, brief=False))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def console() -> Console:
    """For results: as wide as the terminal, and wide enough for the table where there is none."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=_WIDTH)


def dry_run(
    comparison: Comparison,
    needs_bytes: Mapping[str, tuple[int, int]],
    wall_s: Mapping[str, float],
) -> RenderableType:
    """The grid before anything is loaded, one row a cell.

    Args:
        comparison: of the records as a sweep would begin with them.
        needs_bytes: by cell_id, what weights and KV cache take, and that with activations; a cell
            without a prediction is left out.
        wall_s: by cell_id, how long a process of the cell took when it last ran on this machine.
    """
    records, names = comparison.results, comparison.columns
    numbers = ("weights + KV MiB", "with activations", "seconds")
    columns = [*axes(names), *(Column(name, True) for name in numbers)]
    rows, known_s, unknown = [], 0.0, 0
    for record in records:
        wanted = 0 if is_timed(record) else record.cell.measure.passes - len(record.replicates)
        process_s = wall_s.get(record.cell_id)
        is_unknown = bool(wanted) and process_s is None
        total_s = wanted * (process_s or 0.0)
        known_s, unknown = known_s + total_s, unknown + is_unknown
        needs = needs_bytes.get(record.cell_id)
        texts = [
            *(coordinate(record.cell, name) for name in names),
            *(("?", "?") if needs is None else (f"{size / MIB:,.0f}" for size in needs)),
            "?" if is_unknown else f"{total_s:.0f}",
            _fate(record, wanted),
        ]
        rows.append(list(map(Entry, texts)))
    total = f"about {known_s / 60:.0f} min" if known_s >= 60 else f"about {known_s:.0f} s"
    lines = [
        f"{len(records)} cell{'s' * (len(records) != 1)}"
        + (f"; {total}, by earlier runs of these cells" if known_s else "")
    ]
    if unknown:
        lines.append(f"?: {unknown} cell{'s' * (unknown > 1)} never ran on this machine")
    lines.append("dry_run=true: nothing was loaded or measured")
    grid = Grid((*columns, Column("what would happen", wraps=True)), rows)
    return Group(Fitted(grid), *map(Text, lines))


def _fate(record: Result, wanted: int) -> str:
    if record.outcome.status != "ok" and record.reused_from is None:
        return f"{record.outcome.status}: {record.outcome.reason}"
    if not wanted:
        return f"taken from {record.reused_from} ({record.outcome.status})"
    processes = f"{wanted} process{'es' if wanted > 1 else ''}"
    if not record.replicates:
        return processes
    return f"{processes} more, {len(record.replicates)} taken from {record.reused_from}"
