"""The times that are read: against a second clock, against a loop that waits at each token, and
with nothing hidden."""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell
from bench.engine.clock import Clock, Untimed
from bench.engine.prompts import Ids
from bench.engine.protocol import Announce
from bench.meter.cell import begin, ids_of
from bench.meter.requests import time_requests
from bench.record.measurement import Repeat
from bench.record.result import Host
from tests.gpu.running import PLACE, QUICK, RANDOM_GPT2, gpu_cell, run

pytestmark = pytest.mark.gpu

LONG = QUICK | {"new_tokens": 64}


def opened(announce: Announce, cell: Cell) -> tuple[Any, Ids]:
    """A session and its prompts."""
    engine, files, _ = begin(announce, PLACE, cell)
    session = engine.open(cell, files)
    return session, ids_of(cell, session)


def time_both_ways(
    announce: Announce, cell: Cell
) -> tuple[list[Repeat], float, list[float], list[float]]:
    """What the meter reads, the disagreement of its clocks, and by hand: steps that each wait, and
    whole requests."""
    import torch

    class Waiting(Untimed):
        """Synchronizes at each token: simple, and slower."""

        def __init__(self) -> None:
            self.stamps: list[float] = []

        def start(self) -> None:
            torch.cuda.synchronize()

        def token(self, count: int = 1) -> None:
            torch.cuda.synchronize()
            self.stamps.append(time.perf_counter())

    session, ids = opened(announce, cell)
    new_tokens = cell.workload.new_tokens
    repeats, mismatches, waiting_steps, whole = [], [], [], []
    time_requests(session, ids, new_tokens, lambda done: len(done) < 10)
    for _ in range(10):  # in turns, as a host's speed changes
        read, mismatch = time_requests(session, ids, new_tokens, lambda done: not done)
        assert mismatch is not None
        repeats += read
        mismatches.append(mismatch)
        clock = Waiting()
        session.request(ids, new_tokens, clock)
        waiting_steps.append((clock.stamps[-1] - clock.stamps[0]) / (new_tokens - 1))
        torch.cuda.synchronize()
        started = time.perf_counter()
        session.request(ids, new_tokens, Untimed())
        torch.cuda.synchronize()
        whole.append(time.perf_counter() - started)
    return repeats, max(mismatches), waiting_steps, whole


def count_syncs(
    announce: Announce, cell: Cell, with_item: bool = False, in_prefill: bool = False
) -> int:
    """Waits of one request, as the attestation counts them: after its first token, or before."""
    import torch

    from bench.engine.transformers.profiling import syncs

    session, ids = opened(announce, cell)
    for _ in range(2):  # what happens once only is not counted
        session.request(ids, cell.workload.new_tokens, Untimed())

    def with_items(ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        clock.start()
        token = torch.zeros(1, device="cuda")
        clock.token()
        for _ in range(new_tokens - 1):
            token.item()
            clock.token()
        return ids

    request = with_items if with_item else session.request
    prefill, decode = syncs(request, ids, cell.workload.new_tokens)
    return sum((prefill if in_prefill else decode).values())


@pytest.fixture(scope="module", params=[1, 8])
def timed(
    request: pytest.FixtureRequest, host: Host, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    cell = gpu_cell(host, model=RANDOM_GPT2, quant="fp16", workload=LONG, batch=request.param)
    return run(time_both_ways, cell, log=tmp_path_factory.mktemp("clock") / "log.txt")


def test_each_token_but_the_first_has_a_step(timed: Any) -> None:
    repeats, *_ = timed
    assert [len(repeat.decode_step_s) for repeat in repeats] == [63] * 10


def test_host_and_device_totals_agree_within_one_percent(timed: Any) -> None:
    _, mismatch, *_ = timed
    assert mismatch < 0.01


def test_steps_are_no_slower_than_in_a_loop_that_waits_and_not_impossibly_faster(
    timed: Any,
) -> None:
    repeats, _, waiting, _ = timed
    step = statistics.median(statistics.fmean(repeat.decode_step_s) for repeat in repeats)
    assert 0.5 * statistics.median(waiting) < step < 1.1 * statistics.median(waiting)


def test_a_whole_request_takes_as_long_by_the_hosts_clock_alone(timed: Any) -> None:
    repeats, _, _, whole = timed
    assert statistics.median(repeat.e2e_s for repeat in repeats) == pytest.approx(
        statistics.median(whole), rel=0.05
    )


def test_the_counter_of_synchronizations_sees_each(host: Host, log: Path) -> None:
    cell = gpu_cell(host, model="tiny", quant="fp16")
    assert run(count_syncs, cell, True, log=log) == cell.workload.new_tokens - 1


@pytest.mark.parametrize(
    "quant",
    [
        "fp32",
        "fp16",
        "bf16",
        "int8_nodecomp",
        "nf4",
        "nf4_double",
        "fp4",
        "int8_channel",
        "int4_g64",
    ],
)
def test_nothing_waits_for_the_device_between_the_first_token_and_the_last(
    host: Host, quant: str, log: Path
) -> None:
    assert run(count_syncs, gpu_cell(host, model=RANDOM_GPT2, quant=quant), log=log) == 0


@pytest.mark.parametrize("model", ["tiny", "smollm2-135m"])
def test_nothing_waits_in_a_llama_either(host: Host, smollm2: str, model: str, log: Path) -> None:
    assert run(count_syncs, gpu_cell(host, model=model, quant="fp16"), log=log) == 0


@pytest.mark.parametrize("attn", ["sdpa", "flash2"])
def test_flash_attention_2_alone_waits_in_each_layer_of_a_prefill(
    host: Host, smollm2: str, attn: str, log: Path
) -> None:
    if attn == "flash2" and "flash_attn" in host.missing:
        pytest.skip(host.missing["flash_attn"])
    cell = gpu_cell(host, model=smollm2, quant="fp16", attn=attn)
    found = run(count_syncs, cell, False, True, log=log)
    assert found >= 30 if attn == "flash2" else found == 0


def test_int8_with_a_threshold_waits_in_every_layer_as_documented(
    host: Host, smollm2: str, log: Path
) -> None:
    cell = gpu_cell(host, model=smollm2, quant="int8")
    assert run(count_syncs, cell, log=log) >= 210 * (cell.workload.new_tokens - 1)


def test_eager_attention_waits_at_most_once_a_step_for_its_mask(host: Host, log: Path) -> None:
    cell = gpu_cell(host, model="tiny", quant="fp16", attn="eager")
    assert run(count_syncs, cell, log=log) <= cell.workload.new_tokens - 1


def test_generate_waits_at_every_step(host: Host, log: Path) -> None:
    cell = gpu_cell(host, model="tiny", quant="fp16", decode="generate")
    assert run(count_syncs, cell, log=log) >= cell.workload.new_tokens - 2
