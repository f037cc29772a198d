"""``python -m bench report SWEEP``, and the end of each sweep: all of it on one page that needs no
network.

One HTML file for people, Markdown for tickets, CSV for other tools, PNG for slides. All of them
print one ``Comparison``.
"""

import csv
import dataclasses
import functools
import io
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import markupsafe

from bench.analysis.advice import USUAL_KL_NATS
from bench.analysis.columns import coordinate
from bench.analysis.comparison import Comparison
from bench.analysis.foreign.llm_d_report import as_report
from bench.analysis.growth import QUANTITIES
from bench.analysis.metrics import METRICS
from bench.config.settings import Settings
from bench.paths import DATA, from_here
from bench.record.redact import redacted
from bench.record.result import Result
from bench.record.sweep import Sweep
from bench.report import charts, depth, drawing, foreign, grid
from bench.report.advice import to_run, turning_points, use_cases
from bench.report.answers import side_by_side
from bench.report.grid import Grid
from bench.report.terminal import as_text
from bench.store.files import CHOICE, write_aside

EXCHANGE = "benchmark_report_v0.2"  # folder with llm-d's format, a file a cell
# Words of a command line that are about the sweep, and not about what is measured
_OF_SETTINGS = frozenset(field.name for field in dataclasses.fields(Settings))
_AS_FILES = ("throughput", "tradeoffs", "depth")  # charts that are PNG files too


def write_report(folder: Path, comparison: Comparison, choice: str | None = None) -> list[Path]:
    """Write the report of a sweep into a folder; returns the files, the page first.

    Args:
        choice: the answer of ``bench choose``; None: the one that the folder has, if any.
    Raises:
        StoreError: when the folder cannot be written to.
    """
    pictures = list(charts.charts(comparison))
    if choice is None and (folder / CHOICE).is_file():
        choice = (folder / CHOICE).read_text(encoding="utf-8")
    files: dict[str, bytes] = {
        "report.html": page(comparison, pictures, choice).encode(),
        "report.md": markdown(comparison, choice).encode(),
        "report.csv": table(comparison).encode(),
        **({} if choice is None else {CHOICE: choice.encode()}),
        **{
            f"{chart.name}.png": drawing.png(chart) for chart in pictures if chart.name in _AS_FILES
        },
    }
    for name, content in files.items():
        write_aside(folder / name, content)
    _write_exchange(folder / EXCHANGE, comparison)
    return [folder / name for name in files]


def _write_exchange(folder: Path, comparison: Comparison) -> None:
    """Each measured cell as a Benchmark Report, for llm-d's tools and for ``import`` elsewhere."""
    sweep = comparison.sweep
    for result in comparison.measured:
        folder.mkdir(exist_ok=True)
        report = as_report(result, comparison.values[result.cell_id], sweep.provenance)
        content = json.dumps(redacted(report), indent=1, allow_nan=False)
        write_aside(folder / f"{result.cell_id}.json", content.encode())


def try_report(folder: Path, comparison: Comparison, choice: str | None = None) -> list[Path]:
    """The same at the end of a sweep, which no report may lose: a failure is printed."""
    try:
        return write_report(folder, comparison, choice)
    # A full disk, or a mistake of ours: the results are kept, the command shows it whole.
    except Exception as error:
        print(
            f"no report: {type(error).__name__}: {error}; `python -m bench report"
            f" {shlex.quote(from_here(folder))}` tries again",
            file=sys.stderr,
        )
        return []


def page(
    comparison: Comparison, pictures: Sequence[drawing.Chart], choice: str | None = None
) -> str:
    """The whole page, with its pictures in it.

    Args:
        choice: the answer of ``bench choose``, which stands instead of the usual advice.
    """
    results, sweep, against = comparison.results, comparison.sweep, comparison.against
    profiles, published = grid.profiles(comparison), foreign.published(comparison)
    imported = foreign.tables(comparison)
    growth, prompts = depth.grid(comparison), side_by_side(comparison)
    answers = use_cases(comparison) if choice is None else []
    sections = [
        ("advice", "What to use", True),
        ("grid", "Every cell", True),
        ("foreign", "Foreign, not attested", bool(imported)),
        ("charts", "Pictures", bool(pictures)),
        ("depth", "How times grow", growth is not None),
        ("profile", "Where the time goes", bool(profiles)),
        ("texts", "Sample answers", bool(prompts)),
        ("elsewhere", "Published elsewhere", bool(published)),
        ("threats", "Threats to validity", bool(comparison.threats)),
        ("environment", "Environment", True),
    ]
    return template("report.html.j2").render(
        title=_title(sweep, against.axes if against and choice is None else "configuration"),
        conditions=grid.conditions(comparison),
        sections=[(id_, name) for id_, name, is_there in sections if is_there],
        choice=choice,
        usual_kl=USUAL_KL_NATS if answers and any(r.divergence for r in results) else None,
        use_cases=answers,
        to_run=to_run(comparison, [answer for _, answer in answers]),
        turning_points=turning_points(comparison),
        at_equal_memory=grid.equal_memory(comparison),
        cells=grid.cells(comparison),
        notes=grid.notes(comparison),
        # Drawn here, escaped there
        pictures=[(chart.title, markupsafe.Markup(drawing.svg(chart))) for chart in pictures],
        depth=growth,
        profiles=profiles,
        reasons=grid.profile_reasons(comparison),
        prompts=prompts,
        imported=imported,
        no_verdict=foreign.NO_VERDICT,
        of_imported=foreign.notes(comparison),
        beside=foreign.beside(comparison, comparison.foreign),
        published=published,
        caveat=foreign.CAVEAT,
        threats=comparison.threats,
        command=f"python -m bench {shlex.join(sweep.overrides)}".strip(),
        commit=commit_of(sweep),
        environment=_environment(results),
        metrics=(*METRICS, *(QUANTITIES if comparison.deep else ())),
    )


