"""What of foreign figures can be put beside ours.

Hardware, versions and protocols differ, so a foreign number is no yardstick for ours. The ratio to
a baseline is: both sides have the same model without quantization, in 16 bits or else in fp32, at
the same batch. How many times the baseline's number a configuration has, there and here, is what
gets put side by side. No verdict is drawn from a foreign ratio: its repetitions share a process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.columns import BaselineAxes, pairs
from bench.analysis.foreign.llama_bench import model_name
from bench.config.cell import Model
from bench.record.foreign import Foreign
from bench.record.result import Result

# Better ones first; for a quantized row one of a group may stand for the other
_BASELINES = (("fp16", "bf16"), ("fp32",))
_DEFAULT_ATTN = "sdpa"  # transformers' default


@dataclass(frozen=True, slots=True)
class Match:
    """A configuration that both sides have, each with its own baseline."""

    there: Foreign
    there_baseline: Foreign
    here: Result
    here_baseline: Result


@dataclass(frozen=True, slots=True)
class Compared:
    """A number on both sides; each ratio is to the baseline on the same side."""

    key: str
    there: float
    there_ratio: float
    here: float
    here_ratio: float


def matches(results: Sequence[Result], foreign: Sequence[Foreign]) -> list[Match]:
    """Every foreign configuration with each result of its model, quantization, batch and, where it
    names one, attention."""
    measured = [result for result in results if result.measurements]
    return [match for each in foreign for match in _matches(each, foreign, measured)]


def _matches(of: Foreign, foreign: Sequence[Foreign], measured: Sequence[Result]) -> list[Match]:
    """With the first baseline that both sides have; without a common one there is nothing to
    compare."""
    alike = {
        r.cell_id: r
        for r in measured
        if r.cell.batch == of.batch and _is_of(of.model, r.cell.model)
    }
    for baseline, quant in _baselines(of, foreign):
        is_of_attn = baseline.attn != of.attn
        against = BaselineAxes({"quant": quant} | ({"attn": _DEFAULT_ATTN} if is_of_attn else {}))
        matched = [
            Match(of, baseline, alike[cell], alike[base])
            for cell, base in pairs(list(alike.values()), against)
            if alike[cell].cell.quant.name == of.quant
            and of.attn in (None, alike[cell].cell.attn.name)
        ]
        if matched:
            return matched
    return []


def _is_of(name: str | None, model: Model) -> bool:
    """Whether a foreign name is that of a model of ours: its own, its repository's, its file's."""
    files = [model.path, None if model.package is None else model.package.file]
    ours = [model.name, model.repo, *(model_name(file) for file in files if file is not None)]
    names = {part.casefold() for part in ours if part is not None}
    names |= {part.rpartition("/")[2] for part in names}
    return name is not None and name.casefold() in names


def baseline_of(of: Foreign, foreign: Sequence[Foreign]) -> Foreign | None:
    """The unquantized configuration that a foreign one differs from in nothing else; None for one
    that is a baseline itself, or has none."""
    return next((other for other, _ in _baselines(of, foreign)), None)


def _baselines(of: Foreign, foreign: Sequence[Foreign]) -> Iterator[tuple[Foreign, str]]:
    """The foreign baselines of a configuration, each with the quantizations that it may be compared
    with here; the best first.

    One has the same attention, or names none, which is the library's default.
    """
    alike = [e for e in foreign if e.attn in (None, of.attn) and _place(e) == _place(of)]
    of_default = of.attn and any((e.quant, e.attn) == (of.quant, None) for e in alike)
    for quants in _BASELINES:
        for other in alike:
            quant = other.quant
            if quant is None or quant not in quants:
                continue
            if other != of:
                can_stand_in = other.attn == of.attn
                stand_ins = [each for each in quants if each != quant and can_stand_in]
                yield from ((other, each) for each in [quant, *stand_ins])
            elif not of_default:
                # A baseline is compared with better ones only: else each pair of them would come
                # twice
                return


def _place(of: Foreign) -> tuple[object, ...]:
    """All that a configuration and its baseline have in common."""
    who = (of.tool, of.version, of.source, of.protocol, of.hardware, of.engine)
    return (*who, of.model, of.batch, of.prompt_tokens, of.new_tokens, dict(of.settings))


def compared(
    match: Match, keys: Sequence[str], values: Mapping[str, Mapping[str, float]]
) -> list[Compared]:
    """Those of ``keys`` that all four have, in this order. ``values``: derived, by cell_id."""
    there, there_base = match.there.values, match.there_baseline.values
    here, here_base = values[match.here.cell_id], values[match.here_baseline.cell_id]
    four = (there, there_base, here, here_base)
    return [
        Compared(
            key, there[key], there[key] / there_base[key], here[key], here[key] / here_base[key]
        )
        for key in keys
        if all(key in numbers for numbers in four)
    ]
