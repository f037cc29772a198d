"""What other tools measured, beside our cells: what was imported as a table of its own, and the
ratios of whatever has a counterpart here.

Nothing of it is attested, and its repetitions share a process, so it gets values and ratios and
never a verdict.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

from bench.analysis.comparison import Comparison
from bench.analysis.foreign import read
from bench.analysis.foreign.lm_eval import flips
from bench.analysis.foreign.pairs import Match, baseline_of, compared, matches
from bench.analysis.metrics import METRIC, METRICS, Metric
from bench.paths import PUBLISHED
from bench.record.foreign import Foreign
from bench.report.grid import Column, Entry, Grid, axes, place

TITLE = "foreign, not attested"
CAVEAT = (
    "Measured by others. Hardware, versions and protocols differ from ours, so only the ratios can"
    " be compared: each is to the baseline in its row, which differs in nothing else, on the same"
    " side."
)
NO_VERDICT = (
    "Read from files of other tools, as they say it. Nobody counted here what was in memory, and"
    " repetitions share one process: there are values and ratios, and no verdict."
)
_UNKNOWN = "unknown"
_COMPARED = ("output_tok_s", "decode_tok_s", "prefill_tok_s", "vram_peak_bytes", "weight_bytes")
_RATES = ("decode_tok_s", "prefill_tok_s", "output_tok_s")  # one of them stands for a row
_MOST_TASKS = 4  # that a terminal has room for
_NAMES = {"prompt_tokens": "prompt", "new_tokens": "new"}
_LENGTHS = ("prompt_tokens", "new_tokens")
_COMMON = ("file", "version", "engine", "model", "hardware", "attn")


def tables(comparison: Comparison) -> list[Grid]:
    """What was imported, a configuration a row, and a table for each kind of file of a tool."""
    kinds: dict[tuple[str, ...], list[Foreign]] = {}
    for of in comparison.foreign:
        kinds.setdefault((of.tool, *sorted(of.settings)), []).append(of)
    return [_rows(comparison, kind[0], foreign) for kind, foreign in kinds.items()]


def _rows(comparison: Comparison, tool: str, foreign: Sequence[Foreign]) -> Grid:
    varying = [name for name in _COMMON if len({getattr(of, name) for of in foreign}) > 1]
    lengths = [name for name in _LENGTHS if any(getattr(of, name) is not None for of in foreign)]
    shown = [*varying, "quant", "batch", *lengths]
    varied = [
        name for name in foreign[0].settings if len({of.settings[name] for of in foreign}) > 1
    ]
    metrics = [m for m in METRICS if m.heading and any(m.key in of.values for of in foreign)]
    tasks = list(dict.fromkeys(key for of in foreign for key in _tasks(of)))
    here = {id(match.there): match for match in matches(comparison.results, foreign)}
    has_ratios = any(baseline_of(of, foreign) is not None for of in foreign)
    columns = [
        *axes([*(_NAMES.get(name, name) for name in shown), *varied]),
        *(Column(m.heading, True) for m in metrics),
        *(Column(_task_name(key), True, len(tasks) <= _MOST_TASKS) for key in tasks),
        *([Column("ratio")] if has_ratios else []),
        *([Column("ratio here")] if here else []),
        *([Column("repetitions")] if any(of.samples for of in foreign) else []),
    ]
    table = []
    for of in foreign:
        row = [_known(getattr(of, name)) for name in shown]
        row += [_known(of.settings[name]) for name in varied]
        row += [_number(m, of) for m in metrics]
        row += [_task(of, key) for key in tasks]
        row += [_ratio(of, baseline_of(of, foreign))] if has_ratios else []
        row += [_ratio_here(here.get(id(of)), comparison)] if here else []
        row += [_repetitions(of)] if any(of.samples for of in foreign) else []
        table.append(row)
    return Grid(tuple(columns), table, tool, _in_common(foreign))


def _in_common(foreign: Sequence[Foreign]) -> str:
    """What is known of all of them alike."""
    values = [(name, {getattr(of, name) for of in foreign}) for name in _COMMON]
    values += [(name, {of.settings[name] for of in foreign}) for name in foreign[0].settings]
    known = [(name, *same) for name, same in values if len(same) == 1 and same != {None}]
    return ", ".join(f"{name} {value}" for name, value in known)


def _known(value: object) -> Entry:
    if value is None:
        return Entry(_UNKNOWN)
    return Entry(str(value), float(value) if isinstance(value, int) else None)


def _number(metric: Metric, of: Foreign) -> Entry:
    value = of.values.get(metric.key)
    return Entry("-") if value is None else Entry(metric.text(value), value)


def _tasks(of: Foreign) -> Iterator[str]:
    """The keys of its scores, without the ends of their intervals."""
    for key in of.values:
        scored, _, end = key.rpartition("_")
        is_end = end in ("low", "high") and scored in of.values
        if key.startswith("task_") and not is_end:
            yield key


def _task_name(key: str) -> str:
    return key.removeprefix("task_")


def _task(of: Foreign, key: str) -> Entry:
    if key not in of.values:
        return Entry("-")
    ends = [of.values.get(f"{key}_{end}") for end in ("low", "high")]
    known = [end for end in ends if end is not None]
    interval = f"({known[0]:.3f} to {known[1]:.3f})" if len(known) == 2 else ""
    return Entry(f"{of.values[key]:.3f}", of.values[key], interval)


def _ratio(of: Foreign, baseline: Foreign | None) -> Entry:
    """To the file's own baseline, of the rate that it has."""
    if baseline is None:
        return Entry("-")
    key = next((key for key in _RATES if key in of.values and key in baseline.values), None)
    if key is None:
        return Entry("-")
    ratio = of.values[key] / baseline.values[key]
    return Entry(f"{ratio:.2f}x of {baseline.quant}", ratio)


