"""Sweeps on a cluster: what is handed out, what is lost and run again, what the records say.

The cluster is one of this file, whose jobs end as a test says; real ones are in
``tests/test_clusters.py``.
"""

import pickle
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.verdict import groups_with_blocks, speedups
from bench.config.cell import Cell, cell_id, sample_key
from bench.config.settings import Config, Where
from bench.driver import node
from bench.driver.cluster import Lost
from bench.driver.elsewhere import run_elsewhere
from bench.driver.orders import (
    Answer,
    Block,
    Done,
    Look,
    Looked,
    Order,
    Refused,
    Sized,
    Step,
    packed,
    unpacked,
)
from bench.driver.policy import Job
from bench.driver.sweep import only_here
from bench.driver.worker import Timing, begin
from bench.errors import BenchError, CellFailure, ConfigError
from bench.record.result import Answers, Findings, Origin, Outcome, Result
from bench.store.files import read_results, read_sweep
from tests import fakes
from tests.scripted import scripted, settings

ASKED = {
    "model": fakes.group("model", "tiny", weights="pretrained", path="/nowhere"),
    "quality": fakes.group("quality", "samples", texts=[]),
}
FP32, NF4 = (fakes.group("quant", name) for name in ("fp32", "nf4"))
HOST = fakes.host()
FINDINGS = Findings("0.1.2", fakes.attestation(), fakes.measurement())
Carry = Callable[[Block, int], list[Answer | Lost]]  # an order, and how many came before it


def three(**changes: Any) -> Cell:
    """A cell of three passes."""
    measure = {"passes": 3} | changes.pop("measure", {})
    return scripted(measure=measure, **changes)


def step(block: Block, result: Result, kind: str = "time", value: Any = FINDINGS) -> Step:
    origin = Origin(f"node-{block.number}", block.pass_index, block.number)
    job = Job(kind, result.cell_id, result.cell)  # type: ignore[arg-type]
    return Step(job, value, Timing(100.0 + block.pass_index, 1.0, {"measure": 1.0}, origin), "")


def carried_out(block: Block, before: int = 0) -> list[Answer | Lost]:
    """What a node sends that does all it is asked for."""
    steps: list[Answer | Lost] = []
    for result in block.results:
        if block.is_timed:
            steps.append(step(block, result))
        if result.cell_id in block.asks:
            steps.append(step(block, result, "quality", fakes.answers()))
    return [*steps, Done()]


class Cluster:
    """Carries out orders as a function says, in an order by chance."""

    def __init__(self, carry: Carry = carried_out) -> None:
        self.carry = carry
        self.orders: list[Order] = []
        self.waiting: list[tuple[str, list[Answer | Lost]]] = []
        self.is_closed = False
        self.avoided: set[str] = set()
        self._chance = random.Random(0)

    def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
        self.avoided = set(avoid)
        for name, order in orders.items():
            read = unpacked(order)
            before = len(self.orders)
            self.orders.append(read)
            if isinstance(read, Look):
                engines = {"scripted", "transformers"}
                looked = Looked(dict.fromkeys(engines, HOST), {}, {})
                self.waiting.append((name, [looked, Done()]))
            else:
                self.waiting.append((name, self.carry(read, before)))
        self._chance.shuffle(self.waiting)

    def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
        if not self.waiting:
            return []
        name, found = self.waiting.pop()
        return [(name, answer) for answer in found]

    def close(self) -> None:
        self.is_closed = True

    @property
    def blocks(self) -> list[Block]:
        return [order for order in self.orders if isinstance(order, Block)]


def sweep(
    outputs: Path, cluster: Cluster, *cells: Cell, **changes: Any
) -> tuple[int, list[Result]]:
    changed = {"where": Where("ray", retries=1)} | changes
    configs = [Config(cell, settings(outputs, **changed)) for cell in cells]
    code = run_elsewhere(configs, (), lambda where, folder: cluster, lambda folder, comparison: [])
    folders = sorted((outputs / "sweeps").glob("*"))
    return code, list(read_results(folders[-1])) if folders else []


