"""What a sensitivity study says: which layers carry the loss, whether single losses add up, what an
allocation will cost.

A layer's loss is its measured divergence where that was read, else the Fisher estimate. Estimates
rank layers well and are too low together, so that what is predicted of a set is the sum of its
estimates times a factor: the geometric mean of measured over summed, over the sets that were tried.
How far that factor varies between sets, and the sums between windows of the text, is the prediction
interval.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from bench.analysis.allocation import Allocation, Option, Options
from bench.analysis.stats import ALPHA, Estimate, mean_interval, t_quantile
from bench.record.sensitivity import Effect, Layer, Readings, Timing, Trial

_LEVEL = 1 - ALPHA
_TOO_LITTLE_NATS = 1e-5  # of a trial: sums of rounding, not of losses
PLAIN = "none"  # the layers as published


def loss_nats(effect: Effect) -> tuple[float, ...]:
    """Of each window."""
    measured = effect.measured_kl_nats
    return effect.estimated_kl_nats if measured is None else measured


def mean_loss_nats(effect: Effect) -> float:
    """Over all windows."""
    return fmean(loss_nats(effect))


def options(readings: Readings, schemes: Sequence[str]) -> Options:
    """Each layer under each of these schemes that can hold it."""
    times = {scheme: timing.layer_decode_s for scheme, timing in readings.timings.items()}
    return {
        layer.name: [
            Option(
                scheme,
                layer.effects[scheme].stored_bytes,
                mean_loss_nats(layer.effects[scheme]),
                times[scheme].get(layer.name, 0.0),
            )
            for scheme in schemes
            if scheme in layer.effects
        ]
        for layer in readings.layers
    }


def summed_nats(readings: Readings, schemes: Mapping[str, str]) -> tuple[float, ...]:
    """Of each window, the sum of the losses of these layers under their schemes."""
    by_name = {layer.name: layer for layer in readings.layers}
    rows = [loss_nats(by_name[name].effects[scheme]) for name, scheme in schemes.items()]
    return tuple(map(math.fsum, zip(*rows, strict=True)))


@dataclass(frozen=True, slots=True)
class Sum:
    """A set of layers: what its single losses add up to, and what was measured of it."""

    trial: Trial
    summed_nats: float
    measured_nats: float

    @property
    def ratio(self) -> float:
        """Measured over summed."""
        return self.measured_nats / self.summed_nats


def sums(readings: Readings) -> list[Sum]:
    """Of every trial that is large enough to tell."""
    found = [
        Sum(trial, fmean(summed_nats(readings, trial.schemes)), fmean(trial.kl_nats))
        for trial in readings.trials
        if trial.schemes
    ]
    return [s for s in found if min(s.summed_nats, s.measured_nats) > _TOO_LITTLE_NATS]


def factor(of: Sequence[Sum]) -> Estimate:
    """Of measured over summed: the geometric mean, and the interval in which that of the next set
    will lie. Unbounded from a single set; 1 without any."""
    logs = [math.log(each.ratio) for each in of]
    if len(logs) < 2:
        return Estimate(math.exp(logs[0]) if logs else 1.0, 0.0, math.inf, len(logs))
    centre, n = fmean(logs), len(logs)
    deviation = float(np.std(logs, ddof=1)) * math.sqrt(1 + 1 / n)
    half = t_quantile((1 + _LEVEL) / 2, n - 1) * deviation
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def predicted_kl_nats(readings: Readings, schemes: Mapping[str, str]) -> Estimate:
    """The divergence of a set of layers under their schemes, before it is measured."""
    scale, windows = factor(sums(readings)), mean_interval(summed_nats(readings, schemes), _LEVEL)
    value = scale.value * windows.value
    if value <= 0:  # all layers as published
        return Estimate(value, value, value, windows.n)
    of_sets = math.log(scale.high / scale.value)
    of_text = (windows.high - windows.value) / windows.value
    half = math.hypot(of_sets, of_text)
    return Estimate(value, value * math.exp(-half), value * math.exp(half), windows.n)


def measured_kl_nats(trial: Trial) -> Estimate:
    """With its interval over the windows."""
    return mean_interval(trial.kl_nats, _LEVEL)


def predicted_step_s(timings: Mapping[str, Timing], schemes: Mapping[str, str]) -> Estimate | None:
    """A decode step of a model with these schemes by layer, all layers named: their times, and what
    was left of the steps of whole models beside their layers'. The interval is of requests in one
    process. None where a layer was not timed.

    A study calls each layer by itself; a cell makes one product of our layers of one scheme that
    read the same tensor (``own.siblings``), so that it may take some 6 % less."""
    rests = {scheme: _rests_s(timing) for scheme, timing in timings.items()}
    times = [timings[scheme].layer_decode_s.get(name) for name, scheme in schemes.items()]
    if not times or None in times:
        return None
    layers_s = math.fsum(time for time in times if time is not None)
    each = zip(*(rests[scheme] for scheme in schemes.values()), strict=False)
    return mean_interval([layers_s + fmean(rest) for rest in each], _LEVEL)


def _rests_s(timing: Timing) -> list[float]:
    within = math.fsum(timing.layer_decode_s.values())
    return [step - within for step in timing.decode_step_s]


def predicted_bytes(readings: Readings, allocation: Allocation) -> int:
    """Of the whole model, as stored."""
    return readings.other_bytes + sum(option.stored_bytes for option in allocation.values())


def bits_per_weight(readings: Readings, layers_bytes: float) -> float:
    """Of the layers alone."""
    return 8 * layers_bytes / readings.layer_weights


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered)))}
    last = {value: index for index, value in enumerate(ordered)}
    return [(first[value] + last[value]) / 2 for value in values]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How cheap scores rank the layers of one scheme, against what was measured of each alone."""

    estimate: float
    output_error: float
    n: int


def agreement(readings: Readings, scheme: str) -> Agreement | None:
    """None where the layers' divergences were not measured."""
    effects = [layer.effects[scheme] for layer in readings.layers if scheme in layer.effects]
    measured = [fmean(e.measured_kl_nats) for e in effects if e.measured_kl_nats is not None]
    if len(measured) < len(effects) or len(effects) < 3:
        return None
    return Agreement(
        rank_correlation([fmean(e.estimated_kl_nats) for e in effects], measured),
        rank_correlation([e.output_error for e in effects], measured),
        len(effects),
    )


def ranked(readings: Readings, scheme: str) -> list[tuple[Layer, float]]:
    """The layers with their shares of the scheme's whole loss, the largest first."""
    losses = {
        layer.name: mean_loss_nats(layer.effects[scheme])
        for layer in readings.layers
        if scheme in layer.effects
    }
    whole = math.fsum(losses.values()) or 1.0
    by_name = {layer.name: layer for layer in readings.layers}
    order = sorted(losses, key=lambda name: -losses[name])
    return [(by_name[name], losses[name] / whole) for name in order]


def loss_a_weight(readings: Readings, scheme: str) -> dict[str, float]:
    """By kind of layer, its loss a weight over that of all layers; the worst first."""
    losses: dict[str, float] = defaultdict(float)
    weights: dict[str, int] = defaultdict(int)
    for layer, share in ranked(readings, scheme):
        losses[layer.kind] += share
        weights[layer.kind] += layer.weights
    whole = sum(weights.values())
    rates = {kind: losses[kind] / (weights[kind] / whole) for kind in losses}
    return dict(sorted(rates.items(), key=lambda item: -item[1]))
