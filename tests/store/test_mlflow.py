"""What MLflow holds after results were logged, on a real SQLite store."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from bench.analysis.comparison import compare
from bench.analysis.metrics import derive
from bench.commands.push import push
from bench.config.cell import Cell
from bench.config.parse import parse
from bench.config.settings import Tracking
from bench.errors import ConfigError, TrackingError
from bench.record.measurement import Sample
from bench.record.result import Outcome, from_json
from bench.store import files as store
from bench.store.database import tracking_uri
from bench.store.mlflow import Tracker
from bench.store.mlflow_record import best_cells
from bench.store.mlflow_view import view_tags
from bench.store.recorder import Recorder
from tests import fakes, stores
from tests.analysis.test_advice import KNOWN

SAMPLES = (Sample("Why?", "Because.", (1, 2), True), Sample("How?", "Slowly", (3,), False))
OK = fakes.result(samples=SAMPLES)
FAILED = fakes.result(cell=fakes.cell(batch=2), outcome=Outcome("oom", "no memory left"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep on disk: one cell with a number, one without."""
    stores.database(tmp_path / "outputs" / "mlflow.db")
    return stores.swept(tmp_path / "outputs", OK, FAILED, overrides=("-m", "batch=1,2"))


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return MlflowClient(tracking_uri=f"sqlite:///{folder.parent.parent / 'mlflow.db'}")


def tracker(folder: Path) -> Tracker:
    sweep = store.read_sweep(folder)
    outputs = folder.parent.parent
    opened = Tracker(tracking_uri(sweep.tracking, outputs), outputs, folder, sweep)
    opened.open()
    return opened


def cells(client: MlflowClient, tracked: Tracker) -> list[Run]:
    kind = "tags.`bench.kind` = 'cell'"
    return list(
        client.search_runs([tracked.experiment_id], kind, order_by=["attributes.run_name ASC"])
    )


