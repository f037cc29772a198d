"""A sweep and a cell as MLflow's parameters, metrics, tags and tables, with nothing secret in them.

Units are SI; a value is rounded to six digits, because MLflow's tables show all that they are
given.
"""

import dataclasses
import getpass
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Metric, Param

from bench.analysis import growth as growths
from bench.analysis.bottlenecks import bottlenecks
from bench.analysis.columns import coordinate, is_group
from bench.analysis.comparison import Comparison
from bench.analysis.divergence import answer_differences, ranked_kl_nats
from bench.analysis.metrics import METRIC, METRICS, in_words
from bench.analysis.operators import per_step_s
from bench.analysis.readings import median_step_s
from bench.config.cell import Cell, identity
from bench.record.redact import redacted
from bench.record.result import Result
from bench.record.sweep import Sweep

# Of libyaml, where PyYAML was built with it
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

NOTE = "mlflow.note.content"  # the description of a run or an experiment

LONGEST_VALUE = 500
MOST_FOUND = 50_000  # runs in one search: MLflow's own limit
_BEST = (
    *("output_tok_s", "tpot_s", "ttft_s", "vram_peak_bytes", "rss_growth_bytes", "kl_nats"),
    *("cost/output_mtok", "j_per_output_tok_net"),
)
LONGEST_NOTE = 7900  # MLflow cuts tags at 8,000 characters
_MOST_STEPS = 900  # of the decode-step curve: a batch takes 1,000 metrics


def metrics(result: Result, values: Mapping[str, float]) -> list[Metric]:
    """What is derived from a result (``values``), its decode steps as a curve, its profile by kind
    of operation."""
    at = milliseconds(result.ended_at)
    logged = [Metric(key, rounded(value), at, 0) for key, value in values.items()]
    if result.measurements:
        curve = median_step_s(result.measurements)[:_MOST_STEPS]
        logged += [Metric("decode_step_s", rounded(step), at, i) for i, step in enumerate(curve)]
    for phase in result.profile.phases if result.profile is not None else ():
        # A slash makes a group of charts in the UI; spaces in names it takes as they are.
        parts = per_step_s(phase).items()
        logged += [
            Metric(f"profile_{phase.phase}_s/{kind}", rounded(s), at, 0) for kind, s in parts
        ]
    return logged


def growth(comparison: Comparison, cell_id: str) -> list[Metric]:
    """What a cell shares with those that differ from it in the length of their prompt alone."""
    for each in comparison.deep:
        for result in each.results:
            if result.cell_id == cell_id:
                at, shared = milliseconds(result.ended_at), growths.values(each.growth)
                return [Metric(key, rounded(value), at, 0) for key, value in shared.items()]
    return []


def params(cell: Cell) -> list[Param]:
    """Every field of a cell under its path; bare names like ``batch`` would collide with those of
    ``mlflow run``. Layers of their own are one text: MLflow takes no braces and stars in names."""
    asked = identity(cell)
    layers = asked["quant"].pop("layers", {})
    if layers:
        asked["quant"]["layers"] = "; ".join(f"{on}: {of['name']}" for on, of in layers.items())
    flat = redacted(dict(_flatten(asked, "")))
    named = {
        (path if "." in path else f"cell.{path}"): str(value)[:LONGEST_VALUE]
        for path, value in flat.items()
    }
    return [Param(key, value) for key, value in named.items()]


def configuration(result: Result) -> str:
    """The resolved cell as YAML, limits and requirements included."""
    plain = json.loads(json.dumps(redacted(dataclasses.asdict(result.cell))))  # tuples as lists
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def param_of(column: str) -> str:
    """The parameter under which a column of the table is logged."""
    if "." in column:
        return column
    return f"{column}.name" if is_group(column) else f"cell.{column}"


def source_tags(commit: str | None) -> dict[str, str]:
    """Who ran which code, as MLflow shows it."""
    source = {"name": "bench", "type": "LOCAL"} | ({} if commit is None else {"git.commit": commit})
    tags = {f"mlflow.source.{key}": value for key, value in source.items()}
    return {**tags, "mlflow.user": _user()}


def sweep_tags(sweep: Sweep) -> dict[str, str]:
    """How a sweep was asked for and which code runs it."""
    code = sweep.provenance
    tags = {
        **source_tags(code.commit),
        "bench.sweep_id": sweep.sweep_id,
        "bench.overrides": shlex.join(sweep.overrides),
        "bench.measuring": code.measuring,
    }
    if code.commit is not None:
        tags["bench.git_dirty"] = str(bool(code.changed)).lower()
    if code.lock is not None:
        tags["bench.lock"] = code.lock
    if sweep.price_per_hour is not None:
        tags["bench.price_per_hour"] = f"{sweep.price_per_hour:g}"
    if sweep.reproduces is not None:
        tags["bench.reproduces"] = sweep.reproduces
    return hidden(tags)


