"""The report's section "Published elsewhere": what others measured of the same configurations,
apart from our numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.analysis.comparison import coordinate
from bench.analysis.published import Match, Publication, compared, matches, read
from bench.paths import PUBLISHED
from bench.record.result import Result
from bench.report.terminal import MIB, figure

TITLE = "Published elsewhere"
CAVEAT = (
    "Measured by others. Hardware, versions and protocols differ from ours, so only the ratios can"
    " be compared: each is to the baseline in its row, which differs in nothing else, on the same"
    " side."
)

_NUMBERS = {  # by metric: what it is called, factor from SI, digits
    "output_tok_s": ("output tok/s", 1, 1),
    "decode_tok_s": ("decode tok/s", 1, 1),
    "prefill_tok_s": ("prefill tok/s", 1, 0),
    "vram_peak_bytes": ("VRAM peak MiB", 1 / MIB, 0),
    "weight_bytes": ("weights MiB", 1 / MIB, 1),
    "perplexity": ("perplexity, texts differ", None, None),  # so that only its ratio is shown
}


@dataclass(frozen=True, slots=True)
class Table:
    """What one source has for one piece of hardware; a row is its names and then its numbers."""

    hardware: str
    source: str
    protocol: str
    headings: list[str]
    rows: list[tuple[list[str], list[str]]]


def tables(results: Sequence[Result], columns: Sequence[str]) -> list[Table]:
    """One for each source and hardware that has a cell of this sweep and a baseline of it; none
    otherwise."""
    publications = [read(file.read_text(encoding="utf-8")) for file in PUBLISHED]
    return [
        table for publication in publications for table in _tables(results, columns, publication)
    ]


def _tables(
    results: Sequence[Result], columns: Sequence[str], publication: Publication
) -> Iterator[Table]:
    headings = [*columns, "baseline", "number", "there", "ratio there", "here", "ratio here"]
    by_hardware: dict[str, list[tuple[list[str], list[str]]]] = {}
    for match in matches(results, publication):
        by_hardware.setdefault(match.there.hardware, []).extend(_rows(match, columns))
    for hardware, rows in by_hardware.items():
        if rows:
            yield Table(hardware, publication.source, publication.protocol, headings, rows)


def _rows(match: Match, columns: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    place = [coordinate(match.here.cell, column) for column in columns]
    for each in compared(match, list(_NUMBERS)):
        name, factor, digits = _NUMBERS[each.key]
        there, here = (
            figure(value * factor, digits) if factor else "-" for value in (each.there, each.here)
        )
        yield (
            [*place, _baseline(match), name],
            [there, f"{each.there_ratio:.2f}x", here, f"{each.here_ratio:.2f}x"],
        )


def _baseline(match: Match) -> str:
    there, cell = match.there_baseline.quant, match.here_baseline.cell
    here = f"{cell.quant.name} {cell.attn.name}" if match.there.attn else cell.quant.name
    return there if there == here else f"{there} there, {here} here"


def as_markdown(found: Sequence[Table]) -> list[str]:
    """The section's lines for a ticket; none without a table."""
    lines = [f"## {TITLE}", "", CAVEAT, ""] if found else []
    for table in found:
        lines += [
            f"### {table.hardware}",
            "",
            f"Source: {table.source}. Protocol: {table.protocol}.",
            "",
        ]
        lines += [_line(table.headings), _line(["---"] * len(table.headings))]
        lines += [*(_line([*names, *numbers]) for names, numbers in table.rows), ""]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
