"""What a decode strategy brings beside the plain loop, from when on it pays, and why it does not.

A strategy that prepares itself (a compiled step) costs seconds in each process before its first
token; it pays once the steps that it makes shorter have brought these back: preparation / (TPOT of
the loop - TPOT of the strategy) tokens of each row. One that guesses is known by tokens a forward
and by the share of right guesses. A cell is compared with the one that differs in ``decode`` alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from bench.analysis.columns import identity_without
from bench.analysis.doubts import Doubt
from bench.analysis.readings import tpot
from bench.record.result import Result

_ALIKE = 1.03  # a speedup that is none
_SHORT_S = 1.0  # a preparation that nobody waits for


def of_strategies(results: Sequence[Result]) -> dict[str, list[Doubt]]:
    """Sentences about cells of other strategies than the plain loop, by cell_id."""
    measured = [r for r in results if r.measurements and r.attestation is not None]
    loops = {_place(r): r for r in measured if r.cell.decode.strategy == "loop"}
    return {
        r.cell_id: list(_sentences(r, loops.get(_place(r))))
        for r in measured
        if r.cell.decode.strategy != "loop"
    }


def _place(result: Result) -> str:
    return identity_without(result.cell, {"decode"})


def _sentences(result: Result, loop: Result | None) -> Iterator[Doubt]:
    found = _details(result)
    if "accepted_share" in found:
        each = result.measurements[0].repeats[0]
        tokens = each.decoded_tokens / len(each.decode_step_s)
        guesses = f"{found['accepted_share']:.0%} of its guesses right"
        yield "tokens a forward, of which the plain loop has 1", f"{tokens:.1f}, {guesses}"
    if loop is None:
        return
    step_s, loop_s = _tpot_s(result), _tpot_s(loop)
    ready_s = [m.ready_s for m in result.measurements]
    if loop_s > _ALIKE * step_s and max(ready_s) > _SHORT_S:
        tokens = max(ready_s) / (loop_s - step_s)
        yield (
            "the decode strategy gets ready first, once in each process, which pays later",
            f"{_range(ready_s)} s, after {_rounded(tokens):,} tokens of a row",
        )
    if found.get("graphs") and loop_s < _ALIKE * step_s:
        kinds, left = ["matrix product"], "matrix products"
        if loop.cell.attn.implementation != "eager":  # one operator of a library, called as it is
            kinds, left = [*kinds, "attention"], "matrix products and fused attention"
        share = _share(loop, kinds)
        why = "" if share is None else f"{share:.0%} of the loop's step"
        yield f"compiling makes this no faster, it leaves {left} as they are", why
    differs = found.get("first_token_unlike_loop")
    if differs is not None:
        yield "rounding leads the answer away from the plain loop's", f"from token {differs} on"


def _details(result: Result) -> Mapping[str, float]:
    assert result.attestation is not None
    found: Mapping[str, float] = result.attestation.details.get("decode", {})
    return found


def _tpot_s(result: Result) -> float:
    return median(map(tpot, result.measurements))


def _range(values_s: Sequence[float]) -> str:
    low, high = min(values_s), max(values_s)
    return f"{high:.0f}" if high < 1.5 * low else f"{low:.0f} to {high:.0f}"


def _rounded(tokens: float) -> int:
    """Two digits: a preparation differs by as much."""
    digits = len(str(int(tokens))) - 2
    return int(round(tokens, -max(digits, 0)))


def _share(loop: Result, kinds: Sequence[str]) -> float | None:
    """Of these kinds of operations in a step under the profiler; None where none was taken."""
    steps = [m.step_profile for m in loop.measurements if m.step_profile is not None]
    shares = [sum(step.seconds.get(kind, 0.0) for kind in kinds) / step.wall_s for step in steps]
    return median(shares) if shares else None
