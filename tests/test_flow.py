"""What ends a sweep, and what it says, through the real command line: real models and processes.

What ends a cell and what a sweep takes up is in tests/driver/test_sweep.py, on a scripted engine.
"""

import json
import shutil
import signal
import socket
from pathlib import Path

import psutil
import pytest

from bench.paths import cache_folder
from bench.store.files import read_results
from tests.command_line import (
    TINY,
    bench,
    from_readme,
    in_process,
    nth_measured_process,
    results,
    runs,
    start,
    sweep_folder,
    wait_until_gone,
)

SLOW_CELLS = ["-m", "model=tiny", "quant=fp32,bf16", "workload.new_tokens=300"]
SLOW_CELLS += ["measure.warmups=2", "measure.repeats=3", "threads=1"]


def test_a_killed_process_costs_its_cell_and_ctrl_c_ends_the_rest_at_once(tmp_path: Path) -> None:
    driver = start(tmp_path, [*SLOW_CELLS, "batch=1,2"])
    nth_measured_process(driver, 2, lived_s=1.0).send_signal(signal.SIGKILL)
    nth_measured_process(driver, 2, lived_s=1.0)
    family = psutil.Process(driver.pid).children(recursive=True)
    for _ in range(3):  # the second does not stop what the first has recorded
        driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "Traceback" not in err
    wait_until_gone(family)
    outcomes = [result.outcome.status for result in results(tmp_path)]
    assert (outcomes.count("failed"), outcomes.count("killed")) == (1, 1)
    assert "ok" in outcomes
    (lost,) = [r for r in results(tmp_path) if r.outcome.status == "failed"]
    assert "SIGKILL" in str(lost.outcome.reason)
    (parent,), cells = runs(tmp_path)
    assert parent.info.status == "KILLED"
    assert "RUNNING" not in [run.info.status for run in cells]


def test_the_doctor_says_what_works_here(tmp_path: Path) -> None:
    done = in_process(tmp_path, *from_readme("python -m bench doctor"))
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "attn flash2 no: attn=flash2 needs device cuda, this cell runs on cpu" in words
    assert "quant nf4 yes" in words
    assert "decode static yes" in words  # with the attention that it would get
    assert "gguf" not in words  # another engine's
    assert "GB/s" in words


