"""The whole of it through the real command line: real models, real processes, a real SQLite store.

What ends a cell and what a sweep takes up is in tests/driver/test_sweep.py, on a scripted engine.
"""

import gzip
import json
import shutil
import signal
import socket
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from bench.__main__ import main
from bench.analysis.metrics import derive
from bench.config.cell import cell_id
from bench.paths import ROOT, cache_folder
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

HEADLINE = pytest.mark.xdist_group("headline")  # one process has the fixture
TINY = ["model=tiny", "workload.new_tokens=4", "measure.warmups=1", "measure.repeats=2"]
SLOW_CELLS = ["-m", "model=tiny", "quant=fp32,bf16", "workload.new_tokens=300"]
SLOW_CELLS += ["measure.warmups=2", "measure.repeats=3"]


@pytest.fixture(scope="module")
def headline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's grid, of two of its quantizations on a tiny model."""
    folder = tmp_path_factory.mktemp("headline")
    command = from_readme("python -m bench sweeps=headline")
    tiny = [*TINY, "quant=fp32,nf4", "batch=1,2", "profile=true"]
    done = bench(folder, *command, *tiny, A_SECRET="do not tell anyone")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@HEADLINE
def test_a_grid_is_measured_and_recorded(headline: Path) -> None:
    assert "speedup: how many times as fast as quant=fp32" in (headline / "stdout").read_text()
    # Where results and report are, and how to look further
    said = (headline / "stderr").read_text().splitlines()
    assert [line.partition(":")[0] for line in said] == ["results", "report", "look further"]
    found = results(headline)
    grid = [(result.cell.quant.name, result.cell.batch) for result in found]
    assert grid == [("fp32", 1), ("fp32", 2), ("nf4", 1), ("nf4", 2)]
    for result in found:
        assert result.outcome.status == "ok"
        (measurement,) = result.measurements
        assert len(measurement.repeats) == 2
        assert all(len(repeat.decode_step_s) == 3 for repeat in measurement.repeats)
        assert result.cell_id == cell_id(result.asked)


@HEADLINE
def test_it_is_tracked_in_mlflow(headline: Path) -> None:
    (parent,), cells = runs(headline)
    assert parent.info.status == "FINISHED"
    cells.sort(key=lambda run: str(run.info.run_name))
    labels = [f"tiny/{quant}/sdpa/b{batch}" for quant in ("fp32", "nf4") for batch in (1, 2)]
    assert [run.info.run_name for run in cells] == labels
    for run, result in zip(cells, results(headline), strict=True):
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["bench.cell_id"] == result.cell_id
        assert run.data.params["cell.batch"] == str(result.cell.batch)
        assert run.data.metrics["decode_tok_s"] > 0
        assert result.attestation is not None
        assert run.data.metrics["weight_bytes"] == result.attestation.weight_bytes
    client = MlflowClient(tracking_uri=f"sqlite:///{headline / 'outputs' / 'mlflow.db'}")
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {
        *("summary.txt", "sweep.json", "report.html", "report.md", "report.csv", "inputs")
    }


@HEADLINE
def test_a_profile_says_where_the_time_goes(headline: Path) -> None:
    for result in results(headline):
        assert result.profile is not None
        phases = [(phase.phase, phase.steps) for phase in result.profile.phases]
        assert phases == [("prefill", 1), ("decode", 3)]
        for phase in result.profile.phases:
            assert sum(phase.seconds.values()) == pytest.approx(phase.wall_s)
            assert phase.seconds["matrix product"] > 0
            assert phase.seconds["attention"] > 0
        is_packed = "product with packed weights" in result.profile.phases[1].seconds
        assert is_packed == (result.cell.quant.name == "nf4")
        trace = sweep_folder(headline) / result.cell_id / "trace.json.gz"
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        assert "bench::prefill" in {event.get("name") for event in events}


@HEADLINE
def test_no_secret_is_in_any_file(headline: Path) -> None:
    files = [file.read_bytes() for file in headline.rglob("*") if file.is_file()]
    assert len(files) >= 20
    assert [content for content in files if b"do not tell anyone" in content] == []


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