def test_a_cell_is_a_nested_run_with_all_that_is_known(folder: Path, client: MlflowClient) -> None:
    tracked = tracker(folder)
    tracked.log_cell(OK)
    (run,) = cells(client, tracked)
    assert run.data.tags["mlflow.parentRunId"] == tracked.parent_id
    assert run.data.tags["mlflow.source.git.commit"] == "0123abc"
    assert run.data.tags["bench.git_dirty"] == "true"
    assert run.data.tags["bench.resume_key"] == OK.resume_key
    assert run.data.params["quant.dtype"] == "bf16"
    assert run.data.params["model.architecture.num_hidden_layers"] == "30"
    # Names that `mlflow run` may have taken
    assert not {"quant", "batch", "model"} & run.data.params.keys()
    derived = derive(OK)
    assert {key: run.data.metrics[key] for key in derived} == pytest.approx(derived, rel=1e-5)
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert files == {"result.json", "config.yaml", "samples.json"}
    written = yaml.safe_load(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml"))
    assert parse(Cell, written) == OK.cell


def test_a_cell_without_a_number_says_why_and_has_none(folder: Path, client: MlflowClient) -> None:
    tracked = tracker(folder)
    tracked.log_cell(FAILED)
    (run,) = cells(client, tracked)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {}
    assert run.data.tags["bench.status"] == "oom"
    assert run.data.tags["mlflow.note.content"] == "**oom**: no memory left"


def test_a_cell_with_layers_of_their_own_is_logged(folder: Path, client: MlflowClient) -> None:
    layers = {"model.layers.{0,29}.mlp.*": {"name": "int8_channel", "scheme": "own_int8"}}
    layers["**.o_proj"] = {"name": "none", "scheme": "none"}
    result = fakes.result(cell=fakes.cell(quant=fakes.group("quant", "nf4", layers=layers)))
    store.write_result(folder, result)
    tracked = tracker(folder)
    tracked.log_cell(result)
    (run,) = cells(client, tracked)
    said = run.data.params["quant.layers"]
    assert said == "model.layers.{0,29}.mlp.*: int8_channel; **.o_proj: none"
    written = yaml.safe_load(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml"))
    assert parse(Cell, written) == result.cell


def test_a_cell_is_logged_once(folder: Path, client: MlflowClient) -> None:
    for _ in range(2):
        tracked = tracker(folder)
        tracked.log_cell(OK)
    assert len(cells(client, tracked)) == 1


def test_a_cell_that_was_logged_by_half_is_logged_again(folder: Path, client: MlflowClient) -> None:
    tracked = tracker(folder)
    result = folder / OK.cell_id / "result.json"
    moved = result.rename(folder / "moved.json")  # so that logging ends in the middle
    with pytest.raises(TrackingError, match=r"result\.json"):
        tracked.log_cell(OK)
    moved.rename(result)
    (half,) = cells(client, tracked)
    assert half.info.status == "RUNNING"
    assert push(folder) == 0
    whole = cells(client, tracked)
    assert [run.info.status for run in whole] == ["FINISHED", "FAILED"]
    assert half.info.run_id not in [run.info.run_id for run in whole]
    assert "decode_tok_s" in whole[0].data.metrics


def test_the_run_that_mlflow_run_has_opened_becomes_the_parent(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (folder / "artifacts").as_uri()
    opened = client.create_run(client.create_experiment("of the project", place)).info
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.run_id)
    tracked = tracker(folder)
    tracked.log_cell(OK)
    assert (tracked.parent_id, tracked.experiment_id) == (opened.run_id, opened.experiment_id)
    assert [run.data.tags["mlflow.parentRunId"] for run in cells(client, tracked)] == [
        opened.run_id
    ]
    assert client.get_run(opened.run_id).data.tags["bench.kind"] == "sweep"


def test_a_run_of_another_store_is_not_adopted(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `mlflow run -P overrides=tracking=server`: the opened run is in the store of the
    environment."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    outputs = folder.parent.parent
    tracked = Tracker(
        f"sqlite:///{outputs / 'mlflow.db'}", outputs, folder, store.read_sweep(folder)
    )
    tracked.open()
    assert client.get_run(tracked.parent_id).data.tags["bench.kind"] == "sweep"


def test_push_finds_the_runs_of_a_sweep_in_whichever_experiment(
    folder: Path, client: MlflowClient
) -> None:
    """As those of `mlflow run --experiment-name`, which is not the one in sweep.json."""
    theirs = client.create_experiment("theirs", (folder / "artifacts").as_uri())
    tracked = tracker(folder)
    client.create_run(theirs, tags={"bench.sweep_id": folder.name, "bench.kind": "sweep"})
    client.delete_run(tracked.parent_id)
    assert tracker(folder).experiment_id == theirs


def only_one(folder: Path) -> None:
    """The sweep as if it had had one cell."""
    store.write_sweep(folder, replace(store.read_sweep(folder), cells=(OK.cell_id,)))


def test_a_sweep_of_one_cell_is_one_run(folder: Path, client: MlflowClient) -> None:
    only_one(folder)
    for _ in range(2):  # what is there stays, and gets no longer
        assert push(folder) == 0
    (run,) = client.search_runs(["1"])
    assert (run.info.run_name, run.info.status) == (OK.cell.label, "FINISHED")
    assert run.data.tags["bench.kind"] == "cell"
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.metrics["decode_tok_s"] > 0
    files = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"result.json", "sweep.json", "summary.txt", "inputs", "report.html"} <= files
    rows = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/samples.json"))["data"]
    assert len(rows) == len(SAMPLES)


def test_the_run_that_mlflow_run_has_opened_becomes_the_only_cell(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_one(folder)
    opened = client.create_run(
        client.create_experiment("of the project", (folder / "artifacts").as_uri())
    ).info
    client.log_param(opened.run_id, "batch", "1")  # as `mlflow run -P batch=1` does
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.run_id)
    assert push(folder) == 0
    assert [
        experiment.name
        for experiment in client.search_experiments()
        if experiment.name != "Default"
    ] == ["of the project"]
    (run,) = client.search_runs([opened.experiment_id])
    assert (run.info.run_id, run.info.status) == (opened.run_id, "FINISHED")
    assert run.data.metrics["decode_tok_s"] > 0


PASSWORD = "pass-word-0123"
HUB_TOKEN = "hf_" + "abcdefghij0123456789"
PLAIN = "a-plain-value-4711"  # of a variable that nothing asked for


def test_no_secret_reaches_mlflow_or_the_disk(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", PASSWORD)
    monkeypatch.setenv("WHATEVER", PLAIN)
    words = (
        f"401 for https://me:{PASSWORD}@hub/x?access_token={PASSWORD}, sent {HUB_TOKEN} and"
        f" {PASSWORD}"
    )
    where = fakes.group(
        "model", "smollm2-135m", repo=f"https://me:{PASSWORD}@hub/m", revision=HUB_TOKEN
    )
    failed = fakes.result(
        cell=fakes.cell(model=where, batch=2),
        outcome=Outcome("failed", words, f"Traceback\n{words}"),
    )
    sweep = store.read_sweep(folder)
    uri = f"http://me:{PASSWORD}@host:5000"
    store.write_sweep(
        folder,
        replace(
            sweep,
            overrides=("-m", f"tracking.uri={uri}", f"model.revision={HUB_TOKEN}"),
            tracking=replace(sweep.tracking, uri=uri),
            cells=(OK.cell_id, failed.cell_id),
        ),
    )
    store.write_result(folder, failed)
    (folder / failed.cell_id / "log.txt").write_text(words)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent.parent / 'mlflow.db'}")
    # What a running sweep hands over has not been on disk.
    tracked = Tracker(
        tracking_uri(Tracking("local", True, "e"), folder), folder.parent.parent, folder, sweep
    )
    tracked.open()
    tracked.log_cell(failed)
    assert push(folder) == 0
    store.hide_secrets(folder / failed.cell_id / "log.txt")  # as it is done when a process ends
    files = [file for file in folder.parent.parent.rglob("*") if file.is_file()]
    assert {"mlflow.db", "result.json", "sweep.json", "log.txt", "config.yaml", "report.html"} <= {
        f.name for f in files
    }
    for secret in (PASSWORD, HUB_TOKEN, PLAIN):
        assert [file for file in files if secret.encode() in file.read_bytes()] == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        push(folder)


WORDS = "zyxwvut"  # of a prompt and its answers
TOKENS = (867_530_911, 271_828_182)


@pytest.mark.parametrize("store_prompts", [True, False])
def test_prompts_and_answers_are_tracked_unless_they_are_to_stay_here(
    store_prompts: bool, folder: Path, client: MlflowClient
) -> None:
    quality = fakes.group("quality", "samples", store_prompts=store_prompts)
    own = {"name": "mine-to8", "new_tokens": 4, "path": "/x/mine.jsonl", "bucket": "to8"}
    ours = Sample(f"{WORDS}?", f"{WORDS}!", TOKENS, True)
    result = fakes.result(
        cell=fakes.cell(quality=quality, workload=own),
        samples=(ours,),
        divergence=fakes.divergence(answers=(replace(ours, answer=f"no {WORDS}"),)),
    )
    failed = replace(
        fakes.result(cell=fakes.cell(quality=quality, batch=2), outcome=Outcome("failed", "it")),
        answers=result.answers,
    )
    for each in (result, failed):
        store.write_result(folder, each)
        (folder / each.cell_id / "log.txt").write_text(f"a library quotes {WORDS}")
    sweep = replace(store.read_sweep(folder), cells=(result.cell_id, failed.cell_id))
    store.write_sweep(folder, sweep)
    assert push(folder) == 0
    outputs = folder.parent.parent
    tracked = [file for file in outputs.rglob("*") if file.is_file() and folder not in file.parents]
    tracked += folder.glob("report.*")
    assert {"mlflow.db", "result.json", "report.html", "cells.json"} <= {f.name for f in tracked}
    assert ("log.txt" in {f.name for f in tracked}) == store_prompts
    for content in (WORDS, *map(str, TOKENS)):
        holding = [file.name for file in tracked if content.encode() in file.read_bytes()]
        assert bool(holding) == store_prompts, holding
    (kept,) = [r for r in store.read_results(folder) if r.cell_id == result.cell_id]
    assert kept == result  # on disk all of it stays
    logged = cells(client, tracker(folder))
    assert {run.data.metrics.get("equal_tokens") for run in logged} == {1.0, None}
    records = [mlflow.artifacts.load_text(f"{r.info.artifact_uri}/result.json") for r in logged]
    read = {each.cell_id: each for each in (from_json(text, "here") for text in records)}
    assert bool(read[result.cell_id].samples) == store_prompts
    assert read[result.cell_id].replicates == result.replicates


def test_push_sends_a_folder_and_ends_its_parent(folder: Path, client: MlflowClient) -> None:
    assert push(folder) == 0
    tracked = tracker(folder)  # finds the parent that is there
    parent = client.get_run(tracked.parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "batch=1,2"
    assert "oom: no memory left" in parent.data.tags["mlflow.note.content"]
    assert len(cells(client, tracked)) == 2


def test_a_refusal_of_mlflow_is_one_sentence(folder: Path) -> None:
    database = folder.parent.parent / "mlflow.db"
    database.write_text("no database")
    with pytest.raises(TrackingError) as caught:
        tracker(folder)
    assert str(caught.value).startswith(f"MLflow at sqlite:///{database}: ")
    assert "\n" not in str(caught.value)


def test_the_environment_names_the_store_unless_the_configuration_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:1")
    assert tracking_uri(Tracking("local", True, "e"), tmp_path) == "http://there:1"
    assert tracking_uri(Tracking("server", True, "e", "http://here:2"), tmp_path) == "http://here:2"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (
        tracking_uri(Tracking("local", True, "e"), tmp_path)
        == f"sqlite:///{tmp_path / 'mlflow.db'}"
    )


def test_runs_of_a_sweep_that_was_killed_are_ended_by_the_next_one(
    folder: Path, client: MlflowClient
) -> None:
    dead = tracker(folder)
    assert client.get_run(dead.parent_id).info.status == "RUNNING"
    tracker(folder).end_dead_runs()
    assert client.get_run(dead.parent_id).info.status == "KILLED"


def test_a_result_of_an_earlier_sweep_says_so(folder: Path, client: MlflowClient) -> None:
    tracked = tracker(folder)
    tracked.log_cell(replace(OK, reused_from="an earlier sweep"))
    (run,) = cells(client, tracked)
    assert run.data.tags["bench.reused_from"] == "an earlier sweep"
    assert "decode_tok_s" in run.data.metrics


def test_a_cell_that_was_pushed_too_early_is_replaced_when_it_has_grown(
    folder: Path, client: MlflowClient
) -> None:
    tracked = tracker(folder)
    tracked.log_cell(OK)
    later = replace(OK.replicates[0], started_at=OK.replicates[0].started_at + 60)
    tracked.log_cell(replace(OK, replicates=(*OK.replicates, later)))
    (run,) = cells(client, tracked)
    assert run.data.metrics["processes"] == 2


def test_a_record_is_on_disk_at_once_and_in_mlflow_when_it_is_finished(
    folder: Path, client: MlflowClient
) -> None:
    recorder = Recorder(folder, store.read_sweep(folder), folder.parent.parent)
    assert recorder.tracker is not None
    (folder / OK.cell_id / "result.json").unlink()
    recorder.keep(OK, finished=False)
    assert (folder / OK.cell_id / "result.json").is_file()
    assert cells(client, recorder.tracker) == []
    recorder.keep(FAILED, finished=True)
    assert [run.info.status for run in cells(client, recorder.tracker)] == ["FAILED"]
    assert recorder.results == [OK, FAILED]
    recorder.close("KILLED", 2000.0, None, [], "the table")
    assert len(cells(client, recorder.tracker)) == 2
    parent = client.get_run(recorder.tracker.parent_id)
    assert (parent.info.status, recorder.untracked) == ("KILLED", None)
    assert "the table" in parent.data.tags["mlflow.note.content"]


def test_a_refusal_ends_tracking_and_loses_no_record(folder: Path) -> None:
    (folder.parent.parent / "mlflow.db").write_text("no database")
    recorder = Recorder(folder, store.read_sweep(folder), folder.parent.parent)
    assert recorder.untracked is not None
    (folder / OK.cell_id / "result.json").unlink()
    recorder.keep(OK, finished=True)
    recorder.close("FINISHED", 2000.0, compare([OK], recorder.sweep), [], "")
    assert list(store.read_results(folder)) == [OK, FAILED]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("one line\nand 65 of SQL"),
        KeyError("x"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_while_tracking_ends_tracking(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    sweep = store.read_sweep(folder)
    recorder = Recorder(folder, sweep, folder.parent.parent)
    assert recorder.untracked is None
    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    recorder.keep(OK, finished=True)
    assert recorder.untracked is not None
    assert recorder.untracked.startswith("MLflow at sqlite:///")
    assert recorder.untracked.endswith(str(error).splitlines()[0])
    recorder.close("FINISHED", 2000.0, None, [], "the table")  # asks nobody any more


def test_a_command_that_is_printed_can_be_pasted(tmp_path: Path) -> None:
    outputs = tmp_path / "my outputs"
    stores.database(outputs / "mlflow.db")
    tracked = tracker(stores.swept(outputs, OK))
    (command, _, page) = tracked.how_to_look.partition(", then ")
    assert shlex.split(command)[-1] == f"sqlite:///{outputs / 'mlflow.db'}"
    assert page.startswith("http://127.0.0.1:5000/#/experiments/")


def test_the_best_divergence_is_that_of_every_cell_at_the_noise_floor() -> None:
    results = [
        fakes.result(cell=fakes.cell(quant=quant), divergence=fakes.spread_divergence(kl))
        for quant, kl in (("nf4", 0.5), ("fp16", 0.126), ("bf16", 0.120))
    ]
    _, tags = best_cells(compare(results, fakes.sweep()))
    assert tags["bench.best.kl_nats"] == "quant=fp16, quant=bf16"
    _, tags = best_cells(compare(results[:1], fakes.sweep()))
    assert tags["bench.best.kl_nats"].startswith("model=")


def test_a_parent_says_what_varies_what_does_not_and_which_cell_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = stores.database(tmp_path / "mlflow.db")
    folder = stores.swept(tmp_path, *KNOWN)
    sweep = replace(store.read_sweep(folder), columns=("quant", "batch"), price_per_hour=2.5)
    store.write_sweep(folder, sweep)
    assert push(folder) == 0
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if run.data.tags["bench.kind"] == "sweep"]
    assert parent.data.tags["bench.price_per_hour"] == "2.5"
    # 2.5 / 3600 / 320 tokens/s
    assert parent.data.metrics["best/cost/output_mtok"] == pytest.approx(2.17014, rel=1e-4)
    assert parent.data.tags["bench.best.cost/output_mtok"] == "quant=bf16 batch=32"
    of_cells = [run.data.metrics for run in runs if run.data.tags["bench.kind"] == "cell"]
    assert min(metrics["cost/output_mtok"] for metrics in of_cells) == pytest.approx(2.17014)
    assert parent.data.params["axis.quant"] == "bf16, int8, nf4"
    assert parent.data.params["axis.batch"] == "1, 8, 32"
    assert parent.data.params["model.name"] == "smollm2-135m"
    assert "quant.name" not in parent.data.params
    assert parent.data.metrics["best/tpot_s"] == pytest.approx(0.02)
    assert parent.data.tags["bench.best.tpot_s"] == "quant=nf4 batch=1"
    assert parent.data.tags["mlflow.source.name"] == "bench"
    assert parent.data.tags["mlflow.user"]
    names = {run.info.run_name for run in runs if run.data.tags["bench.kind"] == "cell"}
    assert "nf4 b8" in names
    file = client.download_artifacts(parent.info.run_id, "cells.json", str(tmp_path))
    table = json.loads(Path(file).read_text())
    assert len(table["data"]) == len(KNOWN)
    assert table["columns"][:3] == ["quant", "batch", "status"]


def test_more_cells_than_mlflow_compares_open_as_a_table(tmp_path: Path) -> None:
    stores.database(tmp_path / "mlflow.db")
    few = tracker(stores.swept(tmp_path, OK, FAILED))
    assert "compareRunsMode=CHART" in few.how_to_look
    many = [fakes.result(cell=fakes.cell(batch=batch)) for batch in range(1, 102)]
    assert "compareRunsMode=TABLE" in tracker(stores.swept(tmp_path, *many)).how_to_look
    (view, _) = view_tags("id", {"ttft_s"}, ["quant.name"], 0, with_charts=False).values()
    assert json.loads(json.loads(view)["state"])["compareRunCharts"] == []
