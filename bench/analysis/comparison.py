"""A sweep, analysed once: every table, page, file and run is printed from a ``Comparison``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.analysis import growth
from bench.analysis.advice import Advice, Limits, Plausible, UseCase, plausible, usual_advice
from bench.analysis.bottlenecks import Bottleneck, bottlenecks
from bench.analysis.columns import (
    BaselineAxes,
    baseline_axes,
    comparable,
    coordinate,
    pairs,
    varying_columns,
)
from bench.analysis.crossover import Crossover, crossovers
from bench.analysis.depth import Configuration, configurations, crossings
from bench.analysis.metrics import derive
from bench.analysis.notes import Finding, findings
from bench.analysis.pareto import pareto_front
from bench.analysis.threats import threats
from bench.analysis.verdict import Change, speedups
from bench.record.depth import Growth
from bench.record.foreign import Foreign
from bench.record.result import Result
from bench.record.sensitivity import Prediction
from bench.record.sweep import Sweep

_USUAL_COLUMNS = ("model", "quant", "batch")  # where nothing varies


@dataclass(frozen=True)
class Comparison:
    """The results of a sweep with all that follows from them."""

    results: tuple[Result, ...]
    sweep: Sweep
    columns: tuple[str, ...]  # what tells the cells apart
    against: BaselineAxes | None  # what speedups are relative to; None when no axis varies
    values: Mapping[str, Mapping[str, float]]  # by cell_id; empty for a cell without a number
    speedups: Mapping[str, Mapping[str, Change]]  # by metric, then cell_id; empty without a pair
    bound_by: Mapping[str, Bottleneck]  # by cell_id
    deep: tuple[Configuration, ...]  # measured at several lengths of prompt
    fitted_crossovers: tuple[Crossover, ...]  # where lines through these cross
    findings: tuple[Finding, ...]
    foreign: tuple[Foreign, ...] = ()  # what was imported beside them

    @property
    def measured(self) -> list[Result]:
        """The cells that have a number."""
        return [result for result in self.results if result.measurements]

    @property
    def axis(self) -> str:
        """The compared one."""
        return next(iter(self.against.values)) if self.against is not None else "quant"

    @cached_property
    def threats(self) -> list[str]:
        """Why the numbers may not hold elsewhere or tomorrow."""
        return threats(self.results, self.sweep)

    @cached_property
    def plausible(self) -> Plausible:
        """Draws of the true values of every cell."""
        return plausible(self.results, self.values, self.sweep.calibration)

    @cached_property
    def front(self) -> list[str]:
        """cell_ids that no other cell beats in speed, memory and divergence at once."""
        return pareto_front(self.results, self.values)

    @cached_property
    def crossovers(self) -> list[Crossover]:
        """From where on which value of the compared axis is faster: by fits where these tell, else
        between two measured points."""
        axes = self.against.values if self.against is not None else ()
        told = {_pair(change) for change in self.fitted_crossovers}
        between = [
            change for axis in axes for change in crossovers(self.plausible, axis, self.columns)
        ]
        return [
            *self.fitted_crossovers,
            *(
                change
                for change in between
                if (change.metric, change.along) != ("tpot_s", "prompt_tokens")
                or _pair(change) not in told
            ),
        ]

    @cached_property
    def alternatives(self) -> list[tuple[str, Plausible]]:
        """The draws of one model and workload each, with a name for which; nobody chooses between
        workloads."""
        draws = self.plausible
        groups = comparable(draws.results)
        if len(groups) < 2:
            return [("", draws)]
        return [
            (name, draws.only([result in group for result in draws.results]))
            for name, group in groups.items()
        ]

    @cached_property
    def advice(self) -> list[tuple[str, UseCase, Limits, Advice]]:
        """The usual questions with their answers, for each group of alternatives."""
        margin = self.sweep.margin
        return [
            (group, *answered)
            for group, draws in self.alternatives
            for answered in usual_advice(draws, margin)
        ]

    def place(self, result: Result) -> str:
        """What tells a cell apart, like ``quant=nf4 batch=8``."""
        values = ((column, coordinate(result.cell, column)) for column in self.columns)
        return " ".join(f"{column}={value}" for column, value in values)


def _pair(change: Crossover) -> tuple[str, str, frozenset[str]]:
    return change.where, change.axis, frozenset((change.first, change.second))


def compare(
    results: Sequence[Result],
    sweep: Sweep,
    predictions: Mapping[str, Prediction] | None = None,
    earlier: Mapping[str, Growth] | None = None,
    foreign: Sequence[Foreign] = (),
) -> Comparison:
    """The analysis of a sweep's results, in the order of its grid.

    Args:
        predictions: what was said beforehand of values of ``quant``, by name.
        earlier: how configurations grew with the context in sweeps before this one.
        foreign: what was imported beside the results; nothing is concluded from it.
    """
    cells = [result.cell for result in results]
    against = baseline_axes(cells, sweep.baseline)
    columns = tuple(varying_columns(cells)) or _USUAL_COLUMNS
    values = {result.cell_id: derive(result, sweep.price_per_hour) for result in results}
    deep = tuple(configurations(results, sweep.calibration))
    for each in deep:
        shared = growth.values(each.growth)
        values |= {r.cell_id: values[r.cell_id] | shared for r in each.results}
    measured = [result for result in results if result.measurements]
    matched = pairs(measured, against) if against is not None else []
    changes = speedups(results, matched, sweep.margin, sweep.calibration)
    axes = against.values if against is not None else ()
    fitted = tuple(change for axis in axes for change in crossings(deep, axis, columns))
    of_depth = [
        *growth.sentences(deep, fitted, columns),
        *growth.scored(results, earlier or {}, columns),
    ]
    return Comparison(
        results=tuple(results),
        sweep=sweep,
        columns=columns,
        against=against,
        values=values,
        speedups=changes,
        bound_by=bottlenecks(results),
        deep=deep,
        fitted_crossovers=fitted,
        findings=tuple(findings(results, values, changes, against, predictions or {}, of_depth)),
        foreign=tuple(foreign),
    )
