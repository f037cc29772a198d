"""That the seams of transformers hold: a made-up quantization and strategy, run by the driver; and
how many frames lie between a process's beginning and its first token."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config.cell import Cell
from bench.driver.process import Task, begin_server, run_isolated
from bench.engine import transformers as engine
from bench.engine.clock import Clock, Untimed
from bench.engine.prompts import Ids
from bench.engine.protocol import Files, Session
from bench.engine.transformers import Transformers
from bench.engine.transformers.schemes import SCHEMES, Configuration, Scheme
from bench.record.result import Attestation
from tests import fakes
from tests.driver.test_seams import package_frames
from tests.scripted import in_this_process, sweep

FEW = fakes.group("measure", "quick", warmups=1, repeats=2, target=None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


def test_a_made_up_quantization_is_a_scheme_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precise = Scheme(
        package="bitsandbytes",
        layer_classes=("Linear4bit",),
        configuration=lambda quant, device: Configuration(
            "BitsAndBytesConfig", {"load_in_4bit": True}
        ),
        executed_dtype=lambda quant: "fp32",
        matrix_bytes=lambda outputs, inputs, quant, device: outputs * inputs,  # at most
    )
    monkeypatch.setitem(SCHEMES, "precise", precise)
    quant = {"name": "precise", "scheme": "precise", "dtype": "bf16", "parameters": {}}
    cell = fakes.cell(model="tiny", quant=quant, measure=FEW)
    code, (result,) = sweep(tmp_path, cell, worker=in_this_process)
    assert (code, result.outcome.reason) == (0, None)
    assert result.attestation is not None
    assert result.attestation.details["layers"] == {"Linear4bit": 14, "Linear": 1}
    assert result.attestation.executed_dtype == "fp32"


def without_cache(model: Any, prompt_ids: Any, new_tokens: int, clock: Clock) -> Any:
    """The made-up strategy: everything is read again for each token."""
    clock.start()
    ids = prompt_ids
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        clock.token()
    return ids[:, -new_tokens:]


def test_a_made_up_decode_strategy_is_a_function_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine.STRATEGIES, "uncached", f"{__name__}:without_cache")
    decode = {"name": "uncached", "strategy": "uncached"}
    cell = fakes.cell(model="tiny", quant="fp32", decode=decode, measure=FEW)
    code, (result,) = sweep(tmp_path, cell, worker=in_this_process)
    assert (code, result.outcome.reason) == (0, None)
    assert result.cell.label == "tiny/fp32/sdpa/uncached/few/b1"
    assert len(result.measurements[0].repeats) == 2


class Looking(Untimed):
    """A clock that looks at the stack when the first token comes."""

    frames: list[str] = []  # noqa: RUF012

    def token(self, count: int = 1) -> None:
        self.frames[:] = self.frames or package_frames(sys._getframe(1))


class Watched(Transformers):
    """Sessions whose first request is looked at; the attestation has what was seen."""

    def open(self, cell: Cell, files: Files) -> Session:
        session: Any = super().open(cell, files)
        clocks, attest = session.clock, session.attest
        session.clock = lambda new_tokens: clocks(new_tokens) if Looking.frames else Both(session)

        def with_frames(ids: Ids, new_tokens: int) -> Attestation:
            return replace(attest(ids, new_tokens), details={"frames": Looking.frames})

        session.attest = with_frames
        return session  # type: ignore[no-any-return]


def Both(session: Any) -> Any:  # noqa: N802
    """A real clock that looks as well."""
    from bench.engine.clock import HostClock

    class Clock(HostClock):
        def token(self, count: int = 1) -> None:
            Looking().token()
            super().token(count)

    return Clock()


WATCHED = Watched()


def test_a_process_is_six_frames_from_its_first_token() -> None:
    """And the command four from the process: ten in all."""
    begin_server(())
    place, cell = f"{__name__}:WATCHED", fakes.resolved(model="tiny", quant="fp32", measure=FEW)
    task = Task("bench.meter.cell:measure_cell", (place, cell))
    found = run_isolated(task, lambda *_: None, Path(os.devnull))
    frames = found.attestation.details["frames"]
    assert frames == ["loop", "run", "request", "time_requests", "measure_cell", "serve"]
