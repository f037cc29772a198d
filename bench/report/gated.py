"""What a gate finds, in words."""

from collections.abc import Collection, Sequence

from bench.analysis.two_sweeps import GateWord, Slowdown, Standing, overall

TIMES = {"tpot_s": "TPOT", "ttft_s": "TTFT"}
_MOST_UNCLEAR = 5
_STANDING: dict[Standing, str] = {
    "no worse": "no worse",
    "worse": "worse",
    "cannot tell": "cannot tell whether something is worse",
}


def share(value: float) -> str:
    """Like 2.5%, with no digit that says nothing."""
    return f"{value * 100:.3g}%"


def gate_lines(changes: Sequence[Slowdown], threshold: float, damaged: bool = False) -> list[str]:
    """What has become slower, what cannot be told and what would help, and the verdict.

    Args:
        damaged: a result of either side cannot be read.
    """
    by_word: dict[GateWord, list[Slowdown]] = {}
    for change in changes:
        by_word.setdefault(change.word, []).append(change)
    lost, worse = by_word.get("lost", []), by_word.get("worse", [])
    lines = [f"{each.label}: had a number in the baseline and has none now" for each in lost]
    lines += [_worse(each) for each in worse]
    lines += _unclear(by_word.get("cannot tell", []))
    if unknown := by_word.get("uncalibrated"):
        lines.append(
            f"{len(unknown)} comparison{_s(unknown)}: one process on each side, and nothing tells"
            " how much processes differ; measure both sweeps with measure=standard, or run doctor"
            " --calibrate before them"
        )
    if resized := by_word.get("another size"):
        lines.append(
            f"{', '.join(each.label for each in resized)}: max was another number in the baseline,"
            " so the times are of other work; give both sweeps a number, like batch=8"
        )
    if taken_over := by_word.get("the same readings"):
        lines.append(
            f"{len(taken_over)} cell{_s(taken_over)}: the baseline's own readings, taken over and"
            " not measured again; resume=false measures"
        )
    return [*lines, headline(changes, threshold, damaged)]


def headline(changes: Sequence[Slowdown], threshold: float, damaged: bool = False) -> str:
    """The verdict in one line."""
    cells = {change.label for change in changes}
    bad = sum(change.word in ("worse", "lost") for change in changes)
    fine = sum(change.word == "no worse" for change in changes)
    word = _STANDING[overall(changes, damaged)]
    also = ", and a result cannot be read" if damaged else ""
    return (
        f"{word}: of {len(changes)} time{_s(changes)} in {len(cells)} cell{_s(cells)}"
        f" {bad} slower by over {share(threshold)} or lost, {fine} not slower by that,"
        f" {len(changes) - bad - fine} unclear{also}"
    )


def _unclear(unclear: Sequence[Slowdown]) -> list[str]:
    """Those that may be the slowest first."""
    ordered = sorted(unclear, key=lambda change: -(change.at_most or 0))
    lines = [
        f"{each.label}: {TIMES[each.metric]} takes {each.ratio:.2f} times as long, up to"
        f" {each.at_most:.2f}: cannot tell"
        for each in ordered[:_MOST_UNCLEAR]
    ]
    if len(unclear) > _MOST_UNCLEAR:
        lines.append(f"and {len(unclear) - _MOST_UNCLEAR} more that cannot be told")
    needed = [each.processes_needed for each in unclear]
    if told := [n for n in needed if n is not None]:
        most = max(told)
        all_of = "all" if len(told) == len(needed) else f"{len(told)}"
        lines.append(
            f"about {most} processes on each side would tell {all_of}: measure.passes={most}"
        )
    elif needed:
        lines.append("no number of processes would tell: the change lies at the threshold")
    return lines


def _worse(slower: Slowdown) -> str:
    return (
        f"{slower.label}: {TIMES[slower.metric]} takes {slower.ratio:.2f} times as long, at least"
        f" {slower.at_least:.2f}"
    )


def _s(of: Collection[object]) -> str:
    return "" if len(of) == 1 else "s"