def in_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that runs in ``folder``, in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BENCH_LOCK", str(folder / "lock"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for processes that are started from there
    monkeypatch.setenv("BENCH_ROOT", "")  # what composing sets is taken back
    monkeypatch.setenv("BENCH_SCRATCH", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("sys.argv", ["bench", *words])
    capsys.readouterr()
    code = main()
    said = capsys.readouterr()
    return code, said.out, said.err


@HEADLINE
def test_the_commands_after_a_sweep(
    headline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(headline / "outputs", tmp_path / "outputs")
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()

    def run(*words: str) -> tuple[int, str, str]:
        return in_process(tmp_path, monkeypatch, capsys, *words)

    command = from_readme("python -m bench gate NEW --baseline OLD")
    gate = [folder.name if word in ("NEW", "OLD") else word for word in command]
    code, out, _ = run(*gate)  # against itself
    assert code == 0
    assert "0 regressions" in out
    code, _, err = run("gate", "nowhere", "--baseline", folder.name)
    assert code == 2
    assert err.startswith("nowhere: no such folder")

    command = from_readme("python -m bench advise --max-memory 8GiB --max-ttft 200ms --max-kl 0.05")
    code, out, _ = run(*command)
    assert code == 0
    assert "quant=fp32" in out or "quant=nf4" in out

    page = folder / "report.html"
    page.unlink()
    code, out, _ = run(*from_readme("python -m bench report"))
    assert (code, out.splitlines()[0]) == (0, str(page.relative_to(tmp_path)))
    assert page.is_file()

    code, out, _ = run(*from_readme("python -m bench push"))
    assert code == 0
    assert out.startswith(f"4 of 4 cells of {folder.name} are in MLflow")


def test_the_grids_of_the_readme_are_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the scripted engine, which loads nothing; all else is real."""
    default = "smollm2-135m"
    grids: list[tuple[list[str], list[str]]] = [
        (from_readme("python -m bench model=gpt2 quant=nf4 batch=8"), ["gpt2/nf4/sdpa/b8"]),
        (
            from_readme("python -m bench -m attn=eager,sdpa,sdpa_math workload=chat"),
            [f"{default}/bf16/{attn}/chat/b1" for attn in ("eager", "sdpa", "sdpa_math")],
        ),
        (
            from_readme("python -m bench -m quant=bf16,nf4 measure=standard"),
            [f"{default}/bf16/sdpa/b1", f"{default}/nf4/sdpa/b1"],
        ),
        (
            from_readme("python -m bench -m quant=bf16,nf4 profile=true"),
            [f"{default}/bf16/sdpa/b1", f"{default}/nf4/sdpa/b1"],
        ),
        (from_readme("python -m bench quant=nf4 batch=max"), [f"{default}/nf4/sdpa/bmax"]),
    ]
    scripted = ["engine=scripted", "quality=none", "tracking=none", "++model.tokenizer=bytes"]
    scripted += ["engine.options.script='b9: then oom'"]
    for command, labels in grids:
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        code, _, err = in_process(tmp_path, monkeypatch, capsys, *command, *scripted)
        assert code == 0, err
        found = results(tmp_path)
        assert [result.asked.label.replace("/scripted", "") for result in found] == labels
        passes = 3 if "measure=standard" in command else 1
        assert [len(result.measurements) for result in found] == [passes] * len(labels)


def test_what_a_large_model_would_take_is_predicted(tmp_path: Path) -> None:
    command = from_readme(
        "python -m bench -m model=mistral-7b model.weights=random batch=1,max dry_run=true"
    )
    done = bench(tmp_path, *command, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    batches = [int(words[0]) for words in rows if words and words[-1] == "process"]
    assert len(batches) == 2
    assert batches[0] == 1 < batches[1]
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


@HEADLINE
def test_a_run_is_reproduced_from_what_mlflow_has_of_it(headline: Path, tmp_path: Path) -> None:
    shutil.copytree(headline / "outputs", tmp_path / "outputs")
    _, cells = runs(tmp_path)
    original = next(run for run in cells if run.info.run_name == "tiny/nf4/sdpa/b2")
    shutil.rmtree(tmp_path / "outputs" / "sweeps")  # as if a colleague had measured it

    command = from_readme("python -m bench reproduce RUN")
    given = [{"RUN": original.info.run_id}.get(word, word) for word in command]
    done = bench(tmp_path, *given, "--processes", "2")
    words = {0: "reproduced", 1: "differs", 4: "cannot tell"}
    assert done.stdout.startswith(words[done.returncode]), done.stderr
    assert "tiny/nf4/sdpa/b2" in done.stdout
    assert "fp32" not in done.stdout
    (run,) = [run for run in runs(tmp_path)[1] if "bench.verdict" in run.data.tags]
    assert run.data.tags["bench.reproduces"] == original.info.run_id
    assert run.data.tags["bench.verdict"] == words[done.returncode]
    assert "mlflow.parentRunId" not in run.data.tags  # one cell is one run
    assert run.data.metrics["processes"] == 2


def test_a_tracking_server_that_is_down_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    cell = [*TINY, "engine=scripted"]
    done = bench(tmp_path, *cell, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert done.returncode == 3, done.stderr
    folder = sweep_folder(tmp_path)
    assert f"python -m bench push {folder.relative_to(tmp_path)}" in done.stderr
    assert "connection refused: nothing answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert [r.outcome.status for r in results(tmp_path)] == ["ok"]
    for _ in range(2):  # the second finds everything there
        code, _, err = in_process(tmp_path, monkeypatch, capsys, "push", str(folder))
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


def test_the_default_model_answers_in_each_kind_of_quantization(tmp_path: Path) -> None:
    """The others differ in tables and scales: tests/engine has them on tiny models."""
    names = "fp32,bf16,int8,nf4"
    short = ["workload.new_tokens=4", "measure.warmups=1", "measure.repeats=1"]
    short += ["quality.max_new_tokens=8", "quality.text_tokens=256"]
    done = bench(tmp_path, "-m", f"quant={names}", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    for one in found:
        assert len(one.samples) >= 8
        if one.cell.quant.name in ("fp32", "bf16"):
            assert "Paris" in one.samples[0].answer
        assert one.revision == "0.1.2"
    bits = {r.cell.quant.name: derive(r)["bits_per_weight"] for r in found}
    assert bits["fp32"] > bits["bf16"] > bits["int8"] > bits["nf4"]
    kl = {result.cell.quant.name: derive(result)["kl_nats"] for result in found}
    assert abs(kl["fp32"]) < 1e-6  # it is the reference
    assert kl["bf16"] < kl["int8"] < kl["nf4"]
    for result in found:
        if result.cell.quant.name in ("int8", "nf4"):
            assert result.divergence is not None
            for window in result.divergence.windows:
                assert window.kl_nats > 5 * window.floor_kl_nats, result.cell.label
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    run = runs(tmp_path)[1][0]
    file = client.download_artifacts(run.info.run_id, "samples.json", str(tmp_path))
    table = json.loads(Path(file).read_text())
    assert table["columns"][:2] == ["prompt", "answer"]
    prompts = [sample.prompt for sample in found[0].samples]
    assert [row[0] for row in table["data"]] == prompts


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
