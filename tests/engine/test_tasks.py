"""Tasks of lm-evaluation-harness on the loaded model: one of our own, without a network. Skipped
without the package."""

from pathlib import Path

import pytest

from bench.analysis.metrics import derive
from bench.engine import sources
from bench.engine.transformers.session import open_session
from bench.record.measurement import TaskScore, read_scores
from tests import fakes

DATA = Path(__file__).parents[1] / "data" / "tasks"


def test_a_task_is_scored_on_the_loaded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for file in DATA.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("TASK_FOLDER", str(tmp_path)))
    asked = fakes.group("quality", "none", tasks=["two_words"], task_folder=str(tmp_path))
    cell = fakes.cell(quant="fp32", quality=asked)
    session = open_session(cell, sources.fetch(cell.model))
    scores = session.tasks(cell.quality, cell.seed)
    (accuracy,) = [score for score in scores if score.metric == "acc"]
    assert accuracy.task == "two_words"
    assert accuracy.value >= 0.75  # a real model knows where fish live
    assert accuracy.standard_error is not None


def test_numbers_are_told_from_names_and_errors() -> None:
    accuracy = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.25}
    results = {"t": accuracy | {"word_perplexity,none": 12, "word_perplexity_stderr,none": "N/A"}}
    assert read_scores(results) == (
        TaskScore("t", "acc", 0.5, 0.25),
        TaskScore("t", "word_perplexity", 12.0, None),
    )


def test_scores_are_metrics_of_the_cell() -> None:
    result = fakes.result(tasks=(TaskScore("two_words", "acc", 0.75, 0.2),))
    assert derive(result)["task_two_words_acc"] == 0.75
