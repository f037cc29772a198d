"""The policy of ``bench choose``: processes go where they may change the answer.

Every configuration is two cells: one whose prompts the search reads, and its *unseen* twin, the
same with another text. The search runs one process of each configuration that is still in the race,
round by round, in an order of its own each time (``analysis.racing`` says who is), until no more
are left than the confirmation takes. Before its first process a configuration may be dropped on a
prediction alone: its weights break the limit of memory, or reading them once takes longer than a
step may, or twice as long as the leader's step needs (twice, since small weights may lie in a
cache). A prediction never chooses. Quality is asked of what is in the race, once for all cells that
share it.

The confirmation then runs the twins of the leader and of its nearest rivals, three fresh processes
each and more while they do not tell which is the best, or, up to six, whether another equals it;
the answer is read off these alone, because the winner of a search owes part of its lead to luck.
The search leaves time for it in the budget.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from bench.analysis.columns import assignments, varying_columns
from bench.analysis.footprint import predict
from bench.analysis.metrics import derive
from bench.analysis.racing import Course, Question, Standing, standing
from bench.config.cell import Cell, cell_id
from bench.driver.policy import Job, Records, besides, wants_answers
from bench.record.result import Result

MOST_PROCESSES = 12  # of one configuration in the search, and again in the confirmation
_CONFIRMING = 3  # processes of each that is confirmed, at least
_SETTLING = 6  # and at most, once the best is known, to tell whether others equal it
_RIVALS = 2
_NEAR = 1.25  # times worse than the leader: what is further behind is no near rival
_CACHED = 2.0  # how many times as fast as from memory small weights may be read


def arm_of(cell: Cell) -> Cell:
    """The cell of a configuration that the search runs."""
    return replace(cell, measure=replace(cell.measure, passes=MOST_PROCESSES))


def twin_of(cell: Cell) -> Cell:
    """The same on prompts that the search does not read: another shipped text; where the prompts
    are the user's, the same ones as a cell of its own."""
    text = cell.workload.text
    if text is None:
        return replace(cell, measure=replace(cell.measure, name=f"{cell.measure.name}, again"))
    unseen = "prose" if text == "alice" else "alice"
    name = f"{cell.workload.name}, unseen"
    return replace(cell, workload=replace(cell.workload, name=name, text=unseen))


def race(records: Records, course: Course) -> Iterator[Job]:
    """Every job of a choice."""
    for cell in course.twins:
        result = records.results[cell]
        if result.outcome.status != "ok":
            course.dropped[cell] = f"before it ran: {result.outcome.reason}"
        elif (floor_s := _floor_s(records, result)) is not None:
            course.floors_s[cell] = floor_s
    _drop_by_limits(records, course)
    yield from _search(records, course)
    if course.search is not None and course.search.leader is not None:
        yield from _confirm(records, course)


def _search(records: Records, course: Course) -> Iterator[Job]:
    in_race = sorted(
        (cell for cell in course.twins if cell not in course.dropped),
        key=lambda cell: course.floors_s.get(cell, 0.0),  # the fastest sets the mark for others
    )
    for index in range(MOST_PROCESSES):
        if index:
            random.Random(f"{index}").shuffle(in_race)
        for cell in in_race:
            if len(records.results[cell].replicates) > index:  # by an earlier race of the same
                continue
            if index == 0 and (why := _too_slow(records, course, cell)):
                course.dropped[cell] = why
                continue
            if not _has_time(records, course, cell):
                _cut_short(records, course)
                return
            yield Job("time", cell, records.results[cell].cell)
            if records.results[cell].outcome.status != "ok":
                course.dropped[cell] = f"{records.results[cell].outcome.reason}"
        yield from _judge(records, course, index + 1)
        if course.search is None or course.search.state != "open":
            return
        in_race = [cell for cell in course.search.running if cell not in course.dropped]
        if len(in_race) <= 1 + _RIVALS:  # the confirmation tells them apart
            return


def _cut_short(records: Records, course: Course) -> None:
    """The budget is over: what is known so far has to do."""
    course.search = _stand(records, course, list(course.twins))
    for cell in course.twins:
        if cell not in course.dropped and not records.results[cell].measurements:
            course.dropped[cell] = "did not run: the budget was over"
            course.is_cut_short = True


def _judge(records: Records, course: Course, processes: int) -> Iterator[Job]:
    """Where the race stands; what is in it is asked for its quality first."""
    arms = list(course.twins)
    while (found := _stand(records, course, arms)) is not None:
        unasked = [
            cell
            for cell in found.running
            if records.results[cell].answers is None and wants_answers(records.results[cell].cell)
        ]
        if not unasked:
            break
        yield from besides(records, unasked[0], wants_profiles=False)
        if records.results[unasked[0]].answers is None:
            break  # it could not be asked: its log says why
    course.search = found
    if found is None:
        return
    for cell in found.chances:
        if cell not in found.running and cell not in course.dropped:
            course.dropped[cell] = f"after {processes} process{'es' * (processes > 1)} each"


def _confirm(records: Records, course: Course) -> Iterator[Job]:
    assert course.search is not None
    chances, behind = course.search.chances, course.search.behind
    order = sorted(chances, key=lambda cell: (-chances[cell], behind[cell]))
    rivals = [
        cell
        for cell in order[1:]
        if cell in course.search.running or (behind[cell] < _NEAR and _keeps(records, course, cell))
    ][:_RIVALS]
    course.confirmed = tuple(course.twins[cell] for cell in (order[0], *rivals))
    for index in range(MOST_PROCESSES):
        cells = list(course.confirmed)
        random.Random(f"confirm {index}").shuffle(cells)
        for cell in cells:
            result = records.results[cell]
            if result.outcome.status != "ok" or len(result.replicates) > index:
                continue
            if index and course.left_s() < _wall_s(result):
                return
            yield Job("time", cell, result.cell)
            yield from besides(records, cell, wants_profiles=False)
        course.final = _stand(records, course, course.confirmed)
        if index + 1 >= _CONFIRMING and _is_settled(course, index + 1):
            return


