"""The table that a sweep ends with: only columns that vary, then the numbers, then why a cell has none."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.compare import coordinate, reference, speedups, varying_columns
from bench.analysis.metrics import derive
from bench.result import Measurement, Result
from bench.spec import Baseline, Cell

MIB = 2**20
_SHOWN_VERSIONS = ("torch", "transformers", "bitsandbytes")
_CLOCKS_AGREE = 0.01
_WIDTH = 160  # where there is no terminal

# heading, metric, factor from SI, digits
_NUMBERS = (
    ("TTFT ms", "ttft_s", 1e3, 1),
    ("TPOT ms", "tpot_s", 1e3, 2),
    ("decode tok/s", "decode_tok_s", 1, 1),
    ("weights MiB", "weight_bytes", 1 / MIB, 1),
    ("VRAM peak MiB", "vram_peak_bytes", 1 / MIB, 0),
    ("RSS peak MiB", "rss_peak_bytes", 1 / MIB, 0),
    ("load s", "load_s", 1, 1),
)


def summary(results: Sequence[Result], baseline: Baseline) -> RenderableType:
    """The grid with its numbers; below it the reason of each cell without one."""
    if not results:
        return Text("no cell has ended")
    cells = [result.cell for result in results]
    columns = varying_columns(cells) or ["model", "quant", "batch"]
    metrics = {result.cell_id: derive(result) for result in results}
    shown = [row for row in _NUMBERS if any(row[1] in values for values in metrics.values())]
    against = reference(cells, baseline)
    ratios = speedups(results, against)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for heading, *_ in shown:
        table.add_column(heading, justify="right")
    if ratios:
        table.add_column("speedup", justify="right")
    if any(result.outcome.status != "ok" for result in results):
        table.add_column("outcome", no_wrap=True)
    for result in results:
        values = metrics[result.cell_id]
        row = [coordinate(result.cell, column) for column in columns]
        row += [f"{values[key] * factor:,.{digits}f}" if key in values else "-" for _, key, factor, digits in shown]
        if ratios:
            row.append(f"{ratios[result.cell_id]:.2f}x" if result.cell_id in ratios else "-")
        row.append(result.outcome.status if result.outcome.status != "ok" else "")
        table.add_row(*map(Text, row))  # a value may hold brackets, which a plain string would take for markup
    notes = [Text(note) for note in _notes(results, columns, str(against) if ratios else None)]
    return Group(_conditions(results), table, *notes)


def _conditions(results: Sequence[Result]) -> Text:
    """What holds for every cell of the table."""
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
    return Text(", ".join(said), "dim")


def _tokens(results: Sequence[Result]) -> str:
    prompts = {result.measurement.prompt_tokens for result in results if result.measurement is not None}
    news = {result.cell.workload.new_tokens for result in results}
    counts = [f"{min(counts)} {kind}" for counts, kind in ((prompts, "prompt"), (news, "new")) if len(counts) == 1]
    return f"{' + '.join(counts)} tokens" if counts else "lengths as below"


def _notes(results: Sequence[Result], columns: Sequence[str], against: str | None) -> list[str]:
    notes = []
    if against is not None:
        notes.append(f"speedup: decode tok/s relative to {against}, one process each, so without an interval")
    for result in results:
        if result.measurement is not None:
            place = " ".join(f"{column}={coordinate(result.cell, column)}" for column in columns)
            doubts = _doubts(result.cell, result.measurement)
            if result.outcome.reason is not None:  # ok, but
                doubts.append(result.outcome.reason)
            notes += [f"{place}: {doubt}" for doubt in doubts]
    reasons: dict[str, list[str]] = {}  # one sentence often holds for many cells
    for result in results:
        if result.outcome.status != "ok":
            place = " ".join(f"{column}={coordinate(result.cell, column)}" for column in columns)
            reasons.setdefault(f"{result.outcome.status}: {result.outcome.reason}", []).append(place)
    return notes + [f"{'; '.join(places)}: {reason}" for reason, places in reasons.items()]


def _doubts(cell: Cell, measurement: Measurement) -> list[str]:
    """What a reader should know before trusting a number."""
    doubts = []
    if measurement.clock_mismatch is not None and measurement.clock_mismatch > _CLOCKS_AGREE:
        doubts.append(f"host and device clocks differ by {measurement.clock_mismatch:.1%}")
    if measurement.decode_syncs and cell.decode.loop == "loop":
        doubts.append(f"{measurement.decode_syncs} operations waited for the device while decoding")
    return doubts


def as_text(results: Sequence[Result], baseline: Baseline) -> str:
    """The same without colours, for files."""
    plain = Console(width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    with plain.capture() as capture:
        plain.print(summary(results, baseline))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def console() -> Console:
    """For results: as wide as the terminal, and wide enough for the table where there is none."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=_WIDTH)
