"""What a reader should know before trusting the numbers of a sweep, and why a cell has none.

A finding is one sentence and the cells that it holds for. The kinds come in the order of what
matters most: how cells ended, what the speedups mean, how times grow with the context, what became
of the answers, doubts about a number.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.analysis import choices
from bench.analysis.columns import BaselineAxes, identity_without
from bench.analysis.decoding import of_strategies
from bench.analysis.divergence import estimates
from bench.analysis.doubts import Doubt, doubts_about
from bench.analysis.readings import steady_drift
from bench.analysis.verdict import Change
from bench.record.result import Result
from bench.record.sensitivity import Prediction

Kind = Literal["outcome", "speedup", "depth", "quality", "doubt"]

_OPPOSITE = 0.03  # of logarithms: what is nearer to equal has no direction


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about some cells; ``cells`` is empty where it is about the whole sweep."""

    kind: Kind
    sentence: str
    cells: tuple[tuple[str, str], ...] = ()  # cell_id, and how much of it


def findings(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    speedups: Mapping[str, Mapping[str, Change]],
    against: BaselineAxes | None,
    predictions: Mapping[str, Prediction],
    of_depth: Sequence[str],
) -> list[Finding]:
    """Outcomes first, then what speedups mean, then depth, then quality, then doubts.

    Args:
        values: derived, by cell_id.
        predictions: by the name of ``quant``.
        of_depth: sentences on how times grow with the context.
    """
    outcomes = {r.cell_id: _outcome(r) for r in results}
    steady = steady_drift([m for r in results for m in r.measurements])
    doubts = doubts_about(results, values, steady)
    return [
        *_shared("outcome", outcomes),
        *_about_prompts(results),
        *(_about_speedups(speedups, against) if speedups else ()),
        *_shared("speedup", of_strategies(results)),
        *_shared("speedup", _contradicted(speedups)),
        *(Finding("depth", sentence) for sentence in of_depth),
        *_shared("quality", {r.cell_id: _of_choices(r) for r in results}),
        *_about_predictions(results, values, predictions),
        *_without_effect(results),
        *_about_references(results),
        *_about_published_grids(results),
        *itertools.chain.from_iterable(_shared("doubt", of_kind) for of_kind in doubts),
    ]


def _shared(kind: Kind, doubts: Mapping[str, Sequence[Doubt]]) -> list[Finding]:
    """One sentence often holds for many cells."""
    cells: dict[str, list[tuple[str, str]]] = {}
    for cell_id, of_cell in doubts.items():
        for sentence, amount in of_cell:
            cells.setdefault(sentence, []).append((cell_id, amount))
    return [Finding(kind, sentence, tuple(where)) for sentence, where in cells.items()]


def _about_speedups(
    speedups: Mapping[str, Mapping[str, Change]], against: BaselineAxes | None
) -> Iterator[Finding]:
    words = {change.word for of_metric in speedups.values() for change in of_metric.values()}
    text = f"speedup: how many times as fast as {against}, by minimum times"
    if "uncalibrated" not in words:
        yield Finding("speedup", f"{text}; intervals at 95% for all comparisons together")
        return
    yield Finding("speedup", text)
    yield Finding(
        "speedup",
        "?: one process per cell, so the noise between processes is unknown; use measure=standard,"
        " or run `python -m bench doctor --calibrate` once",
    )


def _about_prompts(results: Sequence[Result]) -> Iterator[Finding]:
    """What became of the prompts of files: a batch has one shape."""
    buckets: dict[str, None] = {}
    for result in results:
        for m in result.measurements[:1]:
            if m.given_tokens is not None:
                lengths = dict.fromkeys((min(m.given_tokens), max(m.given_tokens)))
                buckets[
                    f"{result.cell.workload.name} has {len(m.given_tokens)} of"
                    f" {' to '.join(map(str, lengths))} tokens, timed at {m.prompt_tokens}"
                ] = None
    if buckets:
        yield Finding(
            "doubt",
            f"prompts: {'; '.join(buckets)}. A batch takes the first ones of its bucket; where it"
            " has more rows, it takes them again from another token on",
        )


def _contradicted(
    speedups: Mapping[str, Mapping[str, Change]],
) -> dict[str, list[Doubt]]:
    """By cell_id, where medians and minimum times do not agree which cell is faster."""
    doubts: dict[str, list[Doubt]] = {}
    for metric, changes in speedups.items():
        for cell_id, change in changes.items():
            medians = change.medians_ratio
            if medians is None or (change.ratio - 1) * (medians - 1) >= 0:
                continue
            if max(abs(math.log(change.ratio)), abs(math.log(medians))) > _OPPOSITE:
                name = "prefill" if metric == "ttft_s" else "decode"
                text = f"by medians, which load of others moves, {name} says the opposite"
                doubts.setdefault(cell_id, []).append((text, f"{medians:.2f}x"))
    return doubts