def passes(result: Result) -> list[int | None]:
    return [None if r.origin is None else r.origin.pass_index for r in result.replicates]


def test_a_block_is_a_pass_of_the_cells_that_are_compared_with_each_other(tmp_path: Path) -> None:
    grid = [three(quant=quant, batch=batch) for quant in (FP32, NF4) for batch in (1, 8)]
    cluster = Cluster()
    code, results = sweep(tmp_path, cluster, *grid)
    assert code == 0
    assert cluster.is_closed
    assert len(cluster.blocks) == 6
    for block in cluster.blocks:
        cells = [result.cell for result in block.results]
        assert [cell.quant.name for cell in cells] == ["fp32", "nf4"]
        assert cells[0].batch == cells[1].batch
    assert [passes(result) for result in results] == [[0, 1, 2]] * 4  # however they came
    groups = groups_with_blocks(results)
    assert sorted(map(sorted, groups)) == sorted(
        sorted(r.cell_id for r in results if r.cell.batch == batch) for batch in (1, 8)
    )


def test_what_a_lost_node_had_sent_is_kept_and_the_rest_is_handed_out_again(tmp_path: Path) -> None:
    def carry(block: Block, before: int) -> list[Answer | Lost]:
        if before == 1:
            return [step(block, block.results[0]), Lost("the node is gone")]
        return carried_out(block)

    cluster = Cluster(carry)
    code, results = sweep(tmp_path, cluster, scripted(quant=FP32), scripted(quant=NF4))
    assert code == 0
    first, again = cluster.blocks
    assert [len(first.results), len(again.results)] == [2, 1]
    assert again.results[0].cell.quant.name == "nf4"
    assert [len(result.measurements) for result in results] == [1, 1]


def test_what_is_lost_each_time_is_lost_and_costs_no_other_cell(tmp_path: Path) -> None:
    def carry(block: Block, before: int) -> list[Answer | Lost]:
        is_bad = block.results[0].cell.batch == 8 and block.pass_index > 0
        return [Lost("node-8 is gone")] if is_bad else carried_out(block)

    def carry_none(block: Block, before: int) -> list[Answer | Lost]:
        return (
            [Refused("node-8", "node-8 is another kind")]
            if block.results[0].cell.batch == 8
            else (carried_out(block))
        )

    cluster = Cluster(carry)
    code, results = sweep(tmp_path / "some", cluster, three(batch=1), three(batch=8))
    assert code == 0
    assert [r.outcome for r in results] == [
        Outcome("ok"),
        Outcome("ok", "1 of 3 processes: node-8 is gone"),
    ]
    assert len(cluster.blocks) == 3 + 1 + 2 * 2
    code, results = sweep(tmp_path / "all", Cluster(carry_none), three(batch=1), three(batch=8))
    assert code == 1
    assert [r.outcome.status for r in results] == ["ok", "lost"]
    assert results[1].outcome.reason == "node-8 is another kind"


def test_a_node_that_refuses_costs_no_try_and_gets_nothing_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mixed(Cluster):
        def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
            is_left_out = "old" in avoid
            self.carry = carried_out if is_left_out else lambda *_: [Refused("old", "old is old")]
            super().submit(orders, avoid)

    cluster = Mixed()
    code, results = sweep(
        tmp_path, cluster, three(batch=1), three(batch=8), where=Where("ray", retries=0)
    )
    assert code == 0
    assert [len(result.measurements) for result in results] == [3, 3]
    assert capsys.readouterr().err.count("old is old; nothing more is sent there") == 1


def test_looking_is_tried_again_elsewhere(tmp_path: Path) -> None:
    class FirstIsOld(Cluster):
        def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
            super().submit(orders, avoid)
            if not avoid:
                self.waiting = [(name, [Refused("old", "old is old")]) for name in orders]

    cluster = FirstIsOld()
    assert sweep(tmp_path, cluster, scripted())[0] == 0
    assert [type(order) for order in cluster.orders] == [Look, Look, Block]


