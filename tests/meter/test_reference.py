"""What is kept of the published model: windows of a text, head, answers, noise floor."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from bench.config.cell import Cell, Quant
from bench.config.prompt_file import with_digests
from bench.engine.prompts import ByteTokenizer, Ids
from bench.engine.protocol import Files, Floats, Head
from bench.engine.scripted import Scripted, ScriptedSession
from bench.errors import CellFailure, ConfigError
from bench.meter.divergence import evaluate
from bench.meter.reference import keep_reference
from bench.paths import TEXTS
from tests import fakes
from tests.scripted import scripted

BF16 = Quant("bf16", "none", "bf16")
PRETRAINED = fakes.group("model", "tiny", weights="pretrained", path="/nowhere")
PLACE = f"{__name__}:ENGINE"


class Marking(ByteTokenizer):
    """Sets a mark before each text."""

    begins = (7,)


class Shown(ScriptedSession):
    """Its hidden state at a token is the token's number; all logits are equal.

    With another kernel every other logit is larger by ln 3.
    """

    def __init__(self, cell: Cell, head: Head | None) -> None:
        super().__init__(cell)
        self.shown, self.shift = head, 0.0
        if cell.model.name == "marked":
            self.tokenizer = Marking()

    def hidden(self, ids: Ids) -> Floats:
        return ids[:, :, None].astype(np.float32)

    def head(self) -> Head | None:
        return self.shown

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        row = np.array([0, self.shift] * (self.vocabulary // 2), dtype=np.float32)
        return [iter([np.tile(row, (ids.shape[1], 1))]) for _ in ids]

    def alternative(self) -> None:
        self.shift = float(np.log(3))


class Engine(Scripted):
    """Opens such sessions; the cell's options say whether they have a head."""

    def open(self, cell: Cell, files: Files) -> ScriptedSession:
        head = Head(np.zeros((256, 1), dtype=np.float32), None)
        return Shown(cell, None if cell.engine.options["script"] == "headless" else head)


ENGINE = Engine()


def cell_of(script: str = "", name: str = "plain", **quality: Any) -> Cell:
    asked = {"texts": ["alice"], "text_tokens": 100, "window_tokens": 32, "max_new_tokens": 4}
    group = fakes.group("quality", "samples", **asked | quality)
    return scripted(script, model=PRETRAINED | {"name": name}, quality=group, quant="bf16")


def kept(folder: Path, cell: Cell) -> tuple[Ids, dict[str, Any]]:
    """The ids in a reference, and what stands beside them."""
    file = folder / "cache" / "reference"
    keep_reference(lambda *_: None, PLACE, cell, BF16, str(file))
    with safe_open(file, framework="numpy") as stored:
        about: dict[str, Any] = json.loads(stored.metadata()["about"])
        return stored.get_tensor("ids"), about


def test_windows_are_the_text_one_after_the_other_and_the_rest_is_dropped(tmp_path: Path) -> None:
    ids, about = kept(tmp_path, cell_of())
    assert ids.shape == (3, 32)  # of 100 tokens 4 are left
    text = TEXTS["alice"].read_text(encoding="utf-8")
    assert ids.flatten().tolist() == list(text.encode()[:96])  # a byte is a token
    assert about["begins_with_bos"] is False
    # The first token of each is read and not scored
    assert [window["bytes"] for window in about["windows"]] == [31] * 3
    assert about["reference"] == "bf16"
    assert len(about["answers"]) == 8


def test_files_of_text_and_the_prompts_of_a_workload_are_read_too(tmp_path: Path) -> None:
    mine, prompts = tmp_path / "my text.txt", tmp_path / "prompts.jsonl"
    mine.write_text("m" * 70)
    turns = [{"role": "user", "content": "b" * 20}, {"role": "assistant", "content": "c" * 20}]
    lines = [{"prompt": "a" * 20}, {"messages": turns}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    cell = with_digests(cell_of(texts=["alice", str(mine)]))
    own = replace(cell.workload, text=None, path=str(prompts))
    ids, about = kept(tmp_path, replace(cell, workload=own))
    assert [window["text"] for window in about["windows"]] == [
        *["alice"] * 3,
        *["my_text.txt"] * 2,
        *["prompts.jsonl"] * 2,  # of 64 tokens, with two empty lines between two texts
    ]
    assert (
        bytes(ids[-2:].flatten().tolist()) == b"a" * 20 + b"\n\n" + b"b" * 20 + b"\n\n" + b"c" * 20
    )
    prompts.write_text(json.dumps({"prompt": "a" * 31}))
    _, about = kept(tmp_path, replace(cell, workload=own))
    assert {window["text"] for window in about["windows"]} == {"alice", "my_text.txt"}
    mine.write_text("n" * 70)
    with pytest.raises(ConfigError, match="has changed"):
        kept(tmp_path, cell)


def test_a_tokenizers_mark_begins_each_window_so_that_all_of_the_text_is_scored(
    tmp_path: Path,
) -> None:
    ids, about = kept(tmp_path, cell_of(name="marked"))
    assert ids.shape == (3, 32)
    assert ids[:, 0].tolist() == [7] * 3
    assert about["begins_with_bos"] is True
    assert [window["bytes"] for window in about["windows"]] == [31] * 3


def test_the_noise_floor_is_the_model_against_itself_with_another_kernel(tmp_path: Path) -> None:
    _, about = kept(tmp_path, cell_of())
    # Where each token has 1/256, half of them are given 1/512 and half 3/512
    floor = (np.log(512 / 256) + np.log(512 / 256 / 3)) / 2
    assert [window["floor_kl_nats"] for window in about["windows"]] == pytest.approx([floor] * 3)


def test_what_is_kept_can_be_compared_with(tmp_path: Path) -> None:
    cell = cell_of()
    kept(tmp_path, cell)
    found = evaluate(ENGINE.open(cell, Files(None, None)), tmp_path / "cache" / "reference")
    assert found is not None
    assert [window.kl_nats for window in found.windows] == [0.0] * 3


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (cell_of("headless"), "plain makes its logits by more than a product with its head"),
        (cell_of(window_tokens=101), "the text alice has 100 tokens, less than one window"),
    ],
)
def test_what_gives_no_reference_says_why_and_leaves_nothing(
    tmp_path: Path, cell: Cell, said: str
) -> None:
    with pytest.raises(CellFailure, match=said):
        kept(tmp_path, cell)
    assert list(tmp_path.iterdir()) == []
