"""What a reproduction found, in words and as MLflow's tags and metrics."""

import math
from collections.abc import Sequence

from bench.analysis.differences import Difference
from bench.analysis.reproduction import STEADY, Change, Reproduction, Word, kernel_change, likeliest_reason, overall

_NAMES = {"tpot_s": "TPOT", "ttft_s": "TTFT"}


def surroundings(elsewhere: Sequence[Difference]) -> list[str]:
    """What is different here, before anything is measured."""
    if not elsewhere:
        return ["machine, versions and code are as they were recorded"]
    return ["different here, what could matter most first:", *(f"  {each}" for each in elsewhere)]


def findings(found: Sequence[Reproduction], elsewhere: Sequence[Difference], margin: float) -> list[str]:
    """The verdict, then each cell with its numbers, then what to know before trusting it."""
    said = [_verdict(overall(found), margin, len(found))]
    for each in found:
        said += [f"{each.now.cell.label}: {each.word}", *(f"  {_sentence(change)}" for change in each.changes)]
        said += [f"  {_disturbed(change)}" for change in each.changes if _is_disturbed(change, margin)]
        said += [f"  {line}" for line in _exactness(each)]
        if each.word == "differs":
            said.append(f"  likeliest reason: {likeliest_reason(each, elsewhere)}")
        elif each.word == "cannot tell":
            said += [f"  {line}" for line in (_what_it_takes(each.changes), *_unsteady(each))]
        said += [f"  warning: contaminated: {what} ({share:.0%})" for what, share in each.disturbed]
    return said


def as_markdown(name: str, found: Sequence[Reproduction], elsewhere: Sequence[Difference], margin: float) -> str:
    """The same as a file."""
    lines = [*surroundings(elsewhere), "", *findings(found, elsewhere, margin)]
    return "\n".join([f"# {name} once more: {overall(found)}", "", "```", *lines, "```", ""])


def numbers(found: Reproduction) -> dict[str, float]:
    """Metrics of a reproduced cell: how many times as long it takes now."""
    kernels = kernel_change(found.then, found.now)
    values = {} if kernels is None else {"reproduction/reference_kernels_ratio": kernels}
    for change in found.changes:
        name = f"reproduction/{change.metric.removesuffix('_s')}_ratio"
        values[name] = change.ratio
        if change.low is not None and change.high is not None:
            values |= {f"{name}_low": change.low, f"{name}_high": change.high}
    return values


def _verdict(word: Word, margin: float, cells: int) -> str:
    of = "" if cells == 1 else f" in each of {cells} cells"
    if word == "reproduced":
        return f"reproduced: TTFT and TPOT are within {margin:.0%} of the original's{of}"
    if word == "differs":
        return f"differs: by more than {margin:.0%}, or where nothing may differ"
    return f"cannot tell whether TTFT and TPOT are within {margin:.0%} of the original's"


def _sentence(change: Change) -> str:
    times = f"{change.then_s * 1e3:.2f} ms then, {change.now_s * 1e3:.2f} ms now (undisturbed)"
    said = f"{_NAMES[change.metric]}: {times}, {change.ratio:.3f} times as long"
    if change.low is None or change.high is None:
        return f"{said}: {change.word}"
    word: str = change.word
    if word == "cannot tell" and not change.low <= 1 <= change.high:
        word = "not the same, by how much cannot be told"
    return f"{said} ({change.low:.3f} to {change.high:.3f}): {word}"


def _is_disturbed(change: Change, margin: float) -> bool:
    return change.word == "reproduced" and abs(math.log(change.medians_ratio)) > math.log1p(margin)


def _disturbed(change: Change) -> str:
    name, ratio = _NAMES[change.metric], change.medians_ratio
    when = "now" if ratio > 1 else "then"
    return (
        f"warning: the medians of {name} are {ratio:.2f} times as long; requests were disturbed {when}, the quicker ones not"
    )


def _exactness(each: Reproduction) -> list[str]:
    exact, said = each.exactness, []
    counts = (("answers", exact.answers, exact.other_answers), ("windows of divergence", exact.windows, exact.other_windows))
    for name, count, others in counts:
        if not count:
            continue
        equal = f"{count - others} of {count} {name} are equal to the last digit"
        said.append(equal if exact.promised else f"{equal}; on this device, or with these versions, nothing promises it")
    return said


def _unsteady(each: Reproduction) -> list[str]:
    """What the reference kernels say of the machine, where it is not as it was."""
    moved = kernel_change(each.then, each.now)
    if moved is None or abs(math.log(moved)) < math.log1p(STEADY):
        return []
    return [f"this machine itself has changed: its reference kernels take {moved:.2f} times as long as then"]


def _what_it_takes(changes: Sequence[Change]) -> str:
    open_ones = [change for change in changes if change.word == "cannot tell"]
    if any(change.low is None for change in open_ones):
        return "one process on each side: want --processes 5, or `python -m bench doctor --calibrate` once"
    needed = [change.processes_needed for change in open_ones]
    if None in needed:
        return "no number of processes here would tell: the original has too few, or the change lies at the margin"
    return f"about {max(n for n in needed if n is not None)} processes here would tell: --processes"
