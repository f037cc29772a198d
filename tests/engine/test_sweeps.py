"""Each distinct cell of the questions in sweeps/ runs on a tiny model, or says why not."""

import re
from dataclasses import replace

from bench.config.cell import Cell, cell_id
from bench.driver import plan
from bench.engine.protocol import ENGINES
from bench.meter.cell import measure_cell, probe_host
from bench.record.result import Host
from tests import fakes
from tests.config.test_sweeps import FILES, cells_of

TINY = fakes.cell(model="tiny").model
FEW = fakes.cell().workload
NOTHING = fakes.cell().quality
ONE_REQUEST = replace(fakes.cell().measure, warmups=1, repeats=1, target=None)


def smallest(cell: Cell, host: Host) -> Cell:
    """The cell with a tiny model, one row of few tokens, one request: what is alike then runs
    once."""
    # Of a layer that the tiny model does not have, all of its layers
    layers = {re.sub(r"layers\.[^.]+", "layers.*", p): q for p, q in cell.quant.layers.items()}
    small = replace(
        cell,
        model=TINY,
        quant=replace(cell.quant, layers=layers),
        workload=FEW if cell.workload.text else replace(cell.workload, new_tokens=2),
        measure=ONE_REQUEST,
        quality=NOTHING,
        batch=1,
    )
    return plan.with_attention(plan.resolve(small, host), None)


def test_every_distinct_cell_runs_with_a_tiny_model_or_says_why_not() -> None:
    place = ENGINES["transformers"]
    host = probe_host(lambda *_: None, place)
    small = {
        cell_id(each): each for each in (smallest(c, host) for f in FILES for c in cells_of(f))
    }
    assert len(small) >= 8
    ran = 0
    for cell in small.values():
        obstacle = plan.why_not(cell, host, None)
        if obstacle is not None:
            assert obstacle.status in ("skipped", "not_engaged")
            assert obstacle.reason
            continue
        found = measure_cell(lambda *_: None, place, cell)
        assert found.measurement is not None, (cell.label, found.attestation.mismatches)
        assert len(found.measurement.repeats) == 1
        ran += 1
    assert ran >= 6
