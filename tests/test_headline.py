"""The README's grid through the real command line, and what comes after it: a real SQLite store,
the commands, a reproduction."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bench.config.cell import cell_id
from tests.command_line import (
    TINY,
    bench,
    from_readme,
    in_process,
    results,
    runs,
    sweep_folder,
)


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


def test_it_is_tracked_in_mlflow(headline: Path) -> None:
    (parent,), cells = runs(headline)
    assert parent.info.status == "FINISHED"
    cells.sort(key=lambda run: str(run.info.run_name))
    names = [f"{quant} b{batch}" for quant in ("fp32", "nf4") for batch in (1, 2)]
    assert [run.info.run_name for run in cells] == names
    assert parent.data.params["axis.quant"] == "fp32, nf4"
    assert parent.data.metrics["best/output_tok_s"] > 0
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


def test_no_secret_is_in_any_file(headline: Path) -> None:
    files = [file.read_bytes() for file in headline.rglob("*") if file.is_file()]
    assert len(files) >= 20
    assert [content for content in files if b"do not tell anyone" in content] == []


def test_the_commands_after_a_sweep(
    headline: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(headline / "outputs", tmp_path / "outputs")
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()

    def run(*words: str) -> tuple[int, str, str]:
        return in_process(tmp_path, *words)

    command = from_readme("python -m bench gate NEW --baseline OLD")
    gate = [folder.name if word in ("NEW", "OLD") else word for word in command]
    code, out, _ = run(*gate)  # against itself
    assert code == 4
    assert "4 cells: the baseline's own readings" in out
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


def test_a_run_is_reproduced_from_what_mlflow_has_of_it(headline: Path, tmp_path: Path) -> None:
    shutil.copytree(headline / "outputs", tmp_path / "outputs")
    _, cells = runs(tmp_path)
    original = next(run for run in cells if run.info.run_name == "nf4 b2")
    shutil.rmtree(tmp_path / "outputs" / "sweeps")  # as if a colleague had measured it

    command = from_readme("python -m bench reproduce RUN")
    given = [{"RUN": original.info.run_id}.get(word, word) for word in command]
    done = in_process(tmp_path, *given, "--processes", "2")
    words = {0: "reproduced", 1: "differs", 4: "cannot tell"}
    assert done.stdout.startswith(words[done.returncode]), done.stderr
    assert "tiny/nf4/sdpa/b2" in done.stdout
    assert "fp32" not in done.stdout
    (run,) = [run for run in runs(tmp_path)[1] if "bench.verdict" in run.data.tags]
    assert run.data.tags["bench.reproduces"] == original.info.run_id
    assert run.data.tags["bench.verdict"] == words[done.returncode]
    assert "mlflow.parentRunId" not in run.data.tags  # one cell is one run
    assert run.data.metrics["processes"] == 2
