"""The table that a sweep ends with: only columns that vary, then the numbers, then why a cell has
none."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.bottlenecks import bottlenecks
from bench.analysis.comparison import coordinate, reference, varying_columns, verdicts
from bench.analysis.metrics import derive
from bench.analysis.verdict import Verdict
from bench.record.result import Result
from bench.report import breakdown
from bench.report.notes import notes
from bench.store.files import Sweep

MIB = 2**20
_SHOWN_VERSIONS = ("torch", "transformers", "bitsandbytes")
SPEEDUPS = {"tpot_s": "decode speedup", "ttft_s": "prefill speedup"}
_WIDTH = 160  # where there is no terminal

# heading, metric, factor from SI, digits
_NUMBERS = (
    ("TTFT ms", "ttft_s", 1e3, 1),
    ("TPOT ms", "tpot_s", 1e3, 2),
    ("decode tok/s", "decode_tok_s", 1, 1),
    ("weights MiB", "weight_bytes", 1 / MIB, 1),
    ("KL nat", "kl_nats", 1, None),
    ("top-1 %", "top1_agreement", 1e2, 1),
    ("VRAM peak MiB", "vram_peak_bytes", 1 / MIB, 0),
    ("RSS peak MiB", "rss_peak_bytes", 1 / MIB, 0),
)


def summary(results: Sequence[Result], sweep: Sweep) -> RenderableType:
    """The grid with its numbers; below it the reason of each cell without one."""
    if not results:
        return Text("no cell has ended")
    cells = [result.cell for result in results]
    columns = varying_columns(cells) or ["model", "quant", "batch"]
    metrics = {result.cell_id: derive(result) for result in results}
    shown = [row for row in _NUMBERS if any(row[1] in values for values in metrics.values())]
    against = reference(cells, sweep.baseline)
    found = verdicts(results, against, sweep.margin, sweep.calibration)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for heading, *_ in shown:
        table.add_column(heading, justify="right")
    for metric in found:
        table.add_column(SPEEDUPS[metric], no_wrap=True)
    bound_by = bottlenecks(results)
    if bound_by:
        table.add_column("bound by", no_wrap=True)
    if any(result.outcome.status != "ok" for result in results):
        table.add_column("outcome", no_wrap=True)
    for result in results:
        values = metrics[result.cell_id]
        row = [coordinate(result.cell, column) for column in columns]
        row += [
            figure(values[key] * factor, digits) if key in values else "-"
            for _, key, factor, digits in shown
        ]
        row += [_verdict(each.get(result.cell_id)) for each in found.values()]
        if bound_by:
            row.append(bound_by[result.cell_id].name if result.cell_id in bound_by else "-")
        row.append(result.outcome.status if result.outcome.status != "ok" else "")
        # A value may hold brackets, which a plain string would take for markup
        table.add_row(*map(Text, row))
    profiles = breakdown.tables(results, columns)
    said = [
        *breakdown.reasons(results, columns, against),
        *notes(results, columns, found, str(against)),
    ]
    return Group(Text(conditions(results), "dim"), table, *profiles, *map(Text, said))


def figure(value: float, digits: int | None) -> str:
    """With so many digits after the point; None: two that matter, for what spans orders of
    magnitude."""
    return f"{value:,.{digits}f}" if digits is not None else f"{value:.2g}"


def conditions(results: Sequence[Result]) -> str:
    """What holds for every cell of the table."""
    if not results:
        return "no cell has ended"
    cells, host = [result.cell for result in results], results[0].host
    said = [cells[0].model.name] if len({cell.model.name for cell in cells}) == 1 else []
    if len({(workload := cell.workload).name for cell in cells}) == 1:
        said.append(f"workload {workload.name}: {_tokens(results)}")
    devices = {cell.device for cell in cells}
    said.append(host.device_name if devices == {"cuda"} else host.cpu_name)
    threads = {cell.threads for cell in cells}
    if devices == {"cpu"} and len(threads) == 1:
        said.append(f"{threads.pop()} threads")
    said += [f"{name} {host.versions[name]}" for name in _SHOWN_VERSIONS if name in host.versions]
    return ", ".join(said)


def _tokens(results: Sequence[Result]) -> str:
    prompts = {m.prompt_tokens for result in results for m in result.measurements}
    news = {result.cell.workload.new_tokens for result in results}
    counts = [
        f"{min(counts)} {kind}"
        for counts, kind in ((prompts, "prompt"), (news, "new"))
        if len(counts) == 1
    ]
    return f"{' + '.join(counts)} tokens" if counts else "lengths as below"


def _verdict(found: Verdict | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.ratio:.2f}x ?"
    return f"{found.ratio:.2f}x ({found.low:.2f}-{found.high:.2f}) {found.word}"


def as_text(results: Sequence[Result], sweep: Sweep) -> str:
    """The same without colours, for files."""
    plain = Console(width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    with plain.capture() as capture:
        plain.print(summary(results, sweep))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def console() -> Console:
    """For results: as wide as the terminal, and wide enough for the table where there is none."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=_WIDTH)
