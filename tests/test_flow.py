"""Real sweeps through the command line, with real models and a real SQLite store."""

import gzip
import json
import random
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from bench.analysis.divergence import is_above_floor
from bench.analysis.metrics import derive
from bench.config.cell import cell_id
from bench.paths import cache_folder
from bench.store.files import read_results
from tests.command_line import (
    bench,
    from_readme,
    nth_measured_process,
    results,
    runs,
    start,
    sweep_folder,
    wait_until_gone,
)

TINY = ["model=tiny", "workload.new_tokens=4", "measure.warmups=1", "measure.repeats=2"]
SLOW_CELLS = ["-m", "model=tiny", "quant=fp32,bf16,nf4", "batch=1,2", "workload.new_tokens=700"]
SLOW_CELLS += ["measure.warmups=2", "measure.repeats=3"]


def test_a_grid_is_measured_recorded_and_tracked(tmp_path: Path) -> None:
    tiny = [*TINY, "quant=fp32,nf4", "batch=1,2"]
    done = bench(
        tmp_path,
        *from_readme("python -m bench sweeps=headline"),
        *tiny,
        A_SECRET="do not tell anyone",
    )
    assert done.returncode == 0, done.stderr
    assert "speedup: how many times as fast as quant=fp32" in done.stdout
    # Where results and report are, and how to look further
    assert len(done.stderr.splitlines()) == 3, done.stderr

    found = results(tmp_path)
    assert [(r.cell.quant.name, r.cell.batch) for r in found] == [
        ("fp32", 1),
        ("fp32", 2),
        ("nf4", 1),
        ("nf4", 2),
    ]
    for result in found:
        assert result.outcome.status == "ok"
        (measurement,) = result.measurements
        assert len(measurement.repeats) == 2
        assert all(len(repeat.decode_step_s) == 3 for repeat in measurement.repeats)
        assert result.cell_id == cell_id(result.cell)

    (parent,), cells = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    cells.sort(key=lambda run: str(run.info.run_name))
    assert [run.info.run_name for run in cells] == [
        "tiny/fp32/sdpa/b1",
        "tiny/fp32/sdpa/b2",
        "tiny/nf4/sdpa/b1",
        "tiny/nf4/sdpa/b2",
    ]
    for run, result in zip(cells, found, strict=True):
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["bench.cell_id"] == result.cell_id
        assert run.data.tags["bench.status"] == "ok"
        assert run.data.params["cell.batch"] == str(result.cell.batch)
        assert run.data.params["quant.scheme"] == result.cell.quant.scheme
        assert run.data.metrics["decode_tok_s"] > 0
        assert run.data.metrics["weight_bytes"] == result.attestation.weight_bytes  # type: ignore[union-attr]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    assert len(client.get_metric_history(cells[0].info.run_id, "decode_step_s")) == 3
    assert [a.path for a in client.list_artifacts(cells[0].info.run_id)] == [
        "config.yaml",
        "result.json",
    ]
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {
        *("summary.txt", "sweep.json", "report.html", "report.md", "report.csv"),
        *("throughput.png", "tradeoffs.png", "inputs"),
    }
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 20
    assert [content for content in files if b"do not tell anyone" in content] == []


def test_a_cell_that_cannot_run_here_is_an_answer(tmp_path: Path) -> None:
    done = bench(tmp_path, "-m", *TINY, "attn=sdpa,flash2", "quant=fp16,int8")
    assert done.returncode == 1  # for not_engaged; skipped alone would be 0
    outcomes = {(r.cell.attn.name, r.cell.quant.name): r.outcome for r in results(tmp_path)}
    assert outcomes["sdpa", "fp16"].status == "ok"
    assert outcomes["flash2", "fp16"].status == "skipped"
    assert (
        outcomes["flash2", "fp16"].reason == "attn=flash2 needs device cuda, this cell runs on cpu"
    )
    assert outcomes["sdpa", "int8"].status == "not_engaged"
    assert "attn=flash2 needs device cuda" in done.stdout
    _, cells = runs(tmp_path)
    assert len(cells) == 4
    skipped = next(run for run in cells if run.data.tags["bench.status"] == "skipped")
    assert skipped.data.metrics == {}


