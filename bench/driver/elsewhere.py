"""A sweep whose processes run on the nodes of a cluster; the records stay here.

The driver composes, validates and plans as for this machine, for the kind of machine that one node
of the cluster says it is. Then it hands out blocks: one pass of the cells that are compared with
each other, one after another on one node. That is the block of the verdict's design
(``analysis.verdict``): what a node has of its own falls on all cells of a comparison alike. Blocks
and passes run side by side on as many nodes as there are. What comes back of each process goes into
the same records, by the same functions, as a process of this machine; so resume, report, push and
MLflow do not know where a cell ran.

A node that is lost costs what it had not sent: those cells are handed out again, a few times, then
they are ``lost``. A node of another kind refuses. One job at a time uses a node, by the same lock
as here. Ctrl-C keeps what has come and ends the rest.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.analysis.columns import baseline_axes, identity_without
from bench.config.cell import cell_id, sample_key
from bench.config.settings import Config, Where
from bench.driver.cluster import Cluster, Lost, cluster_of
from bench.driver.lock import signals_as_interrupts
from bench.driver.machine import Machine
from bench.driver.orders import (
    Answer,
    Block,
    Done,
    Look,
    Looked,
    Refused,
    Sized,
    Step,
    packed,
)
from bench.driver.policy import Records, wants_answers
from bench.driver.provenance import provenance
from bench.driver.recording import Recording, Report, Request, open_sweep, recording_of
from bench.driver.sweep import (
    Ended,
    check_places,
    common_settings,
    exit_code,
    show,
    show_plan,
)
from bench.errors import BenchError
from bench.record.result import Answers, Outcome, Result, is_timed
from bench.report import page
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store import files

_WAIT_S = 1.0  # for answers, between two looks at the progress line

Join = Callable[[Where, Path], Cluster]


def run_elsewhere(
    configs: Sequence[Config],
    overrides: Sequence[str],
    join: Join = cluster_of,
    report: Report = page.try_report,
) -> int:
    """Measure every cell on a cluster; returns the exit code.

    Raises:
        ConfigError: before anything runs.
        BenchError: when no node can be used.
    """
    settings = common_settings(configs)
    asked = list({cell_id(config.cell): config.cell for config in configs}.values())
    outputs = Path(settings.output_dir)
    check_places(settings, outputs)
    request = Request(settings, outputs, tuple(overrides), provenance(asked))
    try:
        with (
            signals_as_interrupts(),
            ProgressLine() as progress,
            contextlib.closing(join(settings.where, outputs)) as cluster,
        ):
            looked = _look(Look(tuple(asked), not settings.dry_run), cluster, progress)
            machine = Machine(looked.hosts, looked.descriptions)
            records = machine.records(asked, settings, outputs)
            for key, result in records.results.items():
                peaks = result.peaks or looked.peaks.get(key)
                records.results[key] = replace(result, peaks=peaks)
            if settings.dry_run:
                show_plan(records, request)
                return 0
            ended = _measure(records, request, cluster, progress, report)
    except KeyboardInterrupt:
        say("interrupted before the first cell")
        return 130
    show(ended)
    return 130 if ended.interrupted else exit_code(ended)


def _look(order: Look, cluster: Cluster, progress: ProgressLine) -> Looked:
    """What one node says that it and the models are. Raises: BenchError when none answers."""
    cluster.submit({"look": packed(order)})
    looked: Looked | None = None
    while True:
        progress.show("looking at a node")
        for _, answer in cluster.answers(_WAIT_S):
            if isinstance(answer, Looked):
                looked = answer
            elif isinstance(answer, (Refused, Lost)):
                raise BenchError(f"no node can be used: {answer.reason}")
            elif isinstance(answer, Done) and looked is not None:
                return looked


def _measure(
    records: Records, request: Request, cluster: Cluster, progress: ProgressLine, report: Report
) -> Ended:
    recorder, folder = open_sweep(records, request)
    with recording_of(records, recorder, folder, report) as recording:
        recording.begin()
        results = list(records.results.values())
        against = baseline_axes([result.cell for result in results], request.settings.baseline)
        groups = compared_cells(results, () if against is None else tuple(against.values))
        handing_out = HandingOut(records, groups, cluster, request.settings.where.retries)
        progress.plan(handing_out.processes_left())
        handing_out.begin()
        while handing_out.is_open():
            progress.show(handing_out.state())
            for name, answer in cluster.answers(_WAIT_S):
                _take(handing_out, name, answer, recording, progress)
        for key in handing_out.give_up():
            recording.changed(key)
    return Ended(recorder, folder, recording.comparison, recording.interrupted)


def compared_cells(results: Sequence[Result], axes: Sequence[str]) -> list[list[str]]:
    """cell_ids of what can run, by groups that are equal but for these axes."""
    groups: dict[str, list[str]] = {}
    for result in results:
        if result.outcome.status == "ok":
            groups.setdefault(identity_without(result.cell, axes), []).append(result.cell_id)
    return list(groups.values())


def _take(
    handing_out: "HandingOut",
    name: str,
    answer: Answer | Lost,
    recording: Recording,
    progress: ProgressLine,
) -> None:
    if isinstance(answer, Step):
        handing_out.came(name, answer)
        log = files.cell_folder(recording.folder, answer.job.cell_id) / "log.txt"
        with open(log, "a", encoding="utf-8") as out:
            out.write(answer.log)
        recording.keep(answer.job, answer.value, answer.timing, log)
        if answer.job.kind == "time":
            progress.cell(answer.job.cell.label)
            progress.finished()
    elif isinstance(answer, Sized):
        handing_out.size(answer)
        recording.changed(answer.cell_id)
    elif isinstance(answer, Done):
        handing_out.done(name)
    elif isinstance(answer, (Refused, Lost)):
        handing_out.lose(name, answer.reason)


@dataclass(slots=True)
class _Out:
    """A block that is out, and of which cells its timed process has come back."""

    block: Block
    tries: int  # before this one
    came: set[str]


class HandingOut:
    """Which blocks are out, which are to follow, and what was lost."""

    def __init__(
        self, records: Records, groups: Sequence[Sequence[str]], cluster: Cluster, retries: int
    ) -> None:
        self._records, self._groups, self._cluster = records, groups, cluster
        self._retries = retries
        self._out: dict[str, _Out] = {}
        self._later: dict[int, list[int]] = {}  # passes that wait for what max means, by group
        self._reasons: dict[str, str] = {}  # why a process was lost, by cell_id
        self._names: Counter[str] = Counter()
        self._asked: set[str] = set()  # sample keys that some block has asked, or asks

    def processes_left(self) -> int:
        """How many timed ones are to run."""
        return sum(
            len(_passes_left(self._records.results[cell]))
            for group in self._groups
            for cell in group
        )

    def begin(self) -> None:
        """Hand out every block that can run now."""
        blocks: list[_Out] = []
        for number, group in enumerate(self._groups):
            results = [self._records.results[cell] for cell in group]
            passes = sorted({index for result in results for index in _passes_left(result)})
            if any(result.cell.is_to_be_sized for result in results):
                passes, self._later[number] = passes[:1], passes[1:]
            blocks += [self._block(number, index) for index in passes]
            blocks += self._questions(number)
        self._hand_out(blocks)

    def is_open(self) -> bool:
        """Whether an answer is to come. What was asked for its quality in vain is asked once
        more."""
        if not self._out:
            numbers = range(len(self._groups))
            self._asked -= {key for key in self._asked if key not in self._records.answers}
            unasked = [block for number in numbers for block in self._questions(number)]
            self._hand_out([each for each in unasked if not self._is_hopeless(each.block)])
        return bool(self._out)

    def state(self) -> str:
        """For the progress line."""
        count = len(self._out)
        return f"{count} job{'s' * (count != 1)} handed out"

    def came(self, name: str, step: Step) -> None:
        """A process has ended."""
        if step.job.kind == "time":
            self._out[name].came.add(step.job.cell_id)

    def size(self, sized: Sized) -> None:
        """The number that ``max`` stands for is known."""
        result = self._records.results[sized.cell_id]
        self._records.results[sized.cell_id] = replace(
            result, cell=sized.cell, outcome=sized.outcome
        )

    def done(self, name: str) -> None:
        """A block is over; passes that waited for it follow."""
        number = self._out.pop(name).block.number
        later = self._later.pop(number, [])
        self._hand_out([self._block(number, index) for index in later])

    def lose(self, name: str, reason: str) -> None:
        """A node did not carry out its block: another one gets what is missing of it."""
        lost = self._out.pop(name)
        block = lost.block
        left = tuple(
            replace(self._records.results[result.cell_id], replicates=result.replicates)
            for result in block.results
            if result.cell_id not in lost.came
        )
        left = tuple(result for result in left if result.outcome.status == "ok")
        if lost.tries < self._retries and left:
            say(f"{', '.join(result.cell.label for result in left)}: again, {reason}")
            self._hand_out([_Out(replace(block, results=left), lost.tries + 1, lost.came)])
            return
        for result in left:
            self._reasons[result.cell_id] = reason
        self._later.pop(block.number, None)

    def give_up(self) -> Iterator[str]:
        """Say in the records what is missing; the cell_ids of those that are others now."""
        for cell, reason in self._reasons.items():
            result = self._records.results[cell]
            if result.outcome.status != "ok":
                continue
            done, wanted = len(result.replicates), result.cell.measure.passes
            if not done:
                outcome = Outcome("lost", reason)
            elif done < wanted:
                outcome = Outcome("ok", f"{done} of {wanted} processes: {reason}")
            else:
                outcome = result.outcome
            answers = result.answers
            if answers is None and result.replicates and wants_answers(result.cell):
                answers = Answers(Outcome("lost", reason))
            self._records.results[cell] = replace(result, outcome=outcome, answers=answers)
            yield cell

    def _is_hopeless(self, block: Block) -> bool:
        return any(result.cell_id in self._reasons for result in block.results)

    def _block(self, number: int, index: int) -> _Out:
        results = [self._records.results[cell] for cell in self._groups[number]]
        due = tuple(
            result
            for result in results
            if result.outcome.status == "ok" and index in _passes_left(result)
        )
        asks = [result for result in due if self._is_to_be_asked(result)]
        return self._of(number, index, due, asks, is_timed=True)

    def _questions(self, number: int) -> list[_Out]:
        """Of cells that are timed already."""
        results = [self._records.results[cell] for cell in self._groups[number]]
        asks = [r for r in results if is_timed(r) and r.measurements and self._is_to_be_asked(r)]
        return [self._of(number, 0, tuple(asks), asks, is_timed=False)] if asks else []

    def _is_to_be_asked(self, result: Result) -> bool:
        key = sample_key(result.cell)
        if result.answers is not None or not wants_answers(result.cell) or key in self._asked:
            return False
        self._asked.add(key)
        return True

    def _of(
        self,
        number: int,
        index: int,
        results: tuple[Result, ...],
        asks: Sequence[Result],
        is_timed: bool,
    ) -> _Out:
        block = Block(
            number=number,
            pass_index=index,
            results=results,
            is_timed=is_timed,
            asks=frozenset(result.cell_id for result in asks),
            hosts=self._records.hosts,
            descriptions=self._records.descriptions,
        )
        return _Out(block, 0, set())

    def _hand_out(self, blocks: Sequence[_Out]) -> None:
        orders: dict[str, bytes] = {}
        for each in blocks:
            if not each.block.results:
                continue
            name = f"block-{each.block.number}-pass-{each.block.pass_index}"
            self._names[name] += 1
            name = f"{name}-{self._names[name]}"
            self._out[name] = each
            orders[name] = packed(each.block)
        if orders:
            self._cluster.submit(orders)


def _passes_left(result: Result) -> Sequence[int]:
    if is_timed(result):
        return ()
    return range(len(result.replicates), result.cell.measure.passes)
