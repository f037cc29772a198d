"""A sensitivity study in words."""

from collections.abc import Iterator, Mapping
from statistics import fmean

from bench.analysis.sensitivity import (
    PLAIN,
    agreement,
    bits_per_weight,
    factor,
    loss_a_weight,
    measured_kl_nats,
    ranked,
    sums,
)
from bench.analysis.stats import Estimate
from bench.record.sensitivity import Readings, Study

_NAMED = 3  # layers in a sentence
_CARRIED = 0.4  # share of the loss whose fewest layers are counted
_SAME_KIND = 1.02  # ratios of time that nobody needs to hear of


def heading(study: Study) -> Iterator[str]:
    """What was studied, and all layers under each scheme; a line each."""
    readings = study.readings
    yield (
        f"{study.cell.model.name}: {len(readings.layers)} layers,"
        f" {readings.layer_weights / 1e6:,.1f} M weights;"
        f" {len(readings.layers[0].effects[PLAIN].estimated_kl_nats)} windows of"
        f" {study.window_tokens} tokens of {study.text}; {study.took_s:,.0f} s"
    )
    yield from scheme_lines(readings)


def scheme_lines(readings: Readings) -> Iterator[str]:
    """All layers under each scheme: bits, bytes, divergence, times."""
    trials = {trial.name: trial for trial in readings.trials}
    plain = readings.timings[PLAIN]
    for scheme, timing in readings.timings.items():
        held = [layer.effects[scheme] for layer in readings.layers if scheme in layer.effects]
        size = sum(effect.stored_bytes for effect in held)
        trial = trials.get(f"all {scheme}")
        loss = "" if trial is None else f", KL {nats(measured_kl_nats(trial))}"
        step, prefill = min(timing.decode_step_s), min(timing.prefill_s)
        within = sum(timing.layer_decode_s.values())
        ratio = "" if scheme == PLAIN else f" ({min(plain.decode_step_s) / step:.2f}x)"
        yield (
            f"all {scheme}: {bits_per_weight(readings, size):.2f} bits a weight,"
            f" {size / 2**20:,.1f} MiB{loss}; a decode step {step * 1e3:.2f} ms{ratio}, of which"
            f" layers {within * 1e3:.2f}; prefill {prefill * 1e3:,.1f} ms"
        )


def nats(of: Estimate) -> str:
    """A divergence with its interval."""
    return f"{of.value:.3g} [{of.low:.2g}, {of.high:.2g}]"


def findings(readings: Readings, scheme: str) -> Iterator[str]:
    """What the layers' losses under a scheme come to, in words: what to know first comes first."""
    yield _carried(readings, scheme)
    yield from _sums(readings)
    yield from _agreement(readings)
    yield from _slower(readings)
    rates = loss_a_weight(readings, scheme)
    worst, best = next(iter(rates)), list(rates)[-1]
    yield (
        f"by weight {worst} costs most, {rates[worst]:.1f} times the mean of all layers, {best}"
        f" least, {rates[best]:.2g} times"
    )
    yield from _propagated(readings, scheme)


def _carried(readings: Readings, scheme: str) -> str:
    order = ranked(readings, scheme)
    carried, count = 0.0, 0
    for _, share in order:
        carried, count = carried + share, count + 1
        if carried >= _CARRIED:
            break
    first = ", ".join(f"{layer.name} {share:.0%}" for layer, share in order[:_NAMED])
    return (
        f"{count} of {len(order)} layers carry {carried:.0%} of the loss under {scheme}; the most:"
        f" {first}"
    )


def _sums(readings: Readings) -> Iterator[str]:
    of_sets = sums(readings)
    if len(of_sets) > 1:
        scale, ratios = factor(of_sets), [each.ratio for each in of_sets]
        yield (
            f"sums of single losses against {scale.n} sets quantized together: measured is"
            f" {min(ratios):.2f} to {max(ratios):.2f} times the sum, {scale.value:.2f} on average"
        )


def _agreement(readings: Readings) -> Iterator[str]:
    """How estimates rank the layers, where these were measured."""
    schemes = [scheme for scheme in readings.timings if scheme != PLAIN]
    found = {scheme: agreement(readings, scheme) for scheme in schemes}
    said = [
        f"{each.estimate:.2f} ({each.output_error:.2f}) under {scheme}"
        for scheme, each in found.items()
        if each is not None
    ]
    if said:
        yield (
            "estimates (output errors) rank layers as measured with a correlation of"
            f" {', '.join(said)} (Spearman)"
        )


def _propagated(readings: Readings, scheme: str) -> Iterator[str]:
    worst = min(readings.modules, key=lambda module: module.cosine, default=None)
    if worst is not None:
        yield (
            f"with all layers under {scheme} the output of {worst.name} keeps the least of its"
            f" direction: cosine {worst.cosine:.3f}; of all {len(readings.modules)} modules the"
            f" mean is {fmean(module.cosine for module in readings.modules):.3f}"
        )


def _slower(readings: Readings) -> Iterator[str]:
    """The kind of layer that each scheme slows down most, against the unquantized one."""
    plain, said = _by_kind(readings, PLAIN), []
    for scheme in readings.timings:
        times = _by_kind(readings, scheme)
        ratios = {kind: times[kind] / plain[kind] for kind in times if plain.get(kind)}
        kind = max(ratios, key=lambda each: ratios[each], default=None)
        if scheme != PLAIN and kind is not None and ratios[kind] > _SAME_KIND:
            slower = sum(ratio > _SAME_KIND for ratio in ratios.values())
            said.append(f"{scheme} {slower} of {len(ratios)}, {kind} most ({ratios[kind]:.1f}x)")
    if said:
        yield f"kinds of layers that are slower in decode than unquantized: {'; '.join(said)}"


def _by_kind(readings: Readings, scheme: str) -> Mapping[str, float]:
    times: dict[str, float] = {}
    for layer in readings.layers:
        seconds = readings.timings[scheme].layer_decode_s.get(layer.name)
        if seconds is not None and scheme in layer.effects:
            times[layer.kind] = times.get(layer.kind, 0.0) + seconds
    return times