def test_a_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    done = bench(tmp_path, *from_readme("python -m bench -m quant=bf16,nf4 profile=true"), *TINY)
    assert done.returncode == 0, done.stderr
    assert "quant=nf4: a decode step takes " in done.stdout

    for result in results(tmp_path):
        assert result.profile is not None
        assert [(phase.phase, phase.steps) for phase in result.profile.phases] == [
            ("prefill", 1),
            ("decode", 3),
        ]
        for phase in result.profile.phases:
            assert sum(phase.seconds.values()) == pytest.approx(phase.wall_s)
            assert phase.seconds["matrix product"] > 0
            assert phase.seconds["attention"] > 0
        trace = sweep_folder(tmp_path) / result.cell_id / "trace.json.gz"
        assert "bench::prefill" in {
            event.get("name")
            for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        }
    plain, packed = results(tmp_path)
    assert plain.profile is not None
    assert packed.profile is not None
    assert "product with packed weights" in packed.profile.phases[1].seconds
    assert "product with packed weights" not in plain.profile.phases[1].seconds
    _, cells = runs(tmp_path)
    assert all("profile_decode_s/matrix product" in run.data.metrics for run in cells)


def test_a_killed_process_costs_its_cell_and_no_other(tmp_path: Path) -> None:
    driver = start(tmp_path, SLOW_CELLS)
    nth_measured_process(driver, 4, lived_s=1.0).send_signal(signal.SIGKILL)
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 1, err
    found = results(tmp_path)
    assert len(found) == 6
    (lost,) = [r for r in found if r.outcome.status != "ok"]
    assert lost.outcome.status == "failed"
    assert "SIGKILL" in str(lost.outcome.reason)
    assert all(r.measurements for r in found if r is not lost)
    assert "SIGKILL" in out
    _, cells = runs(tmp_path)
    assert sorted(run.info.status for run in cells) == ["FAILED"] + ["FINISHED"] * 5


def test_ctrl_c_ends_at_once_and_loses_no_finished_cell(tmp_path: Path) -> None:
    driver = start(tmp_path, SLOW_CELLS)
    nth_measured_process(driver, 3, lived_s=1.0)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=30)
    assert driver.returncode == 130, err
    assert "Traceback" not in err
    wait_until_gone(family)
    assert sorted(r.outcome.status for r in results(tmp_path)) == ["killed", "ok", "ok"]
    (parent,), cells = runs(tmp_path)
    assert parent.info.status == "KILLED"
    assert [run.info.status for run in cells] == ["FINISHED", "FINISHED", "KILLED"]


def test_a_second_ctrl_c_does_not_stop_what_the_first_one_records(tmp_path: Path) -> None:
    driver = start(tmp_path, SLOW_CELLS)
    nth_measured_process(driver, 2, lived_s=1.0)
    for _ in range(3):
        driver.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = driver.communicate(timeout=30)
    assert driver.returncode == 130, err
    (parent,), cells = runs(tmp_path)
    assert parent.info.status == "KILLED"
    assert "RUNNING" not in [run.info.status for run in cells]


def test_a_sweep_takes_up_where_an_earlier_one_was_stopped(tmp_path: Path) -> None:
    grid = ["-m", *TINY, "quant=fp32,bf16", "batch=1,2", "measure.passes=2", "resume=true"]
    driver = start(tmp_path, grid)
    while len(list(tmp_path.glob("outputs/sweeps/*/*/result.json"))) < 3:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    stored = {each.started_at for result in results(tmp_path) for each in result.passes}
    assert stored
    done = bench(tmp_path, *grid)
    assert done.returncode == 0, done.stderr
    first, second = sorted((tmp_path / "outputs" / "sweeps").iterdir())
    found = list(read_results(second))
    assert [(len(result.measurements), result.outcome.status) for result in found] == [
        (2, "ok")
    ] * 4
    assert stored <= {each.started_at for result in found for each in result.passes}
    assert {result.reused_from for result in found if result.passes[0].started_at in stored} == {
        first.name
    }
    parents, cells = runs(tmp_path)
    assert sorted(run.info.status for run in parents) == ["FINISHED", "KILLED"]
    assert [run for run in cells if run.info.status == "RUNNING"] == []
    again = bench(tmp_path, *grid)
    assert "4 of 4 cells have a result already" in again.stderr
    anew = bench(tmp_path, *grid, "dry_run=true", "resume=false")
    assert anew.stdout.count("2 processes") == 4
    assert len(list((tmp_path / "outputs" / "sweeps").iterdir())) == 3  # a dry run leaves nothing


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_killed_sweeps_end_complete_and_measure_nothing_twice(tmp_path: Path) -> None:
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
            ran.setdefault(result.cell_id, set()).update(each.started_at for each in result.passes)
    assert [len(times) for times in ran.values()] == [3] * 9  # what was stored was never run again
    parents, cells = runs(tmp_path)
    assert "RUNNING" not in [run.info.status for run in (*parents, *cells)]


