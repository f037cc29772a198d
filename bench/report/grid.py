"""The tables of a sweep before anybody has decided where to show them: terminal, page and ticket
print the same ``Grid``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.columns import coordinate, pairs
from bench.analysis.comparison import Comparison
from bench.analysis.divergence import ranked_kl_nats
from bench.analysis.metrics import METRICS, MIB, Metric
from bench.analysis.notes import Finding
from bench.analysis.operators import per_step_s
from bench.analysis.pareto import at_equal_memory
from bench.analysis.verdict import Change
from bench.record.measurement import PhaseProfile, ProfiledPhase
from bench.record.result import Result

SPEEDUPS = {"tpot_s": "decode speedup", "ttft_s": "prefill speedup"}
_PAGE_ONLY = (
    "prefill_tok_s",
    "output_tok_s",
    "rss_peak_bytes",
    "perplexity",
    "perplexity_stride512",
    "choice_accuracy",
    "mbu",
    "bw_attained",
    "j_per_output_tok",
)
# By heading, from the least telling on: what a narrow terminal leaves out first
_LEAST_TELLING = (
    "weights MiB",
    "bound by",
    "decode tok/s",
    "cost/Mtok in",
    "net J/token",
    "flips %",
    "top-1 %",
    "memory MiB",
    "VRAM peak MiB",
    "prefill speedup",
    "KL nat",
    "cost/Mtok out",
    "decode speedup",
    "TTFT ms",
    "TPOT ms",
)
STAYS = len(_LEAST_TELLING)
_SHOWN_VERSIONS = ("torch", "transformers", "bitsandbytes", "torchao")
_PHASES: dict[ProfiledPhase, str] = {
    "prefill": "prefill, ms under the profiler",
    "decode": "decode step, ms under the profiler",
}
_NAMED = 0.10  # a part of the difference that is worth its words
_TOO_SMALL_S = 5e-6


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in a table."""

    text: str
    sort: float | None = None  # a number to sort by
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """What stands above the entries."""

    heading: str
    is_number: bool = False
    is_brief: bool = True  # has a place on a terminal too
    shows_interval: bool = False  # there
    is_axis: bool = False  # tells rows apart
    wraps: bool = False  # its entries may be broken at spaces

    @property
    def telling(self) -> int:
        """How much it says, among the columns that a narrow terminal has to choose from."""
        is_named = self.heading in _LEAST_TELLING and not self.is_axis
        return _LEAST_TELLING.index(self.heading) if is_named else STAYS


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: ``rows`` have an entry for each of ``columns``."""

    columns: tuple[Column, ...]
    rows: list[list[Entry]]
    title: str = ""
    lead: str = ""  # what to know before reading it


def axes(names: Iterable[str]) -> list[Column]:
    """The columns that tell rows apart."""
    return [Column(name, is_axis=True) for name in names]


def cells(comparison: Comparison) -> Grid:
    """Every cell with its numbers: what varies, the metrics that some cell has, the verdicts."""
    results, values = comparison.results, comparison.values
    metrics = [m for m in METRICS if m.heading and any(m.key in v for v in values.values())]
    tasks = list(dict.fromkeys((s.task, s.metric) for r in results for s in r.tasks))
    ended_badly = any(result.outcome.status != "ok" for result in results)
    has_prompts = any(result.cell.workload.bucket for result in results)
    columns = [
        *axes(comparison.columns),
        *([Column("prompt tokens", True)] if has_prompts else []),
        *(Column(m.heading, True, m.key not in _PAGE_ONLY) for m in metrics),
        *(Column(f"{task} {score}", True, False) for task, score in tasks),
        *(Column(SPEEDUPS[metric], shows_interval=True) for metric in comparison.speedups),
        *([Column("bound by", wraps=True)] if comparison.bound_by else []),
        *([Column("outcome")] if ended_badly else []),
    ]
    rows = []
    for result in results:
        row = place(comparison, result)
        row += [_prompt_tokens(result)] if has_prompts else []
        row += [_number(metric, values[result.cell_id], result) for metric in metrics]
        row += [_score(result, task, score) for task, score in tasks]
        row += [_speedup(of.get(result.cell_id)) for of in comparison.speedups.values()]
        if comparison.bound_by:
            cause = comparison.bound_by.get(result.cell_id)
            row.append(Entry("-" if cause is None else cause.text))
        if ended_badly:
            row.append(Entry(result.outcome.status if result.outcome.status != "ok" else ""))
        rows.append(row)
    return Grid(tuple(columns), rows)


def marked(comparison: Comparison, marks: Mapping[str, str]) -> Grid:
    """The same with letters at the end of each row that a legend explains."""
    table = cells(comparison)
    rows = [
        [*row, Entry(marks.get(result.cell_id, ""))]
        for result, row in zip(comparison.results, table.rows, strict=True)
    ]
    return Grid((*table.columns, Column("note")), rows)


def place(comparison: Comparison, result: Result) -> list[Entry]:
    """What tells a cell apart, an entry for each column."""
    texts = [coordinate(result.cell, column) for column in comparison.columns]
    return [Entry(text, float(text) if text.isdigit() else None) for text in texts]


def _prompt_tokens(result: Result) -> Entry:
    """Of each row, which nothing but the tokenizer knows."""
    counts = [m.prompt_tokens for m in result.measurements[:1]]
    return Entry(str(counts[0]), counts[0]) if counts else Entry("-")


def _number(metric: Metric, values: Mapping[str, float], result: Result) -> Entry:
    if metric.key not in values:
        return Entry("-")
    low, high = values.get(f"{metric.key}_low"), values.get(f"{metric.key}_high")
    interval = ""
    if low is not None and high is not None:
        interval = f"({metric.text(low)} to {metric.text(high)})"
    value = values[metric.key]
    rank = ranked_kl_nats(result.divergence) if metric.key == "kl_nats" else value
    return Entry(metric.text(value), rank, interval)


def _score(result: Result, task: str, metric: str) -> Entry:
    score = next((s for s in result.tasks if (s.task, s.metric) == (task, metric)), None)
    if score is None:
        return Entry("-")
    error = (
        "" if score.standard_error is None else f"\N{PLUS-MINUS SIGN} {score.standard_error:.2f}"
    )
    return Entry(f"{score.value:.2f}", score.value, error)


def _speedup(change: Change | None) -> Entry:
    if change is None:
        return Entry("-")
    if change.low is None or change.high is None:
        return Entry(f"{change.ratio:.2f}x ?", change.ratio)
    interval = f"({change.low:.2f}-{change.high:.2f})"
    return Entry(f"{change.ratio:.2f}x {change.word}", change.ratio, interval)


def conditions(comparison: Comparison) -> str:
    """What holds for every cell of the table."""
    results = comparison.results
    if not results:
        return "no cell has ended"
    configurations, host = [result.cell for result in results], results[0].host
    parts = []
    if len({cell.model.name for cell in configurations}) == 1:
        parts.append(configurations[0].model.name)
    if len(weights := {cell.model.weights for cell in configurations}) == 1:
        parts += [f"{kind} weights" for kind in weights - {"pretrained"}]
    if len({cell.workload.name for cell in configurations}) == 1:
        parts.append(f"workload {configurations[0].workload.name}: {_tokens(results)}")
    devices = {cell.device for cell in configurations}
    parts.append(host.device_name if devices == {"cuda"} else host.cpu_name)
    threads = {cell.threads for cell in configurations}
    if devices == {"cpu"} and len(threads) == 1:
        parts.append(f"{threads.pop()} threads")
    parts += [f"{name} {host.versions[name]}" for name in _SHOWN_VERSIONS if name in host.versions]
    if (paid := comparison.sweep.price_per_hour) is not None:
        cost = f"cost per million tokens, in the currency of price_per_hour={paid:g}"
        parts.append(f"{cost}, of a machine always busy with that phase at that batch")
    return ", ".join(parts)


def _tokens(results: Sequence[Result]) -> str:
    prompts = {m.prompt_tokens for result in results for m in result.measurements}
    news = {result.cell.workload.new_tokens for result in results}
    counts = [
        f"{min(lengths)} {kind}"
        for lengths, kind in ((prompts, "prompt"), (news, "new"))
        if len(lengths) == 1
    ]
    return f"{' + '.join(counts)} tokens" if counts else "lengths as below"


def notes(comparison: Comparison) -> list[str]:
    """Every finding, a line each."""
    return [note(comparison, finding) for finding in comparison.findings]


def note(comparison: Comparison, finding: Finding) -> str:
    """A finding in one line, with the cells that it holds for."""
    places = {result.cell_id: comparison.place(result) for result in comparison.results}
    if not finding.cells:
        return finding.sentence
    if len(finding.cells) == len(places) > 1 and not any(amount for _, amount in finding.cells):
        return f"every cell: {finding.sentence}"
    where = [
        f"{places[cell]} ({amount})" if amount else places[cell] for cell, amount in finding.cells
    ]
    return f"{'; '.join(where)}: {finding.sentence}"


def equal_memory(comparison: Comparison) -> Grid | None:
    """The best batch of each value of the compared axis, within a few budgets of memory."""
    groups, budgets = at_equal_memory(comparison.results, comparison.values, comparison.axis)
    rows = [
        [Entry(f"{size / MIB:,.0f} MiB"), *(_best(comparison, result) for result in best)]
        for size, best in budgets
    ]
    headings = ("peak memory at most", *groups)
    return Grid(tuple(map(Column, headings)), rows, "At equal memory") if rows else None


def _best(comparison: Comparison, result: Result | None) -> Entry:
    if result is None:
        return Entry("none fits")
    output = comparison.values[result.cell_id]["output_tok_s"]
    return Entry(f"{output:,.1f} tok/s at batch {result.cell.batch}")


def profiles(comparison: Comparison) -> list[Grid]:
    """Where the time went, of sweeps with ``profile=true``: a table for each phase, cells down and
    kinds of operation across."""
    profiled = [result for result in comparison.results if result.profile is not None]
    return [_profile(comparison, profiled, phase) for phase in _PHASES] if profiled else []


def _profile(comparison: Comparison, profiled: Sequence[Result], phase: ProfiledPhase) -> Grid:
    times = {r.cell_id: per_step_s(p) for r in profiled if (p := _phase(r, phase)) is not None}
    longest: dict[str, float] = {}
    for kinds_s in times.values():
        for kind, seconds in kinds_s.items():
            longest[kind] = max(seconds, longest.get(kind, 0.0))
    kinds = [kind for kind, seconds in longest.items() if seconds > _TOO_SMALL_S]
    kinds.sort(key=lambda kind: -longest[kind])
    rows = []
    for result in profiled:
        own = times.get(result.cell_id)
        if own is not None:
            parts = [own.get(kind) for kind in kinds] + [sum(own.values())]
            numbers = [Entry("-") if s is None else Entry(f"{s * 1e3:.2f}", s) for s in parts]
            rows.append([*place(comparison, result), *numbers])
    numbered = [Column(kind, True) for kind in (*kinds, "all")]
    return Grid((*axes(comparison.columns), *numbered), rows, _PHASES[phase])


def profile_reasons(comparison: Comparison) -> list[str]:
    """For each profiled cell with a profiled baseline, what its decode step spends more and less
    on."""
    against = comparison.against
    profiled = {r.cell_id: r for r in comparison.results if r.profile is not None}
    sentences = []
    for cell, base in pairs(list(profiled.values()), against) if against is not None else []:
        ours, theirs = _phase(profiled[cell], "decode"), _phase(profiled[base], "decode")
        if ours is not None and theirs is not None:
            difference = _difference(per_step_s(ours), per_step_s(theirs))
            place = comparison.place(profiled[cell])
            sentences.append(f"{place}: a decode step takes {difference} than {against}")
    return sentences


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
    phases = () if result.profile is None else result.profile.phases
    return next((profile for profile in phases if profile.phase == phase), None)