def _without_effect(results: Sequence[Result]) -> Iterator[Finding]:
    """Two cells that differ in one setting and gave the same logits to the last bit: one of the
    two settings was not in force."""
    for axis in ("quant", "attn"):
        alike: dict[tuple[str, str], dict[str, Result]] = {}
        for result in results:
            digest = None if result.attestation is None else result.attestation.logits_digest
            if digest is not None and result.measurements:
                place = identity_without(result.cell, {axis})
                named = alike.setdefault((place, digest), {})
                named.setdefault(getattr(result.cell, axis).name, result)
        for of_place in alike.values():
            for (one, first), (other, second) in itertools.combinations(of_place.items(), 2):
                if not _are_one(first, second):
                    yield Finding(
                        "doubt",
                        f"{axis}={one} and {axis}={other} computed the same to the last bit: one of"
                        " them was not in force",
                        ((first.cell_id, ""), (second.cell_id, "")),
                    )


def _are_one(first: Result, second: Result) -> bool:
    """Whether two settings may well be the same: sdpa left to itself takes one of its backends, and
    packs queries itself where there is a mask; int8 with a threshold that nothing passes is int8
    without one."""
    kernels = {first.cell.attn.implementation, second.cell.attn.implementation}
    backends = {first.cell.attn.backend, second.cell.attn.backend}
    if len(backends) > 1:
        return kernels == {"sdpa"} and None in backends
    if first.cell.attn != second.cell.attn:
        packs = {first.cell.attn.packs_queries, second.cell.attn.packs_queries}
        return kernels == {"sdpa"} and len(packs) > 1
    schemes = {first.cell.quant.scheme, second.cell.quant.scheme}
    shares = [r.attestation.outlier_share or 0.0 for r in (first, second) if r.attestation]
    return schemes == {"bnb_int8"} and not any(shares)


def _of_choices(result: Result) -> list[Doubt]:
    flips = choices.flips_of(result) if result.measurements else None
    return [] if flips is None else [(f"multiple choice: {choices.sentence(flips)}", "")]


def _about_predictions(
    results: Sequence[Result],
    values: Mapping[str, Mapping[str, float]],
    predictions: Mapping[str, Prediction],
) -> Iterator[Finding]:
    """What a sensitivity study said of a cell beside what the cell measured."""
    for result in results:
        prediction, cell = predictions.get(result.cell.quant.name), result.cell
        if prediction is None or not prediction.is_of(cell) or not result.measurements:
            continue
        said = []
        if result.divergence is not None:
            kl = estimates(result.divergence)["kl_nats"]
            measured = _range(kl.value, kl.low, kl.high)
            said.append(f"KL predicted {_range(*prediction.kl_nats)}, measured {measured} nat")
        is_here = result.host.device_name == prediction.device_name
        if prediction.tpot_s is not None and is_here and cell.batch == prediction.rows:
            value, low, high = (each * 1e3 for each in prediction.tpot_s)
            measured_ms = values[result.cell_id]["tpot_s"] * 1e3
            said.append(f"TPOT predicted {_range(value, low, high)}, measured {measured_ms:.3g} ms")
        if said:
            yield Finding("quality", f"{cell.quant.name}: {'; '.join(said)}")


def _range(value: float, low: float, high: float) -> str:
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def _about_references(results: Sequence[Result]) -> Iterator[Finding]:
    names = {r.divergence.reference for r in results if r.divergence is not None}
    if len(names) > 1:
        yield Finding(
            "doubt",
            f"divergence: the references differ ({', '.join(sorted(names))}), so it cannot be"
            " compared",
        )
    for name in sorted(names - {"fp32"}):
        yield Finding(
            "doubt",
            f"divergence is from the model in {name}, since fp32 did not fit: the reference is"
            " rounded too, and what is more precise than it looks worse",
        )


def _about_published_grids(results: Sequence[Result]) -> Iterator[Finding]:
    """Where a scheme may look better than elsewhere, because it finds weights on its own grid."""
    judged = [r for r in results if r.divergence and r.attestation and r.attestation.is_quantized]
    models = [r.cell.model for r in judged if r.cell.model.weights == "pretrained"]
    grids = {m.name: m.published_in for m in models if m.published_in and m.path is None}
    for name, grid in grids.items():
        yield Finding(
            "doubt",
            f"divergence: {name} was published in {grid}, so a scheme with 4 bits may lose less of"
            " it than of other models; model.weights=dithered has no such grid",
        )


def _outcome(result: Result) -> list[Doubt]:
    status, reason = result.outcome.status, result.outcome.reason
    if status != "ok":
        return [(f"{status}: {reason}", "")]
    return [] if reason is None else [(reason, "")]
