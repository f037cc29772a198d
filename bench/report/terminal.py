"""What a sweep prints: the grid before anything runs, and the table that it ends with."""

from collections.abc import Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.metrics import MIB
from bench.record.result import Result, is_timed
from bench.report import grid as grids
from bench.report.grid import Column, Entry, Grid

_WIDTH = 160  # where there is no terminal
_MOST_FINDINGS = 3


def summary(comparison: Comparison, brief: bool = True) -> RenderableType:
    """The table with its numbers, and what to know about them. ``brief``: only what has a place on
    a terminal."""
    if not comparison.results:
        return Text("no cell has ended")
    tables = [_table(grids.cells(comparison)), *map(_table, grids.profiles(comparison))]
    lines = [*grids.profile_reasons(comparison), *notes(comparison, brief)]
    return Group(Text(grids.conditions(comparison), "dim"), *tables, *map(Text, lines))


def notes(comparison: Comparison, brief: bool) -> list[str]:
    """The findings, a line each. ``brief``: all outcomes and what the speedups mean count as one
    each, and what comes after the first three is only counted."""
    kinds: list[str] = []
    shown, left_out = [], 0
    for finding in comparison.findings:
        kind = finding.sentence if finding.kind == "doubt" else finding.kind
        kinds += [kind] if kind not in kinds else []
        if brief and kinds.index(kind) >= _MOST_FINDINGS:
            left_out += 1
        else:
            shown.append(grids.note(comparison, finding))
    if left_out:
        shown.append(f"{left_out} more note{'s' if left_out > 1 else ''}: see the report")
    return shown


def _table(grid: Grid) -> Table:
    table = Table(
        title=grid.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    kept = [i for i, column in enumerate(grid.columns) if column.is_brief]
    for column in (grid.columns[i] for i in kept):
        if column.is_number:
            table.add_column(column.heading, justify="right")
        else:
            table.add_column(column.heading, no_wrap=True)
    for row in grid.rows:
        # A value may hold brackets, which a plain string would take for markup
        table.add_row(*(Text(_text(grid.columns[i], row[i])) for i in kept))
    return table


def _text(column: Column, entry: Entry) -> str:
    shows = column.shows_interval and entry.interval
    return f"{entry.text} {entry.interval}" if shows else entry.text


def as_text(comparison: Comparison) -> str:
    """The whole of it without colours, for files."""
    plain = Console(width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
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
    columns = [*map(Column, names), *(Column(name, True) for name in numbers)]
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
        f"{len(records)} cells" + (f"; {total}, by earlier runs of these cells" if known_s else "")
    ]
    if unknown:
        lines.append(f"?: {unknown} cells never ran on this machine")
    lines.append("dry_run=true: nothing was loaded or measured")
    table = _table(Grid((*columns, Column("what would happen")), rows))
    return Group(table, *map(Text, lines))


def _fate(record: Result, wanted: int) -> str:
    if record.outcome.status != "ok" and record.reused_from is None:
        return f"{record.outcome.status}: {record.outcome.reason}"
    if not wanted:
        return f"taken from {record.reused_from} ({record.outcome.status})"
    processes = f"{wanted} process{'es' if wanted > 1 else ''}"
    if not record.replicates:
        return processes
    return f"{processes} more, {len(record.replicates)} taken from {record.reused_from}"