def _is_settled(course: Course, processes: int) -> bool:
    """Whether the confirmation has an answer, and has told whether the others equal it."""
    final = course.final
    if final is None or final.state == "open":
        return False
    confidence = course.question.confidence
    sure = [not 1 - confidence < chance < confidence for chance in final.chances.values()]
    return all(sure) or processes >= _SETTLING


def _stand(records: Records, course: Course, cells: Sequence[str]) -> Standing | None:
    """Of what has a number and ended well; None where nothing has."""
    results = [
        result
        for cell in cells
        if (result := records.results[cell]).measurements and result.outcome.status == "ok"
    ]
    if not results:
        return None
    unasked = frozenset(r.cell_id for r in results if r.answers is None and wants_answers(r.cell))
    values = {result.cell_id: derive(result) for result in results}
    return standing(results, values, course.question, unasked)


def _keeps(records: Records, course: Course, cell: str) -> bool:
    """Whether what was read of a cell, as it is, keeps the limits."""
    values = derive(records.results[cell])
    limits = course.question.limits.set_ones()
    readings = {
        "max_ttft_s": values["ttft_s"],
        "max_tpot_s": values["tpot_s"],
        "min_output_tok_s": values["output_tok_s"],
        "max_kl_nats": values.get("kl_nats", 0.0),
    }
    return all(
        readings[name] >= limit if name.startswith("min_") else readings[name] <= limit
        for name, limit in limits.items()
        if name in readings
    )


def _floor_s(records: Records, result: Result) -> float | None:
    """What a decode step takes at least: reading each matrix once, at the most that the device
    reads. None where that is not known, or where experts take turns."""
    description = records.description(result.cell)
    if description is None or result.peaks is None:
        return None
    if any("experts" in matrix.name for matrix in description.matrices):
        return None
    read = sum(
        matrix.count * matrix.stored_bytes
        for matrix in description.matrices
        if matrix.kind != "embedding" or description.is_tied
    )
    return read / result.peaks.read_bytes_s


def _drop_by_limits(records: Records, course: Course) -> None:
    """What cannot keep a limit by prediction alone."""
    limits = course.question.limits
    for cell in course.twins:
        result = records.results[cell]
        description = records.description(result.cell)
        if cell in course.dropped:
            continue
        if description is not None and limits.max_memory_bytes is not None:
            least = predict(result.cell, description).least_bytes
            if least > limits.max_memory_bytes:
                course.dropped[cell] = (
                    f"before it ran: weights and cache alone take {least / 2**20:,.0f} MiB"
                )
        floor_s = course.floors_s.get(cell, 0.0) / _CACHED
        slowest_s = min(
            limits.max_tpot_s or float("inf"),
            result.cell.rows / limits.min_output_tok_s if limits.min_output_tok_s else float("inf"),
        )
        if floor_s > slowest_s:
            course.dropped[cell] = (
                f"before it ran: reading its weights alone takes {floor_s * 1e3:.1f} ms a step"
            )


def _too_slow(records: Records, course: Course, cell: str) -> str | None:
    """Why a cell need not run: no step of it can be as fast as the leader's is."""
    floor_s = course.floors_s.get(cell)
    if floor_s is None or course.question.goal not in ("tpot", "throughput", "cost"):
        return None
    found = _stand(records, course, list(course.twins))
    if found is None or found.leader is None or found.leader == cell:
        return None
    leader, result = records.results[found.leader], records.results[cell]
    if leader.answers is None and wants_answers(leader.cell):
        return None  # it may break the limit of divergence, and lead no more
    a_row_s = derive(leader)["tpot_s"] * result.cell.rows / leader.cell.rows
    needed_s = derive(leader)["tpot_s"] if course.question.goal == "tpot" else a_row_s
    if floor_s / _CACHED <= needed_s:
        return None
    return (
        f"before it ran: reading its weights takes {floor_s * 1e3:.1f} ms a step,"
        f" {course.labels[found.leader]} needs {needed_s * 1e3:.1f} ms in all"
    )


def _has_time(records: Records, course: Course, cell: str) -> bool:
    """Whether a process of the search still leaves time for the confirmation."""
    walls = [
        _wall_s(result) for each in course.twins if (result := records.results[each]).replicates
    ]
    if not walls:
        return True
    own = records.results[cell]
    a_process_s = _wall_s(own) if own.replicates else fmean(walls)
    leader = course.search.leader if course.search is not None else None
    led_s = _wall_s(records.results[leader]) if leader is not None else fmean(walls)
    return course.left_s() > a_process_s + _CONFIRMING * (1 + _RIVALS) * led_s


def _wall_s(result: Result) -> float:
    return fmean(replicate.wall_s for replicate in result.replicates) if result.replicates else 0.0


def course_of(cells: Sequence[Cell], question: Question, budget_s: float) -> Course:
    """Before anything has run. ``cells``: as they were asked for."""
    arms = [arm_of(cell) for cell in cells]
    twins = {cell_id(arm): cell_id(twin_of(arm)) for arm in arms}
    columns = tuple(varying_columns(arms))
    labels = {cell_id(arm): assignments(arm, columns) for arm in arms}
    return Course(question, budget_s, twins, labels, columns)