def _ratio_here(match: Match | None, comparison: Comparison) -> Entry:
    numbers = [] if match is None else compared(match, _RATES, comparison.values)
    if match is None or not numbers:
        return Entry("-")
    return Entry(
        f"{numbers[0].here_ratio:.2f}x of {match.here_baseline.cell.quant.name}",
        numbers[0].here_ratio,
    )


def _repetitions(of: Foreign) -> Entry:
    counts = [len(values) for values in of.samples.values()]
    return Entry(f"{counts[0]} in one process" if counts else "-")


def notes(comparison: Comparison) -> list[str]:
    """Of each file how it was measured and what it does not say, and answers that differ between
    two files."""
    of_files: dict[tuple[str, str], dict[str, None]] = {}
    for of in comparison.foreign:
        missing = of_files.setdefault((of.file, _measured(of)), {})
        missing |= dict.fromkeys(unknown(of))
    lines = [
        f"{file}: {measured}" + (f"; unknown: {', '.join(missing)}" if missing else "")
        for (file, measured), missing in of_files.items()
    ]
    return [*lines, *_flips(comparison.foreign)]


def _measured(of: Foreign) -> str:
    who = f"{of.tool} {of.version}" if of.version else of.tool
    return f"{who}: {of.protocol}" + (f" ({of.source})" if of.source else "")


def unknown(of: Foreign) -> list[str]:
    """What the file does not say."""
    fields = ("hardware", "model", "quant", "batch", *_LENGTHS, "attn")
    missing = [_NAMES.get(name, name) for name in fields if getattr(of, name) is None]
    return [*missing, *of.unknown]


def coordinate(of: Foreign, column: str) -> str:
    """Its value in a column that tells our cells apart."""
    names = {"workload.prompt_tokens": "prompt_tokens", "workload.new_tokens": "new_tokens"}
    value = getattr(of, names.get(column, column), None)
    return _UNKNOWN if value is None else str(value)


def described(of: Foreign) -> str:
    """All that its file says of it besides numbers, in a sentence."""
    fields = ("model", "hardware", "engine", "quant", "attn", "batch", "prompt_tokens")
    known = {name: getattr(of, name) for name in (*fields, "new_tokens")} | dict(of.settings)
    said = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return f"{_measured(of)}; {said}; unknown: {', '.join(unknown(of)) or 'nothing'}"


def _flips(foreign: Sequence[Foreign]) -> Iterator[str]:
    """Answers to the same items that changed from right to wrong, and back."""
    for first, other in combinations(foreign, 2):
        found = flips(first, other)
        if found is not None:
            yield (
                f"{other.file} beside {first.file}: of {found.items} answers to the same items"
                f" {found.worse} are wrong that were right, {found.better} right that were wrong"
            )


def beside(comparison: Comparison, foreign: Sequence[Foreign]) -> list[Grid]:
    """What others measured of the same configurations: a table for each source and hardware that
    has a cell of this sweep and a baseline of it."""
    sources: dict[str, list[Foreign]] = {}
    for of in foreign:
        lead = f"Source: {of.source or of.file}. Protocol: {of.protocol}."
        sources.setdefault(lead, []).append(of)
    return [
        grid
        for lead, configurations in sources.items()
        for grid in _beside(comparison, lead, configurations)
    ]


def published(comparison: Comparison) -> list[Grid]:
    """The same of the files in sweeps/published, but those that were imported."""
    imported = {of.digest for of in comparison.foreign}
    shipped = [
        of
        for file in PUBLISHED
        for of in read(file.read_text(encoding="utf-8"), file.name)
        if of.digest not in imported
    ]
    return beside(comparison, shipped)


def _beside(comparison: Comparison, lead: str, foreign: Sequence[Foreign]) -> Iterator[Grid]:
    names = [*comparison.columns, "baseline", "number"]
    numbers = ["there", "ratio there", "here", "ratio here"]
    columns = (*map(Column, names), *(Column(name, True) for name in numbers))
    by_hardware: dict[str, list[list[Entry]]] = {}
    for match in matches(comparison.results, foreign):
        table = by_hardware.setdefault(match.there.hardware or _UNKNOWN, [])
        table += _numbers(comparison, match)
    for hardware, table in by_hardware.items():
        if table:
            yield Grid(columns, table, hardware, lead)


def _numbers(comparison: Comparison, match: Match) -> Iterator[list[Entry]]:
    for number in compared(match, (*_COMPARED, "perplexity"), comparison.values):
        metric, is_alike = METRIC[number.key], number.key != "perplexity"
        name = metric.heading if is_alike else f"{metric.heading}, texts differ"
        yield [
            *place(comparison, match.here),
            Entry(_baselines(match)),
            Entry(name),
            Entry(metric.text(number.there) if is_alike else "-", number.there),
            Entry(f"{number.there_ratio:.2f}x", number.there_ratio),
            Entry(metric.text(number.here) if is_alike else "-", number.here),
            Entry(f"{number.here_ratio:.2f}x", number.here_ratio),
        ]


def _baselines(match: Match) -> str:
    there, cell = match.there_baseline.quant or _UNKNOWN, match.here_baseline.cell
    here = f"{cell.quant.name} {cell.attn.name}" if match.there.attn else cell.quant.name
    return there if there == here else f"{there} there, {here} here"