def test_cells_that_ran_on_different_nodes_get_no_verdict(tmp_path: Path) -> None:
    cells = three(quant=FP32), three(quant=NF4)
    _, results = sweep(tmp_path, Cluster(), *cells)
    pair = [(results[1].cell_id, results[0].cell_id)]
    assert speedups(results, pair, 0.03, {})["tpot_s"][results[1].cell_id].word == "equivalent"
    moved = replace(
        results[1],
        replicates=tuple(
            replace(r, origin=replace(r.origin, node="another"))  # type: ignore[type-var]
            for r in results[1].replicates
        ),
    )
    words = speedups([results[0], moved], pair, 0.03, {})["tpot_s"]
    assert words[moved.cell_id].word == "cannot tell"


def test_memory_that_differs_by_megabytes_is_the_same_kind() -> None:
    one, other = (
        node.of_its_kind(fakes.host(memory_bytes=m)) for m in (62_900_000_000, 62_700_000_000)
    )
    assert one == other
    assert one.memory_bytes == 58 * 2**30
    assert node.of_its_kind(fakes.host(memory_bytes=250_900_000_000)).memory_bytes == 230 * 2**30


def test_a_lost_cell_is_measured_again_by_the_next_sweep_and_the_others_are_not(
    tmp_path: Path,
) -> None:
    cells = three(batch=1), three(batch=8)
    lose = Cluster(
        lambda block, _: (
            [Lost("gone")] if block.results[0].cell.batch == 8 else (carried_out(block))
        )
    )
    assert sweep(tmp_path, lose, *cells)[0] == 1
    cluster = Cluster()
    code, results = sweep(tmp_path, cluster, *cells, resume=True)
    assert code == 0
    assert {result.cell.batch for block in cluster.blocks for result in block.results} == {8}
    assert [result.reused_from is None for result in results] == [False, True]


def test_quality_is_asked_once_for_all_cells_that_share_it(tmp_path: Path) -> None:
    cells = [three(batch=batch, **ASKED) for batch in (1, 2, 8)]
    cluster = Cluster()
    _, results = sweep(tmp_path, cluster, *cells)
    assert len({sample_key(result.cell) for result in results}) == 1
    assert sum(len(block.asks) for block in cluster.blocks) == 1
    assert [result.answers for result in results] == [fakes.answers()] * 3


def test_another_cell_is_asked_where_the_first_one_fails(tmp_path: Path) -> None:

    def carry(block: Block, before: int) -> list[Answer | Lost]:
        (result,) = block.results
        if result.cell.batch == 1:
            return [step(block, result, value=CellFailure("failed", "it broke")), Done()]
        return carried_out(block)

    cluster = Cluster(carry)
    code, results = sweep(tmp_path, cluster, *[scripted(batch=batch, **ASKED) for batch in (1, 2)])
    assert code == 1
    assert results[0].outcome == Outcome("failed", "it broke", None)
    assert results[1].answers == fakes.answers()
    assert [(b.is_timed, len(b.asks)) for b in cluster.blocks] == [(True, 1), (True, 0), (False, 1)]


def test_answers_that_are_lost_each_time_end_the_sweep_all_the_same(tmp_path: Path) -> None:

    def carry(block: Block, before: int) -> list[Answer | Lost]:
        steps = [step(block, result) for result in block.results if block.is_timed]
        return [*steps, Lost("the node is gone")]

    cluster = Cluster(carry)
    code, results = sweep(tmp_path, cluster, scripted(**ASKED))
    assert code == 0
    assert results[0].outcome == Outcome("ok")
    assert results[0].answers == Answers(Outcome("lost", "the node is gone"))
    assert len(cluster.blocks) == 3


def test_passes_wait_for_what_max_means(tmp_path: Path) -> None:
    def carry(block: Block, before: int) -> list[Answer | Lost]:
        (result,) = block.results
        if not result.cell.is_to_be_sized:
            return carried_out(block)
        cell = result.cell.sized(24)
        sized = Sized(result.cell_id, cell, Outcome("ok"))
        return [sized, step(block, replace(result, cell=cell)), Done()]

    cluster = Cluster(carry)
    code, results = sweep(tmp_path, cluster, three(batch="max"))
    assert code == 0
    assert [block.results[0].cell.batch for block in cluster.blocks] == ["max", 24, 24]
    assert results[0].cell.batch == 24
    assert passes(results[0]) == [0, 1, 2]


