"""Several sweeps in words and tables, before anybody has decided where to show them. Each sweep has
a letter, in the order in which they were given: A is what the others are compared with."""

import math
import string
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from bench.analysis.columns import coordinate, short_name
from bench.analysis.differences import Difference
from bench.analysis.metrics import METRIC, MIB
from bench.analysis.side_by_side import MEMORY, QUALITIES, Against, Row, Shift, SideBySide
from bench.analysis.verdict import COMPARED, Change
from bench.report.gated import TIMES, headline, share
from bench.report.grid import Column, Entry, Grid, axes
from bench.report.page import commit_of
from bench.report.terminal import Fitted

LETTERS = string.ascii_uppercase  # at most so many sweeps
_MOST_DIFFERENCES, _MOST_NAMED = 8, 3  # where there is little room
_TITLES = {
    "tpot_s": "TPOT ms, times as fast",
    "ttft_s": "TTFT ms, times as fast",
    MEMORY: "peak memory MiB, times as much",
    "kl_nats": "KL nat, how much more",
    "perplexity": "perplexity, times as high",
}
_NAMES = {"kl_nats": "divergence", "perplexity": "perplexity"}


def legend(found: SideBySide) -> list[str]:
    """Which sweep each letter stands for."""
    lines = []
    for letter, side in zip(LETTERS, found.sides, strict=False):
        parts = [f"{len(side.results)} cell{'s' * (len(side.results) != 1)}"]
        if side.results:
            host = side.results[0].host
            parts.append(host.device_name)
            parts += [f"torch {host.versions['torch']}"] if "torch" in host.versions else []
        commit = commit_of(side.sweep)
        parts += [f"commit {commit}"] if commit else []
        lines.append(f"{letter} = {side.sweep.sweep_id}: {', '.join(parts)}")
    return lines


def what_differs(found: SideBySide, brief: bool = False) -> list[str]:
    """Machine, versions and code of each sweep beside the first one's, then what equal cells became
    there, and the cells that only one has. ``brief``: only what has a place on a terminal."""
    lines: list[str] = []
    for index in range(1, len(found.sides)):
        lines += _differences(found, index, brief)
    for letter, alone in zip(LETTERS, found.alone, strict=False):
        if alone:
            names = alone[:_MOST_NAMED] if brief else alone
            more = f" and {len(alone) - len(names)} more" if len(alone) > len(names) else ""
            count = f"{len(alone)} cell{'s' if len(alone) > 1 else ''}"
            lines.append(f"only in {letter}, not compared: {count} ({', '.join(names)}{more})")
    if found.apart:
        lines.append(f"cells of one name that are not the same differ in {', '.join(found.apart)}")
    return lines


def _differences(found: SideBySide, index: int, brief: bool) -> Iterator[str]:
    letter, elsewhere, within = LETTERS[index], found.elsewhere[index], found.within[index]
    if not elsewhere and not within:
        yield f"{letter} from A: machine, versions and code are the same"
    else:
        yield f"{letter} from A, what could matter most first:"
    said = [f"  {_in_words(each, letter)}" for each in elsewhere]
    said += [f"  {_in_words(each, letter)} (cells: {count})" for each, count in within]
    most = _MOST_DIFFERENCES if brief else len(said)
    yield from said[:most]
    if len(said) > most:
        yield f"  and {len(said) - most} more: see the report"
    decisive = [each.what for each in (*elsewhere, *(d for d, _ in within)) if each.is_decisive]
    if decisive:
        yield (
            f"{letter} to A is a ratio of that too, not of one change alone:"
            f" {', '.join(dict.fromkeys(decisive))}"
        )
    if (kernels := found.kernels(index)) is not None:
        yield f"the reference kernels take {kernels:.2f} times as long in {letter} as in A"


def _in_words(difference: Difference, letter: str) -> str:
    return f"{difference.what}: {difference.then} in A; {difference.now} in {letter}"


def verdicts(found: SideBySide) -> list[str]:
    """What a gate says of each sweep against the first."""
    lines = []
    for index in range(1, len(found.sides)):
        changes = found.verdicts[index]
        is_damaged = bool(found.sides[0].damaged or found.sides[index].damaged)
        said = "no cell has a number in both"
        if changes:
            said = headline(changes, found.margin, is_damaged)
        lines.append(f"{LETTERS[index]} against A: {said}")
    return lines


def grids(found: SideBySide) -> list[Grid]:
    """A table for each quantity that two sweeps have of some cell; one of which nothing differs to
    the last digit is a line of ``notes``."""
    keys = [*COMPARED, MEMORY, *(key for key in QUALITIES if not _are_equal(found, key))]
    return [
        _grid(found, key)
        for key in keys
        if any(sum(key in values for values in row.values) > 1 for row in found.rows)
    ]


def _are_equal(found: SideBySide, key: str) -> bool:
    """Whether a quality was compared, and is the same everywhere."""
    shifts = list(_shifts(found, key))
    return bool(shifts) and all(shift is not None and shift.word == "equal" for shift in shifts)


