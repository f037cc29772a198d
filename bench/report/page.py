"""``python -m bench report SWEEP``, and the end of each sweep: all that it found on one page that
needs no network.

One HTML file for people, Markdown for tickets, CSV for other tools, PNG for slides. Everything in
it is computed from the results on disk, so an old sweep can be reported again after a formula was
corrected.
"""

import csv
import functools
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import markupsafe

from bench.analysis.bottlenecks import bottlenecks
from bench.analysis.comparison import coordinate, reference, varying_columns, verdicts
from bench.analysis.metrics import METRICS, derive
from bench.analysis.pareto import at_equal_memory
from bench.analysis.plausible import plausible
from bench.analysis.verdict import Verdict
from bench.paths import DATA
from bench.record.result import Result
from bench.report import breakdown, charts, elsewhere
from bench.report.advice import USUAL_KL_NATS, Answer, turning_points, use_cases
from bench.report.answers import side_by_side
from bench.report.notes import notes
from bench.report.terminal import MIB, SPEEDUPS, as_text, conditions, figure
from bench.store.files import Sweep, read_results, read_sweep, write_aside

_NUMBERS = (  # heading, metric, factor from SI, digits
    ("TTFT ms", "ttft_s", 1e3, 1),
    ("TPOT ms", "tpot_s", 1e3, 2),
    ("output tok/s", "output_tok_s", 1, 1),
    ("decode tok/s", "decode_tok_s", 1, 1),
    ("weights MiB", "weight_bytes", 1 / MIB, 1),
    ("VRAM peak MiB", "vram_peak_bytes", 1 / MIB, 0),
    ("RSS peak MiB", "rss_peak_bytes", 1 / MIB, 0),
    ("KL nat", "kl_nats", 1, None),
    ("top-1 %", "top1_agreement", 1e2, 1),
    ("perplexity", "perplexity", 1, 2),
    ("bandwidth used", "bw_attained", 1, 2),
    ("MBU", "mbu", 1, 2),
    ("J/token", "j_per_output_tok", 1, 3),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in the grid's table."""

    text: str
    sort: float | None = None  # a number to sort by
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Counsel:
    """What to use, as page and ticket say it."""

    use_cases: list[tuple[str, Answer]]
    turning_points: list[str]


def write_report(folder: Path) -> list[Path]:
    """Report on a sweep's folder, in it; returns the files, the page first.

    Raises:
        StoreError: when the folder is not a sweep's, or cannot be written to.
    """
    sweep, results = read_sweep(folder), list(read_results(folder))
    pictures = list(charts.charts(shown(results, _axis(results, sweep))))
    advice = _advice(results, sweep)
    files: dict[str, bytes] = {
        "report.html": page(results, sweep, advice, pictures).encode(),
        "report.md": markdown(results, sweep, advice).encode(),
        "report.csv": table(results).encode(),
        **{
            f"{chart.name}.png": charts.png(chart)
            for chart in pictures
            if chart.name in ("throughput", "tradeoffs")
        },
    }
    for name, content in files.items():
        write_aside(folder / name, content)
    return [folder / name for name in files]


def try_report(folder: Path) -> list[Path]:
    """The same at the end of a sweep, which must not be lost to its report: what goes wrong is
    said."""
    try:
        return write_report(folder)
    # A full disk, or a mistake of ours: the results are kept, the command shows it whole.
    except Exception as error:
        print(
            f"no report: {type(error).__name__}: {error}; `python -m bench report {folder}` tries"
            " again",
            file=sys.stderr,
        )
        return []


def page(
    results: Sequence[Result], sweep: Sweep, advice: Counsel, pictures: Sequence[charts.Chart]
) -> str:
    """The whole page, with its pictures in it."""
    cells = [result.cell for result in results]
    columns = varying_columns(cells) or ["model", "quant", "batch"]
    against = reference(cells, sweep.baseline)
    found = verdicts(results, against, sweep.margin, sweep.calibration)
    headings, rows = _grid(results, columns, found)
    profiles = breakdown.tables(results, columns)
    texts = side_by_side(results, columns)
    published = elsewhere.tables(results, columns)
    groups, budgets = at_equal_memory(results, _axis(results, sweep))
    sections = [("advice", "What to use"), ("grid", "Every cell")]
    sections += [("charts", "Pictures")] * bool(pictures) + [
        ("profile", "Where the time goes")
    ] * bool(profiles)
    sections += [("texts", "What it says")] * bool(texts) + [("elsewhere", elsewhere.TITLE)] * bool(
        published
    )
    sections += [("environment", "Environment")]
    return _template().render(
        title=(
            f"Which {against.axes if against else 'configuration'}?"
            f" {' '.join(w for w in sweep.overrides if '=' in w)}"
        ),
        conditions=conditions(results),
        sections=sections,
        usual_kl=USUAL_KL_NATS if any(result.divergence for result in results) else None,
        use_cases=advice.use_cases,
        turning_points=advice.turning_points,
        at_equal_memory=[
            (f"{size / MIB:,.0f} MiB", [_best(each) for each in best]) for size, best in budgets
        ],
        memory_groups=groups,
        headings=headings,
        rows=rows,
        notes=notes(results, columns, found, str(against)),
        # Drawn here, escaped there
        pictures=[(chart.title, markupsafe.Markup(charts.svg(chart))) for chart in pictures],
        profiles=[breakdown.as_rows(profile) for profile in profiles],
        reasons=breakdown.reasons(results, columns, against),
        texts=texts,
        published=published,
        caveat=elsewhere.CAVEAT,
        command=f"python -m bench {' '.join(sweep.overrides)}".strip(),
        commit=_commit(sweep),
        environment=_environment(results),
        metrics=METRICS,
    )


def _advice(results: Sequence[Result], sweep: Sweep) -> Counsel:
    known = plausible(results, sweep.calibration)
    return Counsel(use_cases(known, sweep), turning_points(known, sweep))


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(DATA)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.j2")


def _axis(results: Sequence[Result], sweep: Sweep) -> str:
    against = reference([result.cell for result in results], sweep.baseline)
    return next(iter(against.values)) if against is not None else "quant"


def shown(results: Sequence[Result], axis: str) -> list[charts.Shown]:
    """The cells that have a number, coloured by their value of ``axis``."""
    columns = varying_columns([result.cell for result in results]) or ["quant", "batch"]
    measured = [result for result in results if result.measurements]
    return [
        charts.Shown(r, _label(r, columns), coordinate(r.cell, axis), derive(r)) for r in measured
    ]


def _label(result: Result, columns: Sequence[str]) -> str:
    return " ".join(_short(column, coordinate(result.cell, column)) for column in columns)


def _short(column: str, value: str) -> str:
    """Names speak for themselves, numbers do not."""
    return value if value[:1].isalpha() else f"{column} {value}"


def _grid(
    results: Sequence[Result], columns: Sequence[str], found: Mapping[str, Mapping[str, Verdict]]
) -> tuple[list[str], list[list[Entry]]]:
    values = {result.cell_id: derive(result) for result in results}
    present = [row for row in _NUMBERS if any(row[1] in each for each in values.values())]
    bound_by = bottlenecks(results)
    headings = [
        *columns,
        *(row[0] for row in present),
        *(SPEEDUPS[metric] for metric in found),
        "bound by",
        "outcome",
    ]
    rows = []
    for result in results:
        row = [_coordinate(coordinate(result.cell, column)) for column in columns]
        row += [_number(values[result.cell_id], *spec[1:]) for spec in present]
        row += [_speedup(each.get(result.cell_id)) for each in found.values()]
        row.append(Entry(bound_by[result.cell_id].name if result.cell_id in bound_by else "-"))
        row.append(Entry(result.outcome.status))
        rows.append(row)
    return headings, rows


def _coordinate(text: str) -> Entry:
    return Entry(text, float(text)) if text.isdigit() else Entry(text)


def _number(values: Mapping[str, float], key: str, factor: float, digits: int | None) -> Entry:
    if key not in values:
        return Entry("-")
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    said = [
        figure(value * factor, digits) for value in (values[key], low, high) if value is not None
    ]
    return Entry(said[0], values[key], f"({said[1]} to {said[2]})" if len(said) == 3 else "")


def _speedup(found: Verdict | None) -> Entry:
    if found is None:
        return Entry("-")
    if found.low is None or found.high is None:
        return Entry(f"{found.ratio:.2f}x ?", found.ratio)
    return Entry(
        f"{found.ratio:.2f}x {found.word}", found.ratio, f"({found.low:.2f} to {found.high:.2f})"
    )


def _best(result: Result | None) -> str:
    if result is None:
        return "none fits"
    return f"{derive(result)['output_tok_s']:,.1f} tok/s at batch {result.cell.batch}"


def _commit(sweep: Sweep) -> str:
    of = sweep.provenance
    return "" if of.commit is None else of.commit[:12] + (" with changes" if of.changed else "")


def _environment(results: Sequence[Result]) -> list[tuple[str, str]]:
    if not results:
        return []
    host = results[0].host
    rows = [
        ("device", host.device_name),
        ("CPU", f"{host.cpu_name}, {host.cpus} usable"),
        ("memory", f"{host.memory_bytes / 2**30:.1f} GiB"),
    ]
    rows += [("driver", host.driver)] if host.driver is not None else []
    rows += [
        ("system", host.os),
        ("Python", host.python),
        *((name, version) for name, version in host.versions.items()),
    ]
    peaks = next((r.peaks for r in results if r.peaks is not None), None)
    if peaks is not None:
        rates = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in peaks.flops.items())
        rows.append(
            ("peaks", f"{peaks.read_bytes_s / 1e9:,.1f} GB/s; GFLOP/s: {rates} ({peaks.source})")
        )
    return rows


