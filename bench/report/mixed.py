"""Allocations in words, and as files: values of ``conf/quant``, and the sweep that tries them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from bench.analysis.mixed import Mixed, base_of, patterns
from bench.analysis.sensitivity import PLAIN
from bench.analysis.stats import Estimate
from bench.config.cell import Quant
from bench.record.sensitivity import Study

_MIB = 2**20
_SEVERAL = 3  # patterns in a sentence


def lines(study: Study, found: Sequence[Mixed]) -> Iterator[str]:
    """A table of the allocation and its controls, and what to know about them."""
    schemes = dict.fromkeys(scheme for each in found for scheme in each.schemes.values())
    rows = [["predicted", *schemes, "MiB", "bits", "KL nat", "TPOT ms"]]
    for each in found:
        counts = Counter(each.schemes.values())
        layers = [str(counts[scheme]) if counts[scheme] else "-" for scheme in schemes]
        size, bits = f"{each.stored_bytes / _MIB:,.2f}", f"{each.bits_per_weight:.3f}"
        rows.append([each.name, *layers, size, bits, _interval(each.kl_nats), _step_ms(each)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        aligned = (text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))
        yield f"{name.ljust(widths[0])}  {'  '.join(aligned)}"
    yield from _findings(study, found)


def _findings(study: Study, found: Sequence[Mixed]) -> Iterator[str]:
    best, *controls = found
    given = list(patterns(best.schemes).items())
    base = base_of(best.schemes)
    if given:
        named = ", ".join(f"{pattern} {scheme}" for pattern, scheme in given[:_SEVERAL])
        more = f" and {len(given) - _SEVERAL} patterns more" if len(given) > _SEVERAL else ""
        yield f"{best.name}: {base}, but {named}{more}"
    else:
        yield f"{best.name}: {base} in every layer"
    if controls and best.kl_nats.value > 0:
        ratios = [control.kl_nats.value / best.kl_nats.value for control in controls]
        yield (
            f"at the same bytes other choices of layers are predicted to lose {min(ratios):.1f} to"
            f" {max(ratios):.1f} times as much"
        )


def _step_ms(of: Mixed) -> str:
    if of.step_s is None:
        return "?"
    step = of.step_s
    return _interval(Estimate(step.value * 1e3, step.low * 1e3, step.high * 1e3, step.n))


def _interval(of: Estimate) -> str:
    return f"{of.value:.3g} [{of.low:.3g}, {of.high:.3g}]"


def quant_file(study: Study, of: Mixed) -> str:
    """The YAML of an allocation as a value of ``conf/quant``: every scheme is written out, so that
    it means the same wherever it is moved to."""
    base = base_of(of.schemes)
    quant: dict[str, Any] = {"name": of.name, **_written(study, base)}
    said = [
        f"{study.cell.model.name}: {of.bits_per_weight:.3f} bits a weight in the layers.",
        f"Predicted: KL {_interval(of.kl_nats)} nat, {of.stored_bytes:,} bytes of weights,"
        f" TPOT {_step_ms(of)} ms on the machine of the study.",
        f"Written by: python -m bench sensitivity {study.asked}",
    ]
    text = [*_comments(said), yaml.safe_dump(quant, sort_keys=False).rstrip()]
    given = patterns(of.schemes)
    text += ["layers:"] if given else []
    for pattern, scheme in given.items():
        value = {"name": scheme, **_written(study, scheme)}
        text.append(f"  {_flow(pattern)}: {_flow(value)}")
    return "\n".join(text) + "\n"


def _written(study: Study, scheme: str) -> dict[str, Any]:
    if scheme == PLAIN:
        return {"scheme": PLAIN, "dtype": "auto"}
    quant: Quant = study.schemes[scheme]
    return {"scheme": quant.scheme, "dtype": quant.dtype, "parameters": dict(quant.parameters)}


def _flow(value: str | Mapping[str, Any]) -> str:
    """On one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _comments(said: Sequence[str]) -> list[str]:
    return [f"# {' '.join(line.split())}" for line in said]


def sweep_file(study: Study, overrides: Sequence[str], found: Sequence[Mixed]) -> str:
    """The YAML of a sweep of the allocations, and of the model as published, in nf4, and with all
    layers under each of the schemes that were there to choose from.

    Args:
        overrides: of the study's cell, as typed.
    """
    best = found[0]
    mixed = [each.name for each in found]
    quants = list(dict.fromkeys([study.cell.quant.dtype, "nf4", *study.schemes, *mixed]))
    params = {"model": study.cell.model.name, "quant": ",".join(quants), "quality": "standard"}
    typed = (override.partition("=") for override in overrides)
    params |= {key: value for key, _, value in typed if key.partition(".")[0] != "quant"}
    question = (
        f"does {best.name} lose less than uniform schemes, and than other layers at its bytes?"
    )
    processor = study.host.device_name
    said = [
        f"Question: {question}",
        f"Command:  python -m bench sweeps={best.name}",
        f"Hardware: any; predicted on {processor}",
        f"Duration: {len(quants)} cells, not run yet",
        f"Written by: python -m bench sensitivity {study.asked}",
    ]
    sweep = {"hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}
    body = yaml.safe_dump(sweep, sort_keys=False, width=float("inf"))
    return "\n".join(["# @package _global_", *_comments(said), body])