@functools.cache
def template(name: str) -> jinja2.Template:
    """Of a page, from ``bench/data``."""
    loader = jinja2.FileSystemLoader(DATA)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["code"] = _code
    return environment.get_template(name)


def _code(line: str) -> markupsafe.Markup:
    """A line whose words between backticks, as a terminal shows them, are set as code."""
    escaped = str(markupsafe.escape(line))
    return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escaped))


def commit_of(sweep: Sweep) -> str:
    """The commit that a sweep ran at, and whether files differed from it; "" outside a checkout."""
    code = sweep.provenance
    changed = " with changes" if code.changed else ""
    return "" if code.commit is None else f"{code.commit[:12]}{changed}"


def _title(sweep: Sweep, what: str) -> str:
    """The question, with what was asked for: of the cells, not of where results go."""
    of_cells = (
        word
        for word in sweep.overrides
        if "=" in word and word.partition("=")[0].partition(".")[0] not in _OF_SETTINGS
    )
    return " ".join((f"Which {what}?", *of_cells))


def _environment(results: Sequence[Result]) -> list[tuple[str, str]]:
    if not results:
        return []
    host = results[0].host
    rows = [
        ("device", host.device_name),
        ("CPU", f"{host.cpu_name}, {host.cpus} usable"),
        ("memory", f"{host.memory_bytes / 2**30:.1f} GiB"),
        *([("driver", host.driver)] if host.driver is not None else []),
        ("system", host.os),
        ("Python", host.python),
        *host.versions.items(),
    ]
    peaks = next((result.peaks for result in results if result.peaks is not None), None)
    if peaks is not None:
        rates = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in peaks.flops.items())
        text = f"{peaks.read_bytes_s / 1e9:,.1f} GB/s; GFLOP/s: {rates} ({peaks.source})"
        rows.append(("peaks", text))
    return rows


def markdown(comparison: Comparison, choice: str | None = None) -> str:
    """Advice, the table and what others published, for a ticket. ``choice``: as of ``page``."""
    asked = " ".join(word for word in comparison.sweep.overrides if "=" in word)
    lines = [f"# {asked or comparison.sweep.sweep_id}", "", "## What to use", ""]
    lines += [] if choice is None else ["```", choice.rstrip(), "```"]
    for name, answer in use_cases(comparison) if choice is None else []:
        lines.append(f"- **{name}: {answer.headline}**")
        lines += [f"  - {sentence}" for sentence in answer.why]
    lines += [f"- {sentence}" for sentence in turning_points(comparison)]
    lines += ["", "## Every cell", "", "```", as_text(comparison), "```", ""]
    beside = foreign.beside(comparison, comparison.foreign)
    lines += ["## Foreign, beside ours", "", foreign.CAVEAT, ""] if beside else []
    for of_hardware in beside:
        lines += _as_markdown(of_hardware)
    published = foreign.published(comparison)
    lines += ["## Published elsewhere", "", foreign.CAVEAT, ""] if published else []
    for of_hardware in published:
        lines += _as_markdown(of_hardware)
    return "\n".join(lines)


def _as_markdown(of: Grid) -> list[str]:
    rows = [[column.heading for column in of.columns], ["---"] * len(of.columns)]
    rows += [[entry.text for entry in row] for row in of.rows]
    return [f"### {of.title}", "", of.lead, "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def table(comparison: Comparison) -> str:
    """Every metric of every cell as CSV, in SI units; what was imported comes after them."""
    every = [*comparison.values.values(), *(of.values for of in comparison.foreign)]
    keys = list(dict.fromkeys(key for values in every for key in values))
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["cell_id", *comparison.columns, "outcome", "reason", *keys])
    for result in comparison.results:
        values = comparison.values[result.cell_id]
        place = [coordinate(result.cell, column) for column in comparison.columns]
        ended = [result.outcome.status, result.outcome.reason or ""]
        rows.writerow([result.cell_id, *place, *ended, *(values.get(key, "") for key in keys)])
    for of in comparison.foreign:
        place = [foreign.coordinate(of, column) for column in comparison.columns]
        ended = [foreign.TITLE, foreign.described(of)]
        rows.writerow([of.file, *place, *ended, *(of.values.get(key, "") for key in keys)])
    return out.getvalue()