def _shifts(found: SideBySide, key: str) -> Iterator[Shift | None]:
    """Of every two sweeps that both have this quality; None where it cannot be compared."""
    for row in found.rows:
        for values, against in zip(row.values, row.against, strict=True):
            if against is not None and key in values and key in row.values[against.base]:
                yield against.quality.get(key)


def _grid(found: SideBySide, key: str) -> Grid:
    letters = LETTERS[: len(found.sides)]
    columns = [
        *axes(found.columns),
        *(Column(letter, True) for letter in letters),
        *(Column(f"{letter} to A", shows_interval=True) for letter in letters[1:]),
    ]
    rows = []
    for row in found.rows:
        if not any(key in values for values in row.values):
            continue
        entries = [Entry(coordinate(row.any_result.asked, name)) for name in found.columns]
        entries += [_value(found, row, index, key) for index in range(len(letters))]
        entries += [_ratio(row.against[index], key) for index in range(1, len(letters))]
        rows.append(entries)
    return Grid(tuple(columns), rows, _TITLES[key])


def _value(found: SideBySide, row: Row, index: int, key: str) -> Entry:
    value = row.values[index].get(key)
    if value is not None:
        text = f"{value / MIB:,.1f}" if key == MEMORY else METRIC[key].text(value)
        return Entry(text, value)
    result = row.results[index]
    if result is None:
        return Entry("damaged" if row.any_result.cell_id in found.sides[index].damaged else "-")
    return Entry("-" if result.outcome.status == "ok" else result.outcome.status)


def _ratio(against: Against | None, key: str) -> Entry:
    if against is None:
        return Entry("-")
    to = f" to {LETTERS[against.base]}" if against.base else ""
    if key in COMPARED:
        if against.apart is not None:
            return Entry(f"{against.apart}{to}")
        return _of_times(against.times.get(key), to)
    if key == MEMORY:
        if against.memory is None:
            return Entry("-")
        text = "equal" if against.memory == 1 else f"{against.memory:.2f}x"
        return Entry(f"{text}{to}", against.memory)
    return _of_quality(against.quality.get(key), key, to)


def _of_times(change: Change | None, to: str) -> Entry:
    if change is None:
        return Entry("-")
    if change.low is None or change.high is None:
        return Entry(f"{change.ratio:.2f}x ?{to}", change.ratio)
    interval = f"({change.low:.2f}-{change.high:.2f})"
    return Entry(f"{change.ratio:.2f}x {change.word}{to}", change.ratio, interval)


def _of_quality(shift: Shift | None, key: str, to: str) -> Entry:
    if shift is None:
        return Entry("other texts or none")
    found = shift.value
    if shift.word == "equal":
        return Entry(f"equal{to}", found.value)
    ends = (found.low, found.high)
    if key == "perplexity":
        text, (low, high) = f"{found.value:.4f}x", (f"{end:.4f}" for end in ends)
    else:
        text, (low, high) = f"{found.value:+.2g}", (f"{end:+.2g}" for end in ends)
    interval = f"({low} to {high})" if math.isfinite(found.high) else ""
    return Entry(f"{text} {shift.word}{to}", found.value, interval)


def notes(found: SideBySide) -> list[str]:
    """What to know before trusting the tables."""
    changes = [
        (index, row, metric, change)
        for row in found.rows
        for index, against in enumerate(row.against)
        if against is not None
        for metric, change in against.times.items()
    ]
    lines = []
    if any(change.low is not None for *_, change in changes):
        lines.append(
            "Times are medians, verdicts stand on minimum times. Intervals hold at 95% for all"
            f" {len(changes)} comparisons together; within {share(found.margin)} is equivalent. A"
            " sweep is one sitting: what changes between two, like heat or neighbours, is in no"
            " interval."
        )
    if any(change.low is None for *_, change in changes):
        lines.append(
            "?: one process on each side, so nothing tells how much processes differ: measure both"
            " with measure=standard"
        )
    equal = [_NAMES[key] for key in QUALITIES if _are_equal(found, key)]
    if equal:
        lines.append(f"{' and '.join(equal)}: equal in every window of text, to the last digit")
    lines += [
        f"{LETTERS[index]}, {short_name(row.any_result.asked, found.columns)}: the medians of"
        f" {TIMES[metric]} say {change.medians_ratio:.2f}x: suspect other load, or a cost that only"
        " some requests pay"
        for index, row, metric, change in changes
        if _medians_disagree(change, found.margin)
    ]
    return lines


def _medians_disagree(change: Change, margin: float) -> bool:
    if change.word not in ("equivalent", "faster", "slower") or change.medians_ratio is None:
        return False
    gain, limit = math.log(change.medians_ratio), math.log1p(margin)
    said = "equivalent" if abs(gain) <= limit else "faster" if gain > 0 else "slower"
    return said != change.word


def summary(found: SideBySide, brief: bool = True) -> RenderableType:
    """All of it: what differs, the verdicts, the tables. ``brief``: for a terminal."""
    before = [*legend(found), *what_differs(found, brief), *verdicts(found)]
    return Group(*map(Text, before), *map(Fitted, grids(found)), *map(Text, notes(found)))