def markdown(results: Sequence[Result], sweep: Sweep, advice: Counsel) -> str:
    """Advice, the table and what others published, for a ticket."""
    columns = varying_columns([result.cell for result in results]) or ["model", "quant", "batch"]
    lines = [
        f"# {' '.join(w for w in sweep.overrides if '=' in w) or sweep.sweep_id}",
        "",
        "## What to use",
        "",
    ]
    for name, answer in advice.use_cases:
        lines += [
            f"- **{name}: {answer.headline}**",
            *(f"  - {sentence}" for sentence in answer.why),
        ]
    lines += [f"- {sentence}" for sentence in advice.turning_points]
    lines += ["", "## Every cell", "", "```", as_text(results, sweep), "```", ""]
    return "\n".join([*lines, *elsewhere.as_markdown(elsewhere.tables(results, columns))])


def table(results: Sequence[Result]) -> str:
    """Every metric of every cell as CSV, in SI units."""
    columns = varying_columns([result.cell for result in results]) or ["model", "quant", "batch"]
    values = [derive(result) for result in results]
    keys = list(dict.fromkeys(key for each in values for key in each))
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["cell_id", *columns, "outcome", "reason", *keys])
    for result, each in zip(results, values, strict=True):
        place = [coordinate(result.cell, column) for column in columns]
        rows.writerow(
            [
                result.cell_id,
                *place,
                result.outcome.status,
                result.outcome.reason or "",
                *(each.get(key, "") for key in keys),
            ]
        )
    return out.getvalue()