def cell_tags(result: Result, values: Mapping[str, float]) -> dict[str, str]:
    """Which cell it is, where it ran, how it ended, and its numbers in a sentence."""
    tags = {
        "bench.cell_id": result.cell_id,
        "bench.resume_key": result.resume_key,
        "bench.status": result.outcome.status,
        "bench.host": result.host.device_name,
    }
    if result.reused_from is not None:
        tags["bench.reused_from"] = result.reused_from
    if result.outcome.reason is not None:
        tags["bench.reason"] = redacted(result.outcome.reason)[:LONGEST_VALUE]
        tags[NOTE] = f"**{result.outcome.status}**: {result.outcome.reason}"
    elif result.measurements:
        tags[NOTE] = in_words(result, values)
    for cause in bottlenecks([result]).values():
        tags["bench.bottleneck"] = cause.name
        tags["bench.bottleneck_evidence"] = cause.evidence
    return hidden(tags)


def sweep_note(report: Sequence[Path], summary: str) -> str:
    """The advice and the table, as far as a tag holds them."""
    tickets = (file.read_text(encoding="utf-8") for file in report if file.suffix == ".md")
    text = next(tickets, f"```\n{summary}\n```")
    if len(text) < LONGEST_NOTE:
        return text
    return text.partition("## Every cell")[0][:LONGEST_NOTE]


def without_prompts(result: Result) -> Result:
    """The record without what was asked and answered, in words and tokens."""
    answers = result.answers
    if answers is None:
        return result
    divergence = answers.divergence
    if divergence is not None:
        divergence = dataclasses.replace(divergence, answers=())
    answers = dataclasses.replace(answers, samples=(), divergence=divergence)
    return dataclasses.replace(result, answers=answers)


def samples(result: Result) -> dict[str, list[Any]]:
    """The answers as columns. The prompt first: MLflow's comparison of artifacts makes one row for
    each value of the first column."""
    columns: dict[str, list[Any]] = {
        "prompt": [sample.prompt for sample in result.samples],
        "answer": [sample.answer for sample in result.samples],
        "new_tokens": [len(sample.tokens) for sample in result.samples],
        "ended": [sample.ended for sample in result.samples],
    }
    if differences := answer_differences(result):
        columns["first_difference"] = [answer.first_difference for answer in differences]
        columns["equal_share"] = [round(answer.equal_share, 3) for answer in differences]
    return columns


def parent_params(comparison: Comparison) -> list[Param]:
    """The axes of a sweep with their values."""
    cells = [result.cell for result in comparison.results]
    values = {
        column: dict.fromkeys(coordinate(cell, column) for cell in cells)
        for column in comparison.columns
    }
    return [Param(f"axis.{column}", ", ".join(of)[:LONGEST_VALUE]) for column, of in values.items()]


def shared_params(results: Sequence[Result]) -> list[Param]:
    """The parameters that all cells have alike."""
    (first, *others) = [{param.key: param.value for param in params(r.cell)} for r in results]
    return [
        Param(key, value)
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    ]


def best_cells(comparison: Comparison) -> tuple[list[Metric], dict[str, str]]:
    """By number that matters, the best value of any cell; and tags with which cell that is: of
    several whose divergence cannot be told from the noise floor, all of them."""
    metrics, tags = [], {}
    for key in _BEST:
        having = [r for r in comparison.measured if key in comparison.values[r.cell_id]]
        if not having:
            continue
        ranks = [_rank(key, r, comparison.values[r.cell_id]) for r in having]
        least = min(ranks)
        best = having[ranks.index(least)]
        value = rounded(comparison.values[best.cell_id][key])
        metrics.append(Metric(f"best/{key}", value, milliseconds(best.ended_at), 0))
        alike = [r for r, rank in zip(having, ranks, strict=True) if rank == least == 0] or [best]
        tags[f"bench.best.{key}"] = ", ".join(map(comparison.place, alike))[:LONGEST_VALUE]
    return metrics, tags


def _rank(key: str, result: Result, values: Mapping[str, float]) -> float:
    """Less is better. Only a divergence at the noise floor is 0."""
    if key == "kl_nats":
        return ranked_kl_nats(result.divergence)
    return -values[key] if METRIC[key].better == "higher" else values[key]


def cells(comparison: Comparison) -> dict[str, list[Any]]:
    """Every cell with what a person compares, as columns."""
    table: dict[str, list[Any]] = {
        column: [coordinate(result.cell, column) for result in comparison.results]
        for column in comparison.columns
    }
    table["status"] = [result.outcome.status for result in comparison.results]
    for key in (metric.key for metric in METRICS if metric.heading):
        values = [comparison.values[r.cell_id].get(key) for r in comparison.results]
        if any(value is not None for value in values):
            table[key] = [None if value is None else rounded(value) for value in values]
    return table


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no account of this number, as in some containers
        return str(os.getuid())


def rounded(value: float) -> float:
    """To six digits."""
    return float(f"{value:.6g}")


def milliseconds(seconds: float) -> int:
    """As MLflow counts time."""
    return round(seconds * 1000)


def hidden(tags: dict[str, str]) -> dict[str, str]:
    """Without what looks like a secret."""
    without: dict[str, str] = redacted(tags)
    return without


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flatten(part, f"{path}.{key}" if path else key)
    elif value is not None:
        yield path, json.dumps(value) if isinstance(value, list) else value
