"""Which blocks of a sweep are out on a cluster, which are to follow, and what was lost.

A block is one pass of the cells that are compared with each other. All passes are handed out at
once, but those that wait for what ``max`` means. Of the cells that share their answers one is
asked, by the block of its first pass; if that comes to nothing, another one is, when all blocks are
in.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.analysis.columns import identity_without
from bench.config.cell import sample_key
from bench.driver.cluster import Cluster
from bench.driver.orders import Block, Refused, Sized, Step, packed
from bench.driver.policy import Records, wants_answers
from bench.record.result import Answers, Outcome, Result, is_timed
from bench.report.terminal import say


def compared_cells(results: Sequence[Result], axes: Sequence[str]) -> list[list[str]]:
    """cell_ids of what can run, by groups that are equal but for these axes."""
    groups: dict[str, list[str]] = {}
    for result in results:
        if result.outcome.status == "ok":
            groups.setdefault(identity_without(result.cell, axes), []).append(result.cell_id)
    return list(groups.values())


@dataclass(slots=True)
class _Out:
    """A block that is out, and of which cells its timed process has come back."""

    block: Block
    tries: int  # before this one
    came: set[str]
    avoided: frozenset[str] = frozenset()  # nodes that it was not to go to


class HandingOut:
    """Which blocks are out, which are to follow, and what was lost."""

    def __init__(
        self,
        records: Records,
        groups: Sequence[Sequence[str]],
        cluster: Cluster,
        retries: int,
        avoided: Collection[str],
    ) -> None:
        self._records, self._groups, self._cluster = records, groups, cluster
        self._retries = retries
        self._avoided = set(avoided)  # nodes that have refused
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
            self._hand_out([block for number in numbers for block in self._questions(number)])
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

    def has(self, name: str, step: Step) -> bool:
        """Whether a process is in the records already."""
        replicates = self._records.results[step.job.cell_id].replicates
        is_timed = step.job.kind == "time"
        return name not in self._out or (
            is_timed and step.timing.origin in [replicate.origin for replicate in replicates]
        )

    def done(self, name: str) -> None:
        """A block is over; passes that waited for it follow."""
        block = self._out.pop(name).block
        for result in () if block.is_timed else block.results:
            if self._records.results[result.cell_id].answers is None:
                self._reasons[result.cell_id] = "its node gave no answer"
        self._follow(block)

    def refuse(self, name: str, refused: Refused) -> None:
        """A node does not take a block: that costs no try, unless it was to be avoided."""
        out = self._out[name]
        if refused.node not in self._avoided:
            self._avoided.add(refused.node)
            say(f"{refused.reason}; nothing more is sent there")
        if refused.node not in out.avoided:
            out.tries -= 1
        self.lose(name, refused.reason)

    def lose(self, name: str, reason: str) -> None:
        """A node did not carry out its block: another one gets what is missing of it."""
        lost = self._out.pop(name)
        left = tuple(
            replace(now, replicates=result.replicates)
            for result in lost.block.results
            if result.cell_id not in lost.came
            and (now := self._records.results[result.cell_id]).outcome.status == "ok"
        )
        if lost.tries < self._retries and left:
            if lost.tries >= 0:
                say(f"{', '.join(result.cell.label for result in left)}: again, {reason}")
            block = replace(lost.block, results=left)
            self._hand_out([_Out(block, lost.tries + 1, lost.came)])
            return
        for result in left:
            self._reasons[result.cell_id] = reason
        self._follow(lost.block)

    def _follow(self, block: Block) -> None:
        later = self._later.pop(block.number, [])
        self._hand_out([self._block(block.number, index) for index in later])

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

    def _block(self, number: int, index: int) -> _Out:
        results = [self._records.results[cell] for cell in self._groups[number]]
        due = tuple(
            result
            for result in results
            if result.outcome.status == "ok"
            and index in _passes_left(result)
            and result.cell_id not in self._reasons
        )
        asks = [result for result in due if self._is_to_be_asked(result)]
        return self._of(number, index, due, asks, is_timed=True)

    def _questions(self, number: int) -> list[_Out]:
        """Of cells that are timed already."""
        results = [self._records.results[cell] for cell in self._groups[number]]
        asks = [
            result
            for result in results
            if result.measurements
            and result.cell_id not in self._reasons
            and self._is_to_be_asked(result)
        ]
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
            each.avoided = frozenset(self._avoided)
            self._out[name] = each
            orders[name] = packed(each.block)
        if orders:
            self._cluster.submit(orders, self._avoided)


def _passes_left(result: Result) -> Sequence[int]:
    if is_timed(result):
        return ()
    return range(len(result.replicates), result.cell.measure.passes)
