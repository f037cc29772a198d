"""``import``: what it keeps in a sweep's folder, shows in table and report, and sends to MLflow; on
made-up cells of the model that the example file of llama-bench is of."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from bench.commands import run_command
from bench.commands.push import push
from bench.errors import ConfigError, StoreError
from bench.report import foreign
from bench.report.terminal import compared
from bench.store import foreign as imported
from bench.store.files import read_sweep, write_sweep
from bench.store.mlflow import Tracker
from bench.store.mlflow_fetch import from_mlflow
from tests import fakes, stores
from tests.analysis.test_foreign import DATA, RESULTS, SERVICE
from tests.analysis.test_foreign_pairs import here
from tests.command_line import from_readme

OURS = [
    here("fp16", 0.5, model="smollm2-135m", engine="llama_cpp"),
    here("gguf_q4_k_m", 0.2, model="smollm2-135m", engine="llama_cpp"),
]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two cells, tracked in SQLite; the current folder is above ``outputs``."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    stores.database(tmp_path / "outputs" / "mlflow.db")
    return stores.swept(tmp_path / "outputs", *OURS)


def run(*arguments: str | Path) -> int:
    return run_command("import", list(map(str, arguments)))


def nested(folder: Path) -> list[Run]:
    """The foreign runs of the store beside a sweep."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent.parent / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, "tags.`bench.foreign` = 'true'"))