@pytest.mark.slow
def test_a_calibration_turns_a_single_pass_into_verdicts(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(cache_folder() / "models")
    done = bench(tmp_path, "doctor", "--calibrate", BENCH_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "calibrated: " in done.stderr
    assert "tpot_s" in done.stdout
    sweep = bench(tmp_path, "-m", *TINY, "quant=fp32,nf4", BENCH_CACHE=str(cache))
    assert "?" not in sweep.stdout
    assert "intervals at 95% for all comparisons together" in sweep.stdout


def test_the_grids_of_the_readme_are_what_they_say(tmp_path: Path) -> None:
    """On the scripted engine, which loads nothing; all else is real."""
    default = "smollm2-135m"
    grids: list[tuple[list[str], list[str]]] = [
        (from_readme("python -m bench model=gpt2 quant=nf4 batch=8"), ["gpt2/nf4/auto/b8"]),
        (
            from_readme("python -m bench -m attn=eager,sdpa,sdpa_math workload=chat"),
            [f"{default}/bf16/{attn}/chat/b1" for attn in ("eager", "sdpa", "sdpa_math")],
        ),
        (
            from_readme("python -m bench -m quant=bf16,nf4 measure=standard"),
            [f"{default}/bf16/auto/b1", f"{default}/nf4/auto/b1"],
        ),
        (
            from_readme("python -m bench -m quant=bf16,nf4 profile=true"),
            [f"{default}/bf16/auto/b1", f"{default}/nf4/auto/b1"],
        ),
        (
            from_readme("python -m bench -m quant=bf16,nf4 price_per_hour=2.50"),
            [f"{default}/bf16/auto/b1", f"{default}/nf4/auto/b1"],
        ),
        (
            from_readme("python -m bench -m model.weights=dithered quant=bf16,nf4"),
            [f"{default}/bf16/auto/dithered/b1", f"{default}/nf4/auto/dithered/b1"],
        ),
        (from_readme("python -m bench quant=nf4 batch=max"), [f"{default}/nf4/auto/bmax"]),
    ]
    scripted = ["engine=scripted", "quality=none", "tracking=none", "++model.tokenizer=bytes"]
    scripted += ["engine.options.script='fits 9'"]
    for command, labels in grids:
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        code, out, err = in_process(tmp_path, *command, *scripted)
        assert code == 0, err
        assert ("cost/Mtok out" in out) == ("price_per_hour=2.50" in command)
        found = results(tmp_path)
        assert [result.asked.label.replace("/scripted", "") for result in found] == labels
        passes = 3 if "measure=standard" in command else 1
        assert [len(result.measurements) for result in found] == [passes] * len(labels)


def test_own_prompts_are_a_row_for_each_bucket(tmp_path: Path) -> None:
    command = from_readme(
        "python -m bench -m quant=bf16,nf4 workload=prompts workload.path=prompts.jsonl"
    )
    scripted = ["model=tiny", "engine=scripted", "tracking=none", "measure.repeats=2"]
    code, _, err = in_process(tmp_path, *command, *scripted)
    assert (code, err) == (
        2,
        "workload.path=prompts.jsonl: cannot be read (No such file or directory)\n",
    )
    turns = [{"role": "user", "content": "Explain what a bucket of prompts is, in a sentence."}]
    lines = [{"prompt": "Why?", "new_tokens": 2}, {"messages": turns}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, err = in_process(tmp_path, *command, *scripted)
    assert code == 0, err
    assert {result.asked.workload.name for result in results(tmp_path)} == {
        "prompts-to1+2",
        "prompts-to16",
    }
    assert len(results(tmp_path)) == 4
    assert "prompts-to16 has 1 of 51 tokens, timed at 51" in " ".join(out.split())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why not?"}')
    again = ("reproduce", str(sweep_folder(tmp_path)))
    code, _, err = in_process(tmp_path, *again)
    assert code == 2
    assert err.startswith("workload.path=prompts.jsonl: has changed")
    assert len(err.splitlines()) == 1


def test_what_a_large_model_would_take_is_predicted(tmp_path: Path) -> None:
    command = from_readme(
        "python -m bench -m model=mistral-7b model.weights=random batch=1,max dry_run=true"
    )
    done = in_process(tmp_path, *command, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    batches = [int(words[0]) for words in rows if words and words[-1] == "process"]
    assert len(batches) == 2
    assert batches[0] == 1 < batches[1]
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_a_tracking_server_that_is_down_loses_nothing(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    cell = [*TINY, "engine=scripted"]
    done = in_process(tmp_path, *cell, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert done.returncode == 3, done.stderr
    folder = sweep_folder(tmp_path)
    assert f"python -m bench push {folder.relative_to(tmp_path)}" in done.stderr
    assert "connection refused: nothing answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert [r.outcome.status for r in results(tmp_path)] == ["ok"]
    for _ in range(2):  # the second finds everything there
        code, _, err = in_process(tmp_path, "push", str(folder))
        assert code == 0, err
        parents, (run,) = runs(tmp_path)
        assert (parents, run.info.status) == ([], "FINISHED")
        assert run.data.metrics["decode_tok_s"] > 0


def test_a_second_sweep_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    hanging = ["engine=scripted", *TINY, "engine.options.script='then hang'"]
    first = start(tmp_path, hanging)
    nth_measured_process(first, 1, lived_s=1.0)
    (tmp_path / "second").mkdir()
    lock = str(tmp_path / "lock")
    second = start(tmp_path / "second", ["engine=scripted", *TINY], BENCH_LOCK=lock)
    assert second.stderr is not None
    line = second.stderr.readline()
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 130
    assert "another sweep is running" in line
    second.communicate(timeout=120)
    assert second.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_killed_sweeps_end_complete_and_measure_nothing_twice(tmp_path: Path) -> None:
    import random
    import time

    grid = ["-m", *TINY, "quant=fp32,bf16,nf4", "batch=1,2,4", "measure.passes=3", "resume=true"]
    moments = random.Random(0)
    for _ in range(10):
        driver = start(tmp_path, grid)
        time.sleep(moments.uniform(5, 14))  # the first cell begins after about 7 s
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.communicate()
        wait_until_gone(family)
    done = bench(tmp_path, *grid)
    assert done.returncode == 0, done.stderr
    sweeps = sorted((tmp_path / "outputs" / "sweeps").iterdir())
    last = list(read_results(sweeps[-1]))
    assert [len(result.measurements) for result in last] == [3] * 9
    ran: dict[str, set[float]] = {}
    for sweep in sweeps:
        for result in read_results(sweep):
            ran.setdefault(result.cell_id, set()).update(
                each.started_at for each in result.replicates
            )
    assert [len(times) for times in ran.values()] == [3] * 9  # what was stored was never run again
    parents, cells = runs(tmp_path)
    assert "RUNNING" not in [run.info.status for run in (*parents, *cells)]
