"""Where the time went, of sweeps with ``profile=true``: a table for each phase, and why a cell is
slower in one sentence."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bench.analysis.comparison import Reference, coordinate, pairs
from bench.analysis.operators import per_step_s
from bench.record.measurement import PhaseProfile, ProfiledPhase
from bench.record.result import Result

_TITLES: dict[ProfiledPhase, str] = {
    "prefill": "prefill, ms under the profiler",
    "decode": "decode step, ms under the profiler",
}
_NAMED = 0.10  # a part of the difference that is worth its words
_TOO_SMALL_S = 5e-6


def tables(results: Sequence[Result], columns: Sequence[str]) -> list[Table]:
    """One for each phase, cells down and kinds of operation across; none without a profile."""
    profiled = [result for result in results if result.profile is not None]
    return [_table(profiled, columns, phase) for phase in _TITLES] if profiled else []


def _table(profiled: Sequence[Result], columns: Sequence[str], phase: ProfiledPhase) -> Table:
    found = {
        result.cell_id: per_step_s(each)
        for result in profiled
        if (each := _phase(result, phase)) is not None
    }
    longest = {
        kind: max(each.get(kind, 0.0) for each in found.values())
        for each in found.values()
        for kind in each
    }
    kinds = sorted(
        (kind for kind, s in longest.items() if s > _TOO_SMALL_S), key=lambda kind: -longest[kind]
    )
    table = Table(title=_TITLES[phase], title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for heading in (*kinds, "all"):
        table.add_column(heading, justify="right")
    for result in profiled:
        own = found.get(result.cell_id)
        if own is not None:
            times = [own.get(kind) for kind in kinds] + [sum(own.values())]
            row = [coordinate(result.cell, column) for column in columns]
            table.add_row(*map(Text, row + ["-" if s is None else f"{s * 1e3:.2f}" for s in times]))
    return table


def as_rows(table: Table) -> dict[str, Any]:
    """The same without a terminal: title, headings, rows."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    headings = [str(column.header) for column in table.columns]
    return {"title": table.title, "headings": headings, "rows": list(zip(*cells, strict=True))}


def reasons(
    results: Sequence[Result], columns: Sequence[str], against: Reference | None
) -> list[str]:
    """For each profiled cell with a profiled baseline, what its decode step spends more and less
    on."""
    profiled = {result.cell_id: result for result in results if result.profile is not None}
    found = []
    for cell, base in pairs(list(profiled.values()), against) if against is not None else []:
        ours, theirs = _phase(profiled[cell], "decode"), _phase(profiled[base], "decode")
        if ours is not None and theirs is not None:
            place = " ".join(
                f"{column}={coordinate(profiled[cell].cell, column)}" for column in columns
            )
            found.append(
                f"{place}: a decode step takes {_difference(per_step_s(ours), per_step_s(theirs))}"
                f" than {against}"
            )
    return found


def _difference(ours: dict[str, float], theirs: dict[str, float]) -> str:
    more = {kind: ours.get(kind, 0.0) - theirs.get(kind, 0.0) for kind in {*ours, *theirs}}
    total = sum(more.values())
    most = max(abs(s) for s in more.values())
    named = sorted(
        (kind for kind, s in more.items() if abs(s) >= _NAMED * most),
        key=lambda kind: -abs(more[kind]),
    )
    parts = ", ".join(f"{kind} {more[kind] * 1e3:+.2f}" for kind in named)
    return f"{abs(total) * 1e3:.2f} ms {'more' if total > 0 else 'less'} ({parts})"


def _phase(result: Result, phase: ProfiledPhase) -> PhaseProfile | None:
    assert result.profile is not None
    return next((each for each in result.profile.phases if each.phase == phase), None)