def test_foreign_rows_stand_below_ours_with_ratios_and_no_verdict(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(sweep) == 0
    shutil.copy(DATA / "llama_bench.json", "llama-bench.json")
    assert run_command("import", from_readme("python -m bench import llama-bench.json")[1:]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    ours = next(i for i, line in enumerate(lines) if line[:1] == ["gguf_q4_k_m"])
    theirs = next(i for i, line in enumerate(lines) if line[:1] == ["gguf_q4_k_m"] and i > ours)
    title = next(i for i, line in enumerate(lines) if line[:1] == ["llama-bench,"])
    assert ours < title < theirs
    assert " ".join(lines[title]).startswith("llama-bench, foreign, not attested: file ")
    # What it is, its rates, 2.00x of its fp16, 2.50x of ours
    assert " ".join(lines[theirs]) == (
        "gguf_q4_k_m 1 0 128 12.50 - 80.0 98.9 2.00x of fp16 2.50x of fp16 3 in one process"
    )
    assert "unknown: attn, warm-up, dtype of products" in " ".join(said.out.split())
    below = " ".join(" ".join(line) for line in lines[title:])
    for word in ("faster", "slower", "equivalent", "cannot tell"):
        assert word not in below
    assert f"imported: 3 configurations of {tmp_path.name}/llama-bench.json" in said.err


def test_the_report_has_a_section_of_it_and_the_csv_rows(sweep: Path) -> None:
    write_sweep(sweep, fakes.sweep(*(r.cell_id for r in OURS), sweep_id=sweep.name))  # untracked
    assert run(DATA / "llama_bench.json", DATA / RESULTS, DATA / SERVICE) == 0
    page = (sweep / "report.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="foreign">') :].partition("</section>")[0]
    assert '<a href="#foreign">Foreign, not attested</a>' in page
    assert "no verdict" in section
    for tool in ("llama-bench", "lm-eval", "inference-perf"):
        assert f"<h3>{tool}</h3>" in section
    assert "definition of time to first token" in section
    assert ">unknown</td>" in section  # the service's batch
    assert ">0.656 <small>(0.637 to 0.675)</small></td>" in section
    assert "2.50x</td>" in section  # ours, beside theirs
    ticket = (sweep / "report.md").read_text(encoding="utf-8")
    assert "llama-bench, foreign, not attested: " in ticket
    assert "| gguf_q4_k_m | fp16 | decode tok/s | 80.0 | 2.00x | 5.0 | 2.50x |" in ticket
    rows = list(csv.DictReader((sweep / "report.csv").read_text().splitlines()))
    assert [row["outcome"] for row in rows] == ["ok", "ok", *[foreign.TITLE] * 5]
    assert rows[4]["decode_tok_s"] == "80.0"
    assert rows[4]["quant"] == "gguf_q4_k_m"
    assert "n_threads 2" in rows[4]["reason"]
    assert rows[6]["quant"] == "unknown"
    assert float(rows[6]["ttft_s"]) == pytest.approx(0.05)


def test_nothing_that_is_concluded_changes(sweep: Path) -> None:
    before = compared(sweep)
    imported.add(sweep, foreign.read((DATA / "llama_bench.json").read_text(), "a/b.json"))
    after = compared(sweep)
    assert len(after.foreign) == 3
    for name in ("speedups", "values", "findings", "results", "front", "against", "columns"):
        assert getattr(after, name) == getattr(before, name)


def test_a_file_that_comes_again_takes_the_place_of_the_first(sweep: Path, tmp_path: Path) -> None:
    assert push(sweep) == 0
    file = tmp_path / "here" / "bench.json"
    file.parent.mkdir()
    tests = json.loads((DATA / "llama_bench.json").read_text())
    file.write_text(json.dumps(tests))
    assert run(file, "--sweep", sweep.name) == 0
    assert run(file) == 0
    assert len(imported.read(sweep)) == len(nested(sweep)) == 3
    moved = shutil.copy(file, tmp_path / "moved.json")  # the same content elsewhere
    assert run(moved) == 0
    assert {of.file for of in imported.read(sweep)} == {f"{tmp_path.name}/moved.json"}
    assert run(DATA / RESULTS) == 0
    Path(moved).write_text(json.dumps(tests[:1]))  # other content in the same place
    assert run(moved) == 0
    assert [of.tool for of in imported.read(sweep)] == ["lm-eval", "llama-bench"]
    assert len(nested(sweep)) == 2


def test_mlflow_has_parameters_metrics_and_the_mark(sweep: Path) -> None:
    assert push(sweep) == 0
    assert run(DATA / "llama_bench.json") == 0
    runs = nested(sweep)
    (quantized,) = [each for each in runs if each.data.params["quant.name"] == "gguf_q4_k_m"]
    assert quantized.info.status == "FINISHED"
    assert quantized.data.metrics["decode_tok_s"] == 80.0
    assert quantized.data.metrics["repetition/tpot_s"] == pytest.approx(1.596 / 128, rel=1e-5)
    assert quantized.data.params["attn.name"] == "unknown"
    assert quantized.data.params["cell.batch"] == "1"
    assert quantized.data.params["foreign.n_threads"] == "2"
    tags = quantized.data.tags
    assert tags["bench.kind"] == "foreign"
    assert tags["mlflow.note.content"].startswith("**foreign, not attested**: decode steps")
    client = MlflowClient(tracking_uri=f"sqlite:///{sweep.parent.parent / 'mlflow.db'}")
    parent = client.get_run(tags["mlflow.parentRunId"])
    assert parent.data.tags["bench.kind"] == "sweep"
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"foreign.json", "report.html"} <= files
    # The sweep is found again without them
    uri = f"sqlite:///{sweep.parent.parent / 'mlflow.db'}"
    assert from_mlflow(parent.info.run_id, uri).results == OURS


def test_what_mlflow_does_not_take_is_kept_and_sent_later(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(DATA / "llama_bench.json") == 3  # the sweep has no run yet
    said = capsys.readouterr().err
    assert f"no run of sweep {sweep.name}" in said
    assert f"send it later: python -m bench push outputs/sweeps/{sweep.name}" in said
    assert len(imported.read(sweep)) == 3
    assert nested(sweep) == []
    for _ in range(2):
        assert push(sweep) == 0
        assert len(nested(sweep)) == 3


def test_what_was_imported_beside_one_cell_is_nested_in_its_run(
    tmp_path: Path, sweep: Path
) -> None:
    single = stores.swept(tmp_path / "outputs", OURS[0])
    assert push(single) == 0
    assert run(DATA / "llama_bench.json", "--sweep", single) == 0
    record = read_sweep(single)
    uri = f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}"
    tracker = Tracker(uri, tmp_path / "outputs", single, record)
    tracker.find()
    assert {each.data.tags["mlflow.parentRunId"] for each in nested(sweep)} == {tracker.parent_id}
    assert from_mlflow(tracker.parent_id, uri).results == [OURS[0]]


def test_reports_of_a_sweep_are_imported_into_another_with_the_same_figures(
    sweep: Path, tmp_path: Path
) -> None:
    assert run_command("report", []) == 0
    reports = sorted((sweep / "benchmark_report_v0.2").glob("*.json"))
    assert [file.stem for file in reports] == sorted(result.cell_id for result in OURS)
    other = stores.swept(tmp_path / "elsewhere", fakes.result())
    write_sweep(other, fakes.sweep(fakes.result().cell_id, sweep_id=other.name))
    assert run(*reports, "--output-dir", "elsewhere") == 0
    ours, theirs = compared(sweep), compared(other)
    values = {of.quant: of.values for of in theirs.foreign}
    assert values == {r.cell.quant.name: ours.values[r.cell_id] for r in OURS}


def test_a_study_that_is_shipped_is_not_shown_twice(sweep: Path) -> None:
    study = Path(foreign.PUBLISHED[0])
    comparison = compared(sweep)
    shipped = foreign.published(comparison)
    imported.add(sweep, foreign.read(study.read_text(encoding="utf-8"), study.name))
    assert len(foreign.published(compared(sweep))) == len(shipped)
    assert foreign.tables(compared(sweep))[0].title == "a study"


def test_nothing_is_written_when_one_file_cannot_be_read(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "cut.json").write_text('[{"n_prompt": 1')
    with pytest.raises(ConfigError) as caught:
        run(DATA / "llama_bench.json", "nowhere.json", "cut.json", "picture.png")
    assert [problem.partition(": ")[2][:14] for problem in caught.value.problems] == [
        "cannot be read",
        "damaged JSON; ",
        "no text in UTF",
    ]
    assert not (sweep / "foreign.json").exists()
    (sweep / "foreign.json").write_text("[{}]")
    with pytest.raises(StoreError, match=r"foreign\.json: "):
        run(DATA / "llama_bench.json")


def test_a_folder_that_is_no_sweep_gets_nothing(sweep: Path) -> None:
    (sweep.parent / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no sweep\.json in it"):
        run(DATA / "llama_bench.json", "--sweep", "empty")
    assert list((sweep.parent / "empty").iterdir()) == []
    with pytest.raises(ConfigError, match=r"^gone: no such folder, and no such sweep"):
        run(DATA / "llama_bench.json", "--sweep", "gone")