def test_later_passes_follow_where_a_block_is_lost_after_its_timed_process(tmp_path: Path) -> None:
    def carry(block: Block, before: int) -> list[Answer | Lost]:
        (result,) = block.results
        if not result.cell.is_to_be_sized:
            return carried_out(block)
        cell = result.cell.sized(24)
        sized = Sized(result.cell_id, cell, Outcome("ok"))
        return [sized, step(block, replace(result, cell=cell)), Lost("the node is gone")]

    code, results = sweep(tmp_path, Cluster(carry), three(batch="max"))
    assert code == 0
    assert passes(results[0]) == [0, 1, 2]


def test_ctrl_c_keeps_what_has_come(tmp_path: Path) -> None:
    class Interrupted(Cluster):
        def answers(self, limit_s: float) -> list[tuple[str, Answer | Lost]]:
            if limit_s and len(self.waiting) == 1 and self.blocks:
                raise KeyboardInterrupt
            return super().answers(limit_s)

    cluster = Interrupted()
    code, results = sweep(tmp_path, cluster, scripted(batch=1), scripted(batch=8))
    assert code == 130
    assert cluster.is_closed
    # What lay ready when it came is read as well
    assert [len(result.measurements) for result in results] == [1, 1]
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert len(read_sweep(folder).cells) == 2


def test_a_cluster_without_a_usable_node_is_one_sentence(tmp_path: Path) -> None:
    class Bad(Cluster):
        def submit(self, orders: Mapping[str, bytes], avoid: Collection[str] = ()) -> None:
            self.waiting = [(name, [Lost("the worker has died")]) for name in orders]

    with pytest.raises(BenchError, match="no node can be used: the worker has died"):
        sweep(tmp_path, Bad(), scripted())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"profile": True}, "profile=true goes with where=here"),
        ({"cuda_device": 1}, "device=cuda:1 goes with where=here"),
    ],
)
def test_what_stays_on_one_machine_is_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        settings(tmp_path, where=Where("ray"), **changes)


def test_a_failure_survives_the_way_between_machines() -> None:
    failure = CellFailure("oom", "no memory")
    failure.add_note("Traceback: ...")
    back = pickle.loads(pickle.dumps(failure))
    assert (back.status, back.reason, back.__notes__) == ("oom", "no memory", ["Traceback: ..."])


def test_a_node_with_other_code_takes_no_order() -> None:
    order = packed(Look((scripted(),), False))
    sent: list[Answer] = []
    node.answer(bytes(32) + order[32:], sent.append)
    assert len(sent) == 1
    assert isinstance(sent[0], Refused)
    assert "has other code" in sent[0].reason


def test_a_node_of_another_kind_takes_no_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))
    looked: list[Answer] = []
    cell = scripted()
    node.answer(packed(Look((cell,), False)), looked.append)
    assert isinstance(looked[0], Looked)
    host = looked[0].hosts["scripted"]
    result = begin(cell, cell, host)

    def block(wanted: Any) -> bytes:
        return packed(Block(0, 0, (result,), True, frozenset(), {"scripted": wanted}, {}))

    sent: list[Answer] = []
    node.answer(
        block(replace(host, cpu_name="A finer CPU", device_name="A finer CPU")), sent.append
    )
    assert len(sent) == 1
    assert isinstance(sent[0], Refused)
    assert "A finer CPU then" in sent[0].reason
    sent.clear()
    node.answer(block(replace(host, memory_bytes=1, cpu_ids=(7,))), sent.append)
    assert [type(each) for each in sent] == [Step, Done]
    assert sent[0].job.cell_id == cell_id(cell)  # type: ignore[union-attr]


def test_other_commands_measure_on_this_machine() -> None:
    with pytest.raises(ConfigError, match="where=slurm goes with sweeps"):
        only_here(settings(Path("x"), where=Where("slurm")))
