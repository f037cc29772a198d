"""The user's own prompts and text through the real command line: timed, answered, compared with the
unquantized model, and kept out of MLflow on request."""

import json
from pathlib import Path

import pytest

from tests.architectures import save_spread
from tests.command_line import TINY, bench, results, runs, sweep_folder

PLANTED = "zyxwvut"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder, with a chat template."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>"
    return save_spread(tmp_path_factory.mktemp("tiny"), template)


def test_own_prompts_are_timed_answered_and_compared_and_stay_here_if_that_is_wanted(
    saved: Path, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": f"What is {PLANTED}, and what is it good for?"}]
    lines = [{"messages": turns}, {"prompt": f"Of {PLANTED}, and of all that it was good for."}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "mine.txt").write_text(f"A text about {PLANTED}. " * 10)
    done = bench(
        tmp_path,
        *(word for word in TINY if not word.startswith("workload")),
        *(f"model.path={saved}", "model.weights=pretrained", "model.tokenizer=pretrained"),
        *("quant=bf16", "batch=2", "workload=prompts", "workload.path=prompts.jsonl"),
        *("workload.new_tokens=4", "quality.texts=[./mine.txt]", "quality.text_tokens=128"),
        *("quality.window_tokens=32", "quality.max_new_tokens=4"),
        "quality.store_prompts=false",
        BENCH_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    chat = len(f"<user>{turns[0]['content']}<a>")
    assert result.measurements[0].given_tokens == (chat, len(lines[1]["prompt"]))
    asked = [turns[0]["content"], lines[1]["prompt"]]
    assert [sample.prompt for sample in result.samples] == asked
    assert result.divergence is not None
    assert [answer.prompt for answer in result.divergence.answers] == asked
    texts = [window.text for window in result.divergence.windows]
    assert {text: texts.count(text) for text in texts} == {"mine.txt": 4, "prompts.jsonl": 2}
    _, (run,) = runs(tmp_path)
    assert run.data.params["workload.sha256"] == result.cell.workload.sha256
    assert "kl_nats_prompts.jsonl" in run.data.metrics
    kept = sweep_folder(tmp_path) / result.cell_id
    tracked = [file for file in (tmp_path / "outputs").rglob("*") if file.is_file()]
    holding = {file for file in tracked if PLANTED.encode() in file.read_bytes()}
    assert holding  # what was asked and answered is on this disk
    assert {kept} == {file.parent for file in holding}
