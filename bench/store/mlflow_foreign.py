"""What was imported beside a sweep, in MLflow: nested runs that say ``bench.foreign``, with
parameters and metrics under the names that our own cells have."""

import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from bench.record.foreign import Foreign
from bench.store.mlflow_record import (
    LONGEST_VALUE,
    MOST_FOUND,
    NOTE,
    hidden,
    milliseconds,
    rounded,
)

FOREIGN = "foreign"  # bench.kind
_PARAMS = {
    "model": "model.name",
    "engine": "engine.name",
    "quant": "quant.name",
    "attn": "attn.name",
    "batch": "cell.batch",
    "prompt_tokens": "workload.prompt_tokens",
    "new_tokens": "workload.new_tokens",
    "hardware": "foreign.hardware",
}


def log_foreign(
    client: MlflowClient,
    experiment_id: str,
    of_sweep: str,
    tags: Mapping[str, str],
    foreign: Sequence[Foreign],
) -> None:
    """One run a configuration, in the place of all that the sweep has.

    Args:
        of_sweep: a filter that finds the sweep's runs.
        tags: of each run.
    """
    there = f"tags.`bench.kind` = '{FOREIGN}' and {of_sweep}"
    for run in client.search_runs([experiment_id], there, max_results=MOST_FOUND):
        client.delete_run(run.info.run_id)
    at_ms = milliseconds(time.time())
    for of in foreign:
        name = " ".join(filter(None, (of.tool, of.quant, of.file)))
        run = client.create_run(experiment_id, at_ms, {**tags, **_tags(of)}, run_name=name)
        metrics = [Metric(key, rounded(value), at_ms, 0) for key, value in of.values.items()]
        metrics += [
            Metric(f"repetition/{key}", rounded(value), at_ms, step)
            for key, values in of.samples.items()
            for step, value in enumerate(values)
        ]
        client.log_batch(run.info.run_id, metrics, _params(of), [])
        client.set_terminated(run.info.run_id, "FINISHED", at_ms)


def _tags(of: Foreign) -> dict[str, str]:
    said = [of.protocol, *([of.source] if of.source else [])]
    said += [f"unknown: {', '.join(of.unknown)}"] if of.unknown else []
    tags = {
        "bench.foreign": "true",
        "bench.file": of.file,
        "bench.tool": of.tool,
        "bench.status": "foreign, not attested",
        NOTE: f"**foreign, not attested**: {'; '.join(said)}",
    }
    return hidden(tags | ({} if of.version is None else {"bench.tool_version": of.version}))


def _params(of: Foreign) -> list[Param]:
    """What the file does not say is ``unknown``."""
    named = {key: getattr(of, name) for name, key in _PARAMS.items()}
    settings = {f"foreign.{name.replace(' ', '_')}": value for name, value in of.settings.items()}
    texts = {key: "unknown" if value is None else str(value) for key, value in named.items()}
    return [
        Param(key, value[:LONGEST_VALUE]) for key, value in hidden({**texts, **settings}).items()
    ]
