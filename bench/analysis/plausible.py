"""Plausible true values of every cell: many draws from what was read and how uncertain it is.

Questions like "which is the best of twenty under three limits, and how sure is that?" have no
formula; draws answer them by counting. Times are drawn on logarithms, around the mean over a cell's
processes, by Student's t with the spread between processes (``verdict``): the sweep's own where it
has several passes, else the host's calibration, else an assumption that is said wherever it is
used. Divergence is drawn around its mean over windows. Memory is exact on a GPU and a resident set
on a CPU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np

from bench.analysis.divergence import estimates
from bench.analysis.readings import process_times_s
from bench.analysis.stats import ALPHA, t_quantile
from bench.analysis.verdict import Spread, better_known, spread
from bench.record.measurement import Divergence
from bench.record.result import Result

DRAWS = 2000
# The resident set keeps freed memory or not: int8's differs by up to a third between sweeps
_RESIDENT_DEVIATION = 0.1
# 3 to 7 times what was found between processes of one machine (tests/data/process_noise.json)
ASSUMED = Spread(0.05, 30)

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Plausible:
    """Draws of every cell that has a number. Shapes: (cells, DRAWS); nan where nothing was read."""

    results: tuple[Result, ...]
    ttft_s: Array
    tpot_s: Array
    output_tok_s: Array
    kl_nats: Array
    memory_bytes: Array
    is_assumed: bool  # the spread between processes was not measured

    def only(self, wanted: Sequence[bool]) -> "Plausible":
        """The same draws of some of the cells."""
        kept = np.array(wanted, dtype=np.bool_)
        return replace(
            self,
            results=tuple(
                result for result, keep in zip(self.results, wanted, strict=True) if keep
            ),
            ttft_s=self.ttft_s[kept],
            tpot_s=self.tpot_s[kept],
            output_tok_s=self.output_tok_s[kept],
            kl_nats=self.kl_nats[kept],
            memory_bytes=self.memory_bytes[kept],
        )


def plausible(results: Sequence[Result], calibration: Mapping[str, Spread]) -> Plausible:
    """The same draws for the same results."""
    measured = tuple(result for result in results if result.measurements)
    generator = np.random.default_rng(0)
    times: dict[str, Array] = {}
    assumed = False
    for metric in ("ttft_s", "tpot_s"):
        logs = [
            [math.log(s) for s in process_times_s(result.measurements)[metric]]
            for result in measured
        ]
        known = better_known(spread(logs, blocked=False), calibration.get(metric)) if logs else None
        noise = known or ASSUMED
        assumed = assumed or known is None
        centres = np.array([fmean(row) for row in logs])[:, None]
        errors = np.array([noise.deviation / math.sqrt(len(row)) for row in logs])[:, None]
        times[metric] = np.exp(
            centres + errors * generator.standard_t(noise.df, (len(logs), DRAWS))
        )
    # Cells that differ in batch alone share one reading, and so its draws.
    divergences = {
        each: _kl_nats(each, generator)
        for each in dict.fromkeys(result.divergence for result in measured)
    }
    tokens = np.array([result.cell.batch * result.cell.workload.new_tokens for result in measured])[
        :, None
    ]
    steps = np.array([result.cell.workload.new_tokens - 1 for result in measured])[:, None]
    return Plausible(
        results=measured,
        ttft_s=times["ttft_s"],
        tpot_s=times["tpot_s"],
        output_tok_s=tokens / (times["ttft_s"] + steps * times["tpot_s"]),
        kl_nats=np.array([divergences[result.divergence] for result in measured]).reshape(
            len(measured), DRAWS
        ),
        memory_bytes=np.array([_memory_bytes(result, generator) for result in measured]).reshape(
            len(measured), DRAWS
        ),
        is_assumed=assumed,
    )


def _kl_nats(divergence: Divergence | None, generator: np.random.Generator) -> Array:
    if divergence is None:
        return np.full(DRAWS, np.nan)
    found = estimates(divergence)["kl_nats"]
    if found.n == 1:
        return np.full(DRAWS, found.value)
    error = (found.high - found.value) / t_quantile(1 - ALPHA / 2, found.n - 1)
    return found.value + error * generator.standard_t(found.n - 1, DRAWS)


def _memory_bytes(result: Result, generator: np.random.Generator) -> Array:
    deviation = (
        0.0
        if result.cell.device == "cuda"
        else _RESIDENT_DEVIATION / math.sqrt(len(result.measurements))
    )
    return peak_memory_bytes(result) * np.exp(deviation * generator.standard_normal(DRAWS))


def peak_memory_bytes(result: Result) -> float:
    """What running the cell takes: torch's reserved peak on a GPU, the whole process on a CPU; nan
    where nobody knows."""
    memories = [m.run_memory for m in result.measurements]
    read = [
        m.reserved_peak_bytes if result.cell.device == "cuda" else m.rss_peak_bytes
        for m in memories
    ]
    known = [size for size in read if size is not None]
    return float(median(known)) if known else math.nan