def test_nothing_that_can_run_here_is_a_mistake(tmp_path: Path) -> None:
    done = bench(tmp_path, *TINY, "attn=flash2", "quant=fp16")
    assert done.returncode == 2
    assert "no cell of this sweep can run here" in done.stderr
    assert "attn=flash2 needs device cuda" in done.stdout


def test_the_doctor_says_what_works_here(tmp_path: Path) -> None:
    done = bench(tmp_path, *from_readme("python -m bench doctor"))
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "attn flash2 no: attn=flash2 needs device cuda, this cell runs on cpu" in words
    assert "quant nf4 yes" in words
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
    assert "intervals at 95 % for all comparisons together" in sweep.stdout


def test_the_commands_after_a_sweep(tmp_path: Path) -> None:
    grid = from_readme("python -m bench -m quant=bf16,nf4 measure=standard")
    for _ in range(2):
        done = bench(tmp_path, *grid, *TINY, "measure.passes=2", "resume=false")
        assert done.returncode == 0, done.stderr
    first, second = sorted(folder.name for folder in (tmp_path / "outputs" / "sweeps").iterdir())
    command = from_readme("python -m bench gate NEW --baseline OLD")
    gate = [{"NEW": second, "OLD": first}.get(word, word) for word in command]
    done = bench(tmp_path, *gate, "--threshold", "0.9")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("0 regressions beyond 90% in 4 comparisons of 2 cells\n")
    missing = bench(tmp_path, "gate", "nowhere", "--baseline", first)
    assert missing.returncode == 2
    assert missing.stderr.startswith("nowhere: no such folder; want the folder of a sweep")

    advice = bench(
        tmp_path,
        *from_readme("python -m bench advise --max-memory 8GiB --max-ttft 200ms --max-kl 0.05"),
    )
    assert advice.returncode == 0, advice.stderr
    assert "quant=bf16" in advice.stdout or "quant=nf4" in advice.stdout
    page = tmp_path / "outputs" / "sweeps" / second / "report.html"
    page.unlink()
    written = bench(tmp_path, *from_readme("python -m bench report"))
    assert written.stdout.splitlines()[0] == str(page.relative_to(tmp_path))
    assert page.is_file()
    pushed = bench(tmp_path, *from_readme("python -m bench push"))
    assert pushed.stdout.startswith(f"2 of 2 cells of {second} are in MLflow")


def test_a_run_is_reproduced_from_what_mlflow_has_of_it(tmp_path: Path) -> None:
    grid = from_readme("python -m bench -m attn=eager,sdpa,sdpa_math workload=chat")
    done = bench(tmp_path, *grid, *TINY, "workload.prompt_tokens=16", "measure.repeats=10")
    assert done.returncode == 0, done.stderr
    _, cells = runs(tmp_path)
    assert {run.data.params["attn.name"] for run in cells} == {"eager", "sdpa", "sdpa_math"}
    original = next(run for run in cells if run.data.params["attn.name"] == "eager")
    for file in (tmp_path / "outputs" / "sweeps").rglob("*.json"):
        file.unlink()  # as if it had been measured by a colleague

    command = from_readme("python -m bench reproduce RUN")
    done = bench(
        tmp_path,
        *[{"RUN": original.info.run_id}.get(word, word) for word in command],
        "--processes",
        "2",
    )
    words = {0: "reproduced", 1: "differs", 4: "cannot tell"}
    assert done.stdout.startswith(words[done.returncode]), done.stderr
    assert "machine, versions and code are as they were recorded" in done.stderr
    assert "tiny/eager" in done.stdout.replace("/fp32", "").replace("/bf16", "")
    assert "sdpa" not in done.stdout
    (run,) = [run for run in runs(tmp_path)[1] if "bench.verdict" in run.data.tags]
    assert run.data.tags["bench.reproduces"] == original.info.run_id
    assert run.data.tags["bench.verdict"] == words[done.returncode]
    assert "mlflow.parentRunId" not in run.data.tags  # one cell is one run
    assert run.data.metrics["processes"] == 2
    assert run.data.metrics["reproduction/tpot_ratio"] > 0
    assert run.data.tags["mlflow.note.content"].startswith(f"# {original.info.run_id} once more: ")


def test_a_killed_driver_leaves_no_process_and_no_running_cell(tmp_path: Path) -> None:
    driver = start(tmp_path, SLOW_CELLS)
    nth_measured_process(driver, 2, lived_s=1.0)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until_gone(family)
    assert [r.outcome.status for r in results(tmp_path)] == ["ok"]
    _, cells = runs(tmp_path)
    assert [run.info.status for run in cells] == ["FINISHED"]


