"""The checks that need a model: on the real engine, and with a fault planted in it."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.commands.checks import CHECKS, Here
from bench.commands.selftest import run_checks
from bench.config.cell import Cell
from bench.engine.protocol import Files, Session, engine_at
from bench.engine.transformers import Transformers
from bench.record.description import Description
from bench.record.selftest import Check
from tests import fakes
from tests.scripted import in_this_process


class OffByAByte(Transformers):
    def describe(self, cell: Cell) -> Description | None:
        found = super().describe(cell)
        return None if found is None else replace(found, plain_bytes=found.plain_bytes + 1)


class Unmasked(Transformers):
    """Its attention sees the tokens that come after."""

    def open(self, cell: Cell, files: Files) -> Session:
        session = super().open(cell, files)
        if cell.attn.implementation == "sdpa":
            for layer in session.model.model.layers:  # type: ignore[attr-defined]
                layer.self_attn.is_causal = False
        return session


OFF_BY_A_BYTE, UNMASKED = OffByAByte(), Unmasked()


def run(name: str, place: str, folder: Path) -> Check:
    here = Here(in_this_process, lambda *_: None, fakes.host(), folder, place)
    (check,) = run_checks(here, {name: CHECKS[name]})
    return check


@pytest.mark.parametrize(
    ("name", "fault"),
    [("quantization int8_nodecomp", "OFF_BY_A_BYTE"), ("attention sdpa", "UNMASKED")],
)
def test_a_planted_fault_is_found(name: str, fault: str, tmp_path: Path) -> None:
    place = f"{__name__}:{fault}"
    assert engine_at(place).preload
    right = run(name, "bench.engine.transformers:ENGINE", tmp_path)
    assert right.verdict == "ok", right.found
    wrong = run(name, place, tmp_path)
    assert wrong.verdict == "NOT OK", wrong.found
