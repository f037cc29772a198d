"""lm-evaluation-harness: ``results_<date>.json`` with the scores of its tasks, and
``samples_<task>_<date>.jsonl`` with an answer a line.

Scores have our keys, so that they stand beside ours. A model's dtype is said there, how its weights
are stored is not: a checkpoint in 4 bits computes in 16, too. Two files of samples that have the
same items are compared item by item.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any

from bench.analysis.choices import Flips
from bench.analysis.foreign.file import File
from bench.analysis.metrics import task_values
from bench.record.foreign import Foreign
from bench.record.measurement import TaskScore, read_scores

TOOL = "lm-eval"
_OF_SAMPLES = "lm-eval's samples"
_ITEM = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl$")
_NO_SCORES = {"doc_id", "n_tokens"}
_PREFERRED = ("acc", "exact_match")  # of several scores, the one that says what is right


@dataclass(frozen=True, slots=True)
class _Config:
    model: str | None = None
    model_args: Mapping[str, Any] | str | None = None
    model_dtype: str | None = None
    batch_size: int | str | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class _Results:
    results: Mapping[str, Mapping[str, Any]]
    config: _Config = field(default_factory=_Config)
    shots: Mapping[str, int | None] = field(default_factory=dict)
    lm_eval_version: str | None = None
    git_hash: str | None = None
    model_name: str | None = None
    pretty_env_info: str | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    doc_id: int | str
    doc_hash: str = ""
    filter: str = "none"


def is_results(content: Any) -> bool:
    """Whether this is the file of a whole evaluation."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("results"), Mapping)
        and bool({"configs", "versions", "n-shot"} & content.keys())
    )


def is_samples(content: Any) -> bool:
    """Whether these are answers of a task."""
    return bool(content) and all(
        isinstance(line, Mapping) and {"doc_id", "resps"} <= line.keys() for line in content
    )


def read_results(file: File, content: Mapping[str, Any]) -> list[Foreign]:
    """All tasks of an evaluation as one configuration.

    Raises:
        ConfigError: when a field is of another type, or no task has a score.
    """
    given = file.fields(_Results, {**content, "shots": content.get("n-shot")}, TOOL)
    scores = read_scores(given.results)
    if not scores:
        raise file.refused("no score in it")
    arguments = _arguments(given.config.model_args)
    dtype = arguments.get("dtype") or given.config.model_dtype
    settings = {
        "dtype": None if dtype in (None, "auto") else str(dtype).removeprefix("torch."),
        "batch_size": given.config.batch_size,
        "limit": given.config.limit,
        "shots": _shots(given.shots),
    }
    quant = _quant(arguments)
    hardware = _hardware(given.pretty_env_info or "")
    return [
        Foreign(
            file=file.name,
            digest=file.digest,
            tool=TOOL,
            version=given.lm_eval_version or given.git_hash,
            protocol="tasks of lm-evaluation-harness, with the standard errors that it gives",
            hardware=hardware,
            model=given.model_name or _text(arguments.get("pretrained")),
            engine=given.config.model,
            quant=quant,
            settings={name: str(value) for name, value in settings.items() if value is not None},
            values=task_values(scores),
            unknown=("dtype",) if settings["dtype"] is None else (),
        )
    ]


def read_samples(file: File, content: Sequence[Mapping[str, Any]]) -> list[Foreign]:
    """The answers to one task as one configuration.

    Raises:
        ConfigError: when a field is of another type, or no line has a score.
    """
    lines = [(file.fields(_Sample, line, _OF_SAMPLES), line) for line in content]
    named = _ITEM.search(file.name)
    task = named["task"] if named else "task"
    scores = list(_scores(task, lines))
    if not scores:
        raise file.refused("no score in its lines")
    best = next((s.metric for s in scores if s.metric in _PREFERRED), scores[0].metric)
    whole = [
        (f"{sample.doc_id} {sample.doc_hash}".strip(), line[best])
        for sample, line in lines
        if sample.filter == lines[0][0].filter and best in line
    ]
    is_right_or_wrong = all(value in (0, 1) for _, value in whole)
    return [
        Foreign(
            file=file.name,
            digest=file.digest,
            tool=TOOL,
            protocol=f"{len(whole)} answers of lm-evaluation-harness to a task",
            settings={} if named is None else {"task": task},
            values=task_values(scores),
            right={item: bool(value) for item, value in whole} if is_right_or_wrong else {},
            unknown=("dtype",) if named else ("dtype", "name of the task"),
        )
    ]


def _scores(task: str, lines: Sequence[tuple[_Sample, Mapping[str, Any]]]) -> Iterator[TaskScore]:
    """The mean of each score over the answers, with its standard error."""
    values: dict[str, list[float]] = {}
    for sample, line in lines:
        names = line.get("metrics") or [name for name in line if name not in _NO_SCORES]
        for name in names:
            value = line.get(name)
            if isinstance(value, int | float) and isfinite(value):
                whole = name if sample.filter == "none" else f"{name}_{sample.filter}"
                values.setdefault(whole, []).append(float(value))
    for name, found in values.items():
        error = stdev(found) / sqrt(len(found)) if len(found) > 1 else None
        yield TaskScore(task, name, fmean(found), error)


def flips(first: Foreign, other: Foreign) -> Flips | None:
    """The second one's answers beside the first one's, of the items that both have; None where they
    have none in common."""
    is_same_task = first.settings.get("task") == other.settings.get("task")
    items = first.right.keys() & other.right.keys() if is_same_task else ()
    pairs = [(other.right[item], first.right[item]) for item in items]
    if not pairs:
        return None
    return Flips(len(pairs), pairs.count((False, True)), pairs.count((True, False)), 0)


def _arguments(given: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """``pretrained=gpt2,dtype=float16``, as older versions have it, as a mapping."""
    if isinstance(given, str):
        words = (word.partition("=") for word in given.split(","))
        return {name: value for name, equals, value in words if equals}
    return given or {}


def _shots(given: Mapping[str, int | None]) -> str | None:
    """One number where all tasks have the same."""
    if len(set(given.values())) == 1:
        return str(next(iter(given.values())))
    return ", ".join(f"{task} {shots}" for task, shots in given.items()) or None


def _quant(arguments: Mapping[str, Any]) -> str | None:
    if given := _text(arguments.get("quantization")):
        return given
    asked = ("load_in_4bit", "load_in_8bit")
    return next((name for name in asked if str(arguments.get(name)) == "True"), None)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _hardware(environment: str) -> str | None:
    """The first GPU that torch lists, else the CPU."""
    for pattern in (r"GPU 0: (.+)", r"Model name:\s+(.+)"):
        if found := re.search(pattern, environment):
            return found[1].strip()
    return None