def test_a_tracking_server_that_is_down_loses_nothing(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    cell = [
        *from_readme("python -m bench model=gpt2 quant=nf4 batch=8"),
        "model.weights=random",
        *TINY[1:],
    ]
    done = bench(tmp_path, *cell, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert done.returncode == 3, done.stderr
    folder = sweep_folder(tmp_path)
    assert f"python -m bench push {folder.relative_to(tmp_path)}" in done.stderr
    assert "connection refused: nothing answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert [r.outcome.status for r in results(tmp_path)] == ["ok"]
    for _ in range(2):  # the second finds everything there
        pushed = bench(tmp_path, "push", str(folder))
        assert pushed.returncode == 0, pushed.stderr
        parents, (run,) = runs(tmp_path)
        assert (parents, run.info.status) == ([], "FINISHED")
        assert run.data.metrics["decode_tok_s"] > 0


def test_a_folder_without_weights_fails_with_advice(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    done = bench(tmp_path, "-m", f"model.path={tmp_path / 'nowhere'},{broken}", "quality=none")
    assert done.returncode == 1
    reasons = [str(r.outcome.reason) for r in results(tmp_path)]
    assert "no such folder" in reasons[0]
    assert "no weights" in reasons[1]
    assert "Traceback" not in done.stdout + done.stderr


def test_a_second_sweep_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    first = start(tmp_path, SLOW_CELLS)
    nth_measured_process(first, 1, lived_s=1.0)
    (tmp_path / "second").mkdir()
    second = start(tmp_path / "second", [*TINY, "quant=fp32"], BENCH_LOCK=str(tmp_path / "lock"))
    assert second.stderr is not None
    line = second.stderr.readline()
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 130
    assert "another sweep is running" in line
    second.communicate(timeout=120)
    assert second.returncode == 0


@pytest.mark.parametrize("decode", ["loop", "generate"])
def test_the_default_model_answers_in_every_quantization(tmp_path: Path, decode: str) -> None:
    quantizations = (
        "fp32,fp16,bf16,int8,int8_nodecomp,nf4,nf4_double,fp4" if decode == "loop" else "bf16"
    )
    batches = "1" if decode == "loop" else "1,2"
    short = [
        "workload.new_tokens=4",
        "measure.warmups=1",
        "measure.repeats=1",
        "quality.max_new_tokens=12",
        f"quality.text_tokens={1024 if decode == 'loop' else 256}",
    ]
    done = bench(
        tmp_path, "-m", f"quant={quantizations}", f"batch={batches}", f"decode={decode}", *short
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    for one in found:
        assert len(one.samples) >= 8
        assert "Paris" in one.samples[0].answer or one.cell.quant.name not in (
            "fp32",
            "fp16",
            "bf16",
        )
        assert one.revision == "0.1.2"
    if decode == "generate":
        one, two = found
        assert (two.samples, two.divergence) == (one.samples, one.divergence)
        # Whoever was first
        assert {one.samples_from, two.samples_from} in ({None, one.cell_id}, {None, two.cell_id})
    bits = {r.cell.quant.name: derive(r)["bits_per_weight"] for r in found}
    if decode == "loop":
        assert (
            bits["fp32"]
            > bits["fp16"]
            == bits["bf16"]
            > bits["int8"]
            == bits["int8_nodecomp"]
            > bits["nf4"]
        )
        assert bits["nf4"] == bits["fp4"]
        # On a CPU with AVX512-BF16 bitsandbytes unpacks the doubly quantized scales: nothing is
        # saved then.
        assert bits["nf4_double"] <= bits["nf4"] * 1.001
        divergence = {result.cell.quant.name: result.divergence for result in found}
        kl = {result.cell.quant.name: derive(result)["kl_nats"] for result in found}
        assert abs(kl["fp32"]) < 1e-6  # it is the reference
        for name in ("int8", "nf4", "fp4"):
            assert (compared := divergence[name]) is not None
            assert is_above_floor(compared), name
        assert kl["fp16"] < kl["bf16"] < kl["int8"] < kl["nf4"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    _, cells = runs(tmp_path)
    for run in cells[:2]:
        table = json.loads(
            Path(
                client.download_artifacts(run.info.run_id, "samples.json", str(tmp_path))
            ).read_text()
        )
        assert table["columns"][:2] == ["prompt", "answer"]
        assert [row[0] for row in table["data"]] == [sample.prompt for sample in found[0].samples]
