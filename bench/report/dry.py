"""The grid before anything is loaded: what each cell would need, how long it would take, and what
would not run."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.comparison import coordinate, varying_columns
from bench.analysis.footprint import predict
from bench.record.result import Result, is_complete
from bench.report.terminal import MIB
from bench.store.files import last_wall_s


def grid(records: Sequence[Result], outputs: Path) -> RenderableType:
    """One row a cell. ``records``: as a sweep would begin with them."""
    cells = [record.cell for record in records]
    columns = varying_columns(cells) or ["model", "quant", "batch"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    table.add_column("weights + KV MiB", justify="right")
    table.add_column("with activations", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("what would happen")
    known_s, unknown = 0.0, 0
    for record in records:
        wanted = 0 if is_complete(record) else record.cell.measure.passes - len(record.passes)
        each_s = last_wall_s(outputs, record.cell_id, record.host)
        if wanted and each_s is None:
            unknown += 1
        known_s += wanted * (each_s or 0.0)
        seconds = "?" if wanted and each_s is None else f"{wanted * (each_s or 0.0):.0f}"
        row = [
            *(coordinate(record.cell, column) for column in columns),
            *_needs(record),
            seconds,
            _fate(record, wanted),
        ]
        table.add_row(*map(Text, row))
    total = f"about {known_s / 60:.0f} min" if known_s >= 60 else f"about {known_s:.0f} s"
    notes = [
        f"{len(cells)} cells" + (f"; {total}, by earlier runs of these cells" if known_s else "")
    ]
    if unknown:
        notes.append(f"?: {unknown} cells never ran on this machine")
    notes.append("dry_run=true: nothing was loaded or measured")
    return Group(table, *map(Text, notes))


def _needs(record: Result) -> tuple[str, str]:
    found = predict(record.cell)
    return (
        ("?", "?")
        if found is None
        else (f"{found.least_bytes / MIB:,.0f}", f"{found.total_bytes / MIB:,.0f}")
    )


def _fate(record: Result, wanted: int) -> str:
    if record.outcome.status != "ok" and record.reused_from is None:
        return f"{record.outcome.status}: {record.outcome.reason}"
    if not wanted:
        return f"taken from {record.reused_from} ({record.outcome.status})"
    processes = f"{wanted} process{'es' if wanted > 1 else ''}"
    return (
        f"{processes} more, {len(record.passes)} taken from {record.reused_from}"
        if record.passes
        else processes
    )
