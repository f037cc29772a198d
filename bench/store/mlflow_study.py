"""A sensitivity study in MLflow: one run with what was asked, what the layers and allocations come
to as metrics, both as tables, and the study's page, pictures and record as artifacts.

It is logged when everything is on disk, and once: the run belongs to the study's folder.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mlflow.entities import Metric, Param

from bench.analysis.mixed import Budget, Mixed
from bench.analysis.sensitivity import (
    PLAIN,
    agreement,
    bits_per_weight,
    factor,
    loss_nats,
    measured_kl_nats,
    ranked,
    sums,
)
from bench.analysis.stats import ALPHA, Estimate, mean_interval
from bench.config.settings import Tracking
from bench.record.redact import redacted
from bench.record.sensitivity import Layer, Readings, Study
from bench.store import mlflow_record as logged
from bench.store.database import tracking_uri
from bench.store.mlflow_address import (
    experiment_named,
    opened_client,
    translated,
    where_to_look,
    whose,
)
from bench.store.mlflow_record import milliseconds, rounded

LAYERS, ALLOCATIONS = "layers.json", "allocations.json"  # the tables


def log_study(
    tracking: Tracking,
    folder: Path,
    study: Study,
    budget: Budget | None,
    given: Sequence[Mixed],
    note: str,
) -> str:
    """Log a study that lies in its folder; returns where to look at it.

    Args:
        given: the allocation and its controls; empty without a budget.
        note: what came out, in words.

    Raises:
        TrackingError: when MLflow does not take it.
    """
    outputs = folder.resolve().parent.parent  # outputs/sensitivity/ID
    uri = tracking_uri(tracking, outputs)
    ended_at = milliseconds(study.started_at + study.took_s)
    with translated(uri):
        client = opened_client(uri, outputs)
        experiment_id = experiment_named(tracking.experiment, client, uri, outputs)
        tags = _tags(folder, study, note) | {"bench.place": whose(outputs)}
        name = f"sensitivity {study.cell.model.name} {study.cell.quant.name}"
        started_at = milliseconds(study.started_at)
        run_id = client.create_run(experiment_id, started_at, tags, run_name=name).info.run_id
        numbers = dict(_numbers(study.readings, given))
        metrics = [Metric(key, rounded(value), ended_at, 0) for key, value in numbers.items()]
        metrics.append(Metric("study_s", rounded(study.took_s), ended_at, 0))
        client.log_batch(run_id, metrics, [*logged.params(study.cell), *_params(study, budget)])
        client.log_table(run_id, layer_table(study.readings, given), LAYERS)
        if given:
            client.log_table(run_id, _allocation_table(given), ALLOCATIONS)
        for file in (*sorted(folder.glob("sensitivity.*")), *sorted(folder.glob("*.png"))):
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id, "FINISHED", ended_at)
    return where_to_look(uri, f"/#/experiments/{experiment_id}/runs/{run_id}")


def _tags(folder: Path, study: Study, note: str) -> dict[str, str]:
    tags = {
        **logged.source_tags(study.commit),
        "bench.kind": "sensitivity",
        "bench.study_id": folder.name,
        "bench.host": study.host.device_name,
        logged.NOTE: note[: logged.LONGEST_NOTE],
    }
    return logged.hidden(tags)


def _params(study: Study, budget: Budget | None) -> list[Param]:
    asked = {
        "asked": redacted(study.asked),
        "schemes": ",".join(study.schemes),
        "text": study.text,
        "window_tokens": str(study.window_tokens),
    }
    asked |= {} if budget is None else {"budget": budget.typed}
    values = {key: value[: logged.LONGEST_VALUE] for key, value in asked.items()}
    return [Param(f"sensitivity.{key}", value) for key, value in values.items()]


def _numbers(readings: Readings, given: Sequence[Mixed]) -> Iterator[tuple[str, float]]:
    """Metrics; of a scheme, or of an allocation, under its name."""
    for trial in readings.trials:
        scheme = trial.name.removeprefix("all ")
        if trial.name.startswith("all "):
            yield f"kl_nats/{scheme}", measured_kl_nats(trial).value
    for scheme, timing in readings.timings.items():
        held = [layer.effects[scheme] for layer in readings.layers if scheme in layer.effects]
        size = sum(effect.stored_bytes for effect in held)
        yield f"bits_per_weight/{scheme}", bits_per_weight(readings, size)
        yield f"decode_step_s/{scheme}", fmean(timing.decode_step_s)
        found = None if scheme == PLAIN else agreement(readings, scheme)
        if found is not None:
            yield f"rank_correlation/{scheme}", found.estimate
            yield f"rank_correlation_output_error/{scheme}", found.output_error
    of_sets = sums(readings)
    if of_sets:
        yield "measured_over_summed", factor(of_sets).value
    for each in given:
        yield f"predicted_bits_per_weight/{each.name}", each.bits_per_weight
        yield f"predicted_weight_bytes/{each.name}", each.stored_bytes
        yield f"predicted_kl_nats/{each.name}", each.kl_nats.value
        if each.step_s is not None:
            yield f"predicted_tpot_s/{each.name}", each.step_s.value


def layer_table(readings: Readings, given: Sequence[Mixed]) -> dict[str, list[Any]]:
    """Every layer under every scheme, as columns: the schemes in turn, a scheme's worst layer
    first; which scheme the allocation gives it."""
    rows = [
        _row(readings, layer, scheme, share)
        for scheme in readings.timings
        if scheme != PLAIN
        for layer, share in ranked(readings, scheme)
    ]
    if given:
        rows = [{**row, "allocated": given[0].schemes[row["layer"]]} for row in rows]
    return {key: [row[key] for row in rows] for key in rows[0]}


def _row(readings: Readings, layer: Layer, scheme: str, share: float) -> Mapping[str, Any]:
    effect, timing = layer.effects[scheme], readings.timings[scheme]
    measured = effect.measured_kl_nats
    times = timing.layer_decode_s.get(layer.name), timing.layer_prefill_s.get(layer.name)
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "scheme": scheme,
        "share_of_loss": rounded(share),
        **_interval("kl_nats", mean_interval(loss_nats(effect), 1 - ALPHA)),
        "estimated_kl_nats": rounded(fmean(effect.estimated_kl_nats)),
        "measured_kl_nats": None if measured is None else rounded(fmean(measured)),
        "output_error": rounded(effect.output_error),
        "cosine": rounded(effect.cosine),
        "weights": layer.weights,
        "stored_bytes": effect.stored_bytes,
        "decode_s": None if times[0] is None else rounded(times[0]),
        "prefill_s": None if times[1] is None else rounded(times[1]),
    }


def _allocation_table(given: Sequence[Mixed]) -> dict[str, list[Any]]:
    rows = [
        {
            "quant": each.name,
            "weight_bytes": each.stored_bytes,
            "bits_per_weight": rounded(each.bits_per_weight),
            **_interval("kl_nats", each.kl_nats),
            **_interval("tpot_s", each.step_s),
        }
        for each in given
    ]
    return {key: [row[key] for row in rows] for key in rows[0]}


def _interval(name: str, of: Estimate | None) -> dict[str, float | None]:
    values = (None, None, None) if of is None else (of.value, of.low, of.high)
    numbers = (None if v is None or math.isinf(v) else rounded(v) for v in values)
    return dict(zip((name, f"{name}_low", f"{name}_high"), numbers, strict=True))
