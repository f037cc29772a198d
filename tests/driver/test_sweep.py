"""The driver from asked cells to results on disk, on the scripted engine."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from bench.config.cell import Cell, cell_id
from bench.config.prompt_file import cells_of, with_digests
from bench.config.settings import Config, Tracking, parse_config
from bench.driver.process import OnPhase, Task
from bench.driver.sweep import common_settings, show_only
from bench.errors import CellFailure, ConfigError
from bench.record.result import SCHEMA, Answers, Outcome, Result
from bench.store.files import read_results, read_sweep
from tests import fakes, stores
from tests.command_line import wait_until_gone
from tests.scripted import UNTRACKED, in_this_process, scripted, sweep

FP32, NF4 = (fakes.group("quant", name) for name in ("fp32", "nf4"))
IN_ORDER = 1  # a seed with which the first pass takes two cells in the order of the grid


def statuses(results: list[Result]) -> list[str]:
    return [result.outcome.status for result in results]


def test_every_cell_of_a_grid_is_measured_in_each_pass_and_recorded(tmp_path: Path) -> None:
    script = "nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.5 0.5"
    grid = [
        scripted(script, quant=quant, batch=batch, measure={"passes": 3})
        for quant in (FP32, NF4)
        for batch in (1, 8)
    ]
    code, results = sweep(tmp_path, *grid, price_per_hour=2.5)
    assert code == 0
    assert [r.cell_id for r in results] == [cell_id(cell) for cell in grid]
    for result in results:
        assert len(result.measurements) == 3
        step_s = 0.25 if result.cell.quant.name == "nf4" else 0.5
        for measurement in result.measurements:
            assert [r.ttft_s for r in measurement.repeats] == [1.0, 1.0]
            assert [r.decode_step_s for r in measurement.repeats] == [(step_s,) * 3] * 2
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert read_sweep(folder).price_per_hour == 2.5
    assert {"sweep.json", "inputs"} <= {f.name for f in folder.iterdir()}
    began = sorted((r.started_at, result.cell_id) for result in results for r in result.replicates)
    passes = [[cell for _, cell in began[i : i + 4]] for i in (0, 4, 8)]
    assert [set(each) for each in passes] == [{cell_id(cell) for cell in grid}] * 3
    assert len(set(map(tuple, passes))) > 1  # each pass in an order of its own


ENDINGS = {
    "oom": ("oom", "says the script"),
    "die 9": ("failed", "SIGKILL in phase warm-up"),
    "die 11": ("failed", "SIGSEGV in phase warm-up"),
    "exit 7": ("failed", "exit code 7 in phase warm-up"),
    "refuse": ("not_engaged", "the script refuses"),
    "hang": ("timeout", "measure.limits_s.warm-up"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[Result]]:
    """A sweep whose first and last cell live, and each of the others ends in a way of its own."""
    cells = [
        scripted(f"b{2 + i}: then {ending}", batch=2 + i, measure=impatient(ending))
        for i, ending in enumerate(ENDINGS)
    ]
    return sweep(tmp_path_factory.mktemp("ended"), scripted(batch=1), *cells, scripted(batch=99))


def impatient(ending: str) -> dict[str, object]:
    return {"limits_s": {"warm-up": 0.05}} if ending == "hang" else {}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_ends_a_cell_is_its_outcome(ending: str, ended: tuple[int, list[Result]]) -> None:
    status, reason = ENDINGS[ending]
    result = ended[1][1 + list(ENDINGS).index(ending)]
    assert result.outcome.status == status
    assert reason in str(result.outcome.reason)
    assert result.measurements == ()


def test_what_ends_a_cell_ends_no_other(ended: tuple[int, list[Result]]) -> None:
    code, results = ended
    assert code == 1
    assert [statuses(results)[i] for i in (0, -1)] == ["ok", "ok"]


def test_not_to_fit_is_an_answer_and_no_failure(tmp_path: Path) -> None:
    code, results = sweep(tmp_path, scripted("then oom"), worker=in_this_process)
    assert (code, statuses(results)) == (0, ["oom"])


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = [scripted("b2: then interrupt", batch=batch, seed=IN_ORDER) for batch in (1, 2)]
    code, results = sweep(tmp_path, *grid)
    assert code == 130
    assert statuses(results) == ["ok", "killed"]
    assert results[1].outcome.reason == "ended by the user"
    assert not list(tmp_path.rglob("report.html"))  # a Ctrl-C ends at once
    said = capsys.readouterr()
    assert "interrupted: what is finished is kept; resume=true on the same" in said.err
    assert "what to use" not in said.out


def test_a_sweep_takes_up_where_an_earlier_one_ended(tmp_path: Path) -> None:
    grid = [scripted(batch=batch) for batch in (1, 2)]
    _, first = sweep(tmp_path, grid[0], worker=in_this_process)
    code, second = sweep(tmp_path, *grid, resume=True, worker=in_this_process)
    assert code == 0
    assert second[0].replicates == first[0].replicates
    assert [result.reused_from for result in second] == [first[0].sweep_id, None]
    _, third = sweep(tmp_path, *grid, resume=False, worker=in_this_process)
    assert [result.reused_from for result in third] == [None, None]


def own_prompts(file: Path, **changes: Any) -> list[Cell]:
    """The cells of a file of prompts, as a command line would give them."""
    cell = scripted(batch=2, workload=fakes.group("workload", "prompts", path=str(file)), **changes)
    return cells_of(with_digests(cell))


def test_prompts_of_a_file_are_measured_in_buckets_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    numbers = "".join(map(str, range(100)))
    lines = [{"prompt": numbers[:30]}, {"prompt": numbers[-40:]}]
    lines.append({"prompt": numbers + "0123456789", "new_tokens": 3})
    file.write_text("\n".join(map(json.dumps, lines)))
    code, results = sweep(tmp_path / "out", *own_prompts(file))
    assert code == 0
    found = {result.asked.workload.name: result.measurements[0] for result in results}
    assert {name: (m.given_tokens, m.prompt_tokens) for name, m in found.items()} == {
        "mine-to8": ((30, 40), 30),
        "mine-to64+4": ((200,), 200),
    }
    assert [len(m.repeats[0].decode_step_s) for m in found.values()] == [63, 2]
    (folder,) = (tmp_path / "out" / "sweeps").iterdir()
    (copy,) = (folder / "inputs").glob("*mine.jsonl")
    assert copy.read_bytes() == file.read_bytes()
    assert {str(result.cell.workload.sha256)[:12] for result in results} == {copy.name[:12]}


def test_prompts_that_have_changed_are_measured_anew_and_those_that_have_moved_are_not(
    tmp_path: Path,
) -> None:
    file, moved = tmp_path / "mine.jsonl", tmp_path / "other" / "mine.jsonl"

    def again(path: Path, **changes: Any) -> Result:
        grid = own_prompts(path, **changes)
        _, (result,) = sweep(tmp_path / "out", *grid, resume=True, worker=in_this_process)
        return result

    file.write_text('{"prompt": "abc"}')
    first = again(file)
    moved.parent.mkdir()
    file.rename(moved)
    kept_out = again(moved, quality=fakes.group("quality", "none", store_prompts=False))
    assert (first.reused_from, kept_out.reused_from) == (None, first.sweep_id)
    assert kept_out.cell.workload.path == str(moved)
    assert not kept_out.cell.quality.store_prompts
    assert not list((tmp_path / "out" / "sweeps" / kept_out.sweep_id / "inputs").iterdir())
    moved.write_text('{"prompt": "abd"}')
    assert again(moved).reused_from is None


def test_prompts_that_change_while_a_sweep_waits_end_it_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "abc"}')
    grid = own_prompts(file)
    file.write_text('{"prompt": "abd"}')
    with pytest.raises(ConfigError, match=r"workload.path=.*mine.jsonl: has changed"):
        sweep(tmp_path / "out", *grid, worker=in_this_process)


def test_a_sweep_that_was_killed_leaves_no_process_and_can_be_resumed(tmp_path: Path) -> None:
    grid = [scripted(batch=1, seed=IN_ORDER), scripted("then hang", batch=2, seed=IN_ORDER)]
    driver = multiprocessing.get_context("spawn").Process(target=sweep, args=(tmp_path, *grid))
    driver.start()
    second = f"sweeps/*/{cell_id(grid[1])}/log.txt"
    while not list(tmp_path.glob(second)):
        assert driver.is_alive()
        time.sleep(0.01)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) >= 2  # the fork server, and what hangs
    os.kill(driver.pid or 0, signal.SIGKILL)
    driver.join()
    wait_until_gone(family)
    code, results = sweep(
        tmp_path, grid[0], scripted(batch=2, seed=IN_ORDER), resume=True, worker=in_this_process
    )
    assert (code, statuses(results)) == (0, ["ok", "ok"])
    assert [result.reused_from is None for result in results] == [False, True]


def test_what_cannot_run_is_skipped_and_nothing_at_all_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = scripted(cpus=[0, 4000])
    code, results = sweep(tmp_path, scripted(), far, worker=in_this_process)
    assert (code, statuses(results)) == (0, ["ok", "skipped"])
    assert "cpus=[0, 4000]" in str(results[1].outcome.reason)
    assert sweep(tmp_path, far, worker=in_this_process)[0] == 2
    assert "no cell of this sweep can run here" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [3, 1000])
def test_the_largest_batch_is_found_by_trying(limit: int, tmp_path: Path) -> None:
    cell = scripted(f"fits {limit}", batch="max")
    code, (result,) = sweep(tmp_path, cell, worker=in_this_process)
    assert code == 0
    assert result.asked.batch == "max"
    assert limit / 1.02 <= result.cell.rows <= limit
    assert result.cell_id == cell_id(result.asked)
    assert len(result.measurements) == 1


def test_a_try_that_fails_is_recorded_and_no_batch_is_claimed(tmp_path: Path) -> None:
    code, (result,) = sweep(tmp_path, scripted("b4: then die 11", batch="max"))
    assert code == 1
    assert (result.outcome.status, result.cell.batch) == ("failed", "max")
    assert "a try of batch 4: the process was ended by SIGSEGV" in str(result.outcome.reason)


def test_a_dry_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = [scripted(batch=batch) for batch in (1, 2)]
    assert sweep(tmp_path, *grid, dry_run=True, worker=in_this_process) == (0, [])
    assert capsys.readouterr().out.count("1 process") == 2
    assert list((tmp_path / "sweeps").iterdir()) == []


PRETRAINED = fakes.group("model", "tiny", weights="pretrained", path="/nowhere")


def test_cells_that_differ_in_batch_alone_are_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def counting(task: Task, on_phase: OnPhase, log: Path) -> object:
        asked.append(task.place.rpartition(":")[2])
        return in_this_process(task, on_phase, log)

    grid = [scripted(batch=b, model=PRETRAINED, quality="samples") for b in (1, 2, 4)]
    code, results = sweep(tmp_path, *grid, worker=counting)
    assert code == 0
    counts = [asked.count(task) for task in ("measure_cell", "keep_reference", "answer_cell")]
    assert counts == [3, 1, 1]  # a reference that cannot be made is tried once
    assert all(len(result.samples) == 8 for result in results)
    assert {result.answers == results[0].answers for result in results} == {True}


def test_a_quality_job_that_fails_costs_no_number(tmp_path: Path) -> None:
    def failing(task: Task, on_phase: OnPhase, log: Path) -> object:
        if task.place.endswith("answer_cell"):
            raise CellFailure("oom", "no room for answers")
        return in_this_process(task, on_phase, log)

    asked = scripted(model=PRETRAINED, quality="samples")
    code, (result,) = sweep(tmp_path, asked, worker=failing)
    assert (code, result.outcome.status, len(result.measurements)) == (0, "ok", 1)
    # Nor could the unquantized model be loaded, which is said beside it
    assert result.answers is not None
    without = str(result.answers.no_reference)
    assert without.startswith("model.path=/nowhere: no such folder")
    assert result.answers == Answers(Outcome("oom", "no room for answers"), no_reference=without)


def test_answers_that_failed_and_a_missing_divergence_get_another_try(tmp_path: Path) -> None:
    asked = scripted(model=PRETRAINED, quality="samples")
    _, (first,) = sweep(tmp_path, asked, worker=in_this_process)
    assert first.answers is not None
    assert first.answers.no_reference is not None
    asked_again: list[str] = []

    def counting(task: Task, on_phase: OnPhase, log: Path) -> object:
        name = task.place.rpartition(":")[2]
        if name in ("measure_cell", "keep_reference", "answer_cell"):
            asked_again.append(name)
        return in_this_process(task, on_phase, log)

    _, (second,) = sweep(tmp_path, asked, resume=True, worker=counting)
    assert asked_again == ["keep_reference", "answer_cell"]
    assert second.reused_from == first.sweep_id
    folder = tmp_path / "sweeps" / second.sweep_id / second.cell_id
    whole = replace(second, answers=replace(first.answers, no_reference=None))
    (folder / "result.json").write_text(whole.to_json())
    asked_again.clear()
    _, (third,) = sweep(tmp_path, asked, resume=True, worker=counting)
    assert (asked_again, third.answers) == ([], whole.answers)


def test_a_sweep_is_tracked_in_mlflow(tmp_path: Path) -> None:
    grid = [scripted("b2: then oom", batch=batch) for batch in (1, 2)]
    tracking = Tracking("local", True, "tests")
    stores.database(tmp_path / "mlflow.db")
    code, results = sweep(tmp_path, *grid, tracking=tracking, worker=in_this_process)
    assert code == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tests"]
    runs = client.search_runs([experiment.experiment_id])
    cells = {r.data.tags["bench.cell_id"]: r for r in runs if r.data.tags["bench.kind"] == "cell"}
    assert set(cells) == {result.cell_id for result in results}
    assert cells[results[0].cell_id].data.metrics["tpot_s"] == 0.001
    assert cells[results[1].cell_id].data.tags["bench.status"] == "oom"
    (parent,) = [r for r in runs if r.data.tags["bench.kind"] == "sweep"]
    assert parent.info.status == "FINISHED"


def test_what_is_there_in_part_is_taken_up_and_what_is_older_measured_again(
    tmp_path: Path,
) -> None:
    cells = [scripted(batch=batch, measure={"passes": 2}) for batch in (1, 2)]
    _, results = sweep(tmp_path, *cells, worker=in_this_process)
    (folder,) = (tmp_path / "sweeps").iterdir()
    cut = replace(results[0], replicates=results[0].replicates[:1])  # as an interrupted sweep does
    (folder / cut.cell_id / "result.json").write_text(cut.to_json())
    old = json.loads(results[1].to_json()) | {"schema": SCHEMA - 2}
    (folder / results[1].cell_id / "result.json").write_text(json.dumps(old))
    _, again = sweep(tmp_path, *cells, resume=True, worker=in_this_process)
    assert again[0].replicates[0] == results[0].replicates[0]
    assert [len(result.replicates) for result in again] == [2, 2]
    assert [result.reused_from is None for result in again] == [False, True]
    (folder / results[1].cell_id / "result.json").unlink()
    assert next(iter(read_results(folder))) == cut


def test_settings_that_differ_and_names_that_nobody_has_stop_a_sweep_before_it_begins(
    tmp_path: Path,
) -> None:
    unknown = scripted(engine={"name": "magic"})
    for cells, changes, said in (
        ([unknown], {}, "engine.name=magic: no such engine; there are transformers, "),
        ([scripted("steps often")], {}, "engine.options.script=steps often: "),
        ([scripted()], {"output_dir": "/dev/null/x"}, "output_dir=/dev/null/x: cannot be written"),
    ):
        with pytest.raises(ConfigError, match=said):
            sweep(tmp_path, *cells, **changes)
    assert not (tmp_path / "sweeps").exists()


# One GPU of several


def of_devices(*devices: str) -> list[Config]:
    common: dict[str, Any] = {
        "tracking": dataclasses.asdict(UNTRACKED),
        "baseline": {},
        "output_dir": "outputs",
        "margin": 0.03,
        "resume": None,
        "profile": False,
        "dry_run": False,
        "price_per_hour": None,
    }
    return [parse_config(fakes.cell_mapping(device=device) | common) for device in devices]


def test_a_gpu_by_its_number_is_the_sweeps_and_no_other_cell() -> None:
    second, usual = of_devices("cuda:1", "cuda")
    assert cell_id(second.cell) == cell_id(usual.cell)
    assert common_settings([second, usual]).cuda_device == 1
    assert common_settings(of_devices("cuda", "cpu")).cuda_device is None
    with pytest.raises(ConfigError, match="device=cuda:0,cuda:1: a sweep runs on one GPU"):
        common_settings(of_devices("cuda:1", "cuda:0"))
    with pytest.raises(ConfigError, match="device=cuda:x: want one of auto, cpu, cuda"):
        of_devices("cuda:x")


@pytest.mark.parametrize(
    ("visible", "index", "shown"),
    [(None, 1, "1"), ("2, 3", 1, "3"), ("GPU-5f4c,MIG-77aa", 1, "MIG-77aa"), ("2", 1, None)],
)
def test_every_process_sees_that_gpu_alone(
    visible: str | None, index: int, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if shown is None:
        with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=2 leaves 1, counted from 0"):
            show_only(index)
    else:
        show_only(index)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == shown
