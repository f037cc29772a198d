"""Which process next: policies on records that no process has touched."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench.analysis.footprint import predict
from bench.config.cell import Cell, Quant, cell_id, sample_key
from bench.driver.policy import (
    Job,
    Records,
    described_as,
    due,
    grid,
    largest,
    predicted_size,
    reference_cells,
    reference_file,
    wants_answers,
    wants_divergence,
)
from bench.driver.worker import begin
from bench.record.result import Answers, Host, Outcome, Result
from tests import fakes

THRICE = fakes.group("measure", "quick", passes=3)
ASKED = fakes.group("quality", "samples", texts=[])  # answers alone, no comparison
FP32, BF16 = Quant("fp32", "none", "fp32"), Quant("bf16", "none", "bf16")


def records(*cells: Cell, **changes: Any) -> Records:
    """Nothing has run; what the models are is known where ``description`` is given."""
    description, host = changes.get("description"), changes.get("host", fakes.host())
    results = {cell_id(cell): begin(cell, cell, host) for cell in cells}
    hosts = {"transformers": host, "scripted": host}
    return Records(results, hosts, {described_as(cell): description for cell in cells})


def timed(of: Result) -> Result:
    """With as many processes as were asked."""
    return replace(of, replicates=(fakes.process(),) * of.cell.measure.passes)


def run(jobs: Iterator[Job], known: Records) -> list[Job]:
    """The jobs of a policy when each timed process gives a number and each answer comes."""
    done = []
    for job in jobs:
        done.append(job)
        result = known.results[job.cell_id]
        if job.kind == "time":
            replicates = (*result.replicates, fakes.process())
            known.results[job.cell_id] = replace(result, replicates=replicates)
        if job.kind == "quality":
            known.answers[sample_key(result.cell)] = fakes.answers()
    return done


# The largest batch


def tries(known: Records, limit: int) -> list[int]:
    """The batches that are tried where ``limit`` rows fit."""
    (key,) = known.results
    tried = []
    for job in largest(known, key):
        assert (job.kind, job.cell_id) == ("try", key)
        tried.append(job.cell.rows)
        known.fits[key, job.cell.rows] = job.cell.rows <= limit
    return tried


def predicting(batch: int) -> Records:
    """Of a cell with ``batch=max`` on a machine in which ``batch`` rows should just fit."""
    cell, description = fakes.cell(batch="max"), fakes.description()
    room = predict(replace(cell, batch=batch), description).total_bytes
    known = records(cell, description=description, host=fakes.host(memory_bytes=room))
    assert predicted_size(known, cell, fakes.host(memory_bytes=room)) == batch
    return known


def ends_near(known: Records, limit: int) -> int:
    """How many tries it took."""
    tried = tries(known, limit)
    (result,) = known.results.values()
    assert result.cell.rows <= limit <= result.cell.rows + result.cell.rows // 50
    assert len(tried) == len(set(tried))
    return len(tried)


LIMITS = sorted({round(3 * 1.15**step) for step in range(75)} | {100_000})


def test_the_search_ends_within_a_fiftieth_below_the_limit() -> None:
    assert LIMITS[-1] == 100_000
    assert max(ends_near(records(fakes.cell(batch="max")), limit) for limit in LIMITS) <= 14


@pytest.mark.parametrize(("off_by", "most"), [(1.05, 7), (1.5, 10), (3, 12)])
def test_the_better_the_prediction_the_fewer_the_tries(off_by: float, most: int) -> None:
    for limit in (20, 100, 1000, 5000):
        for guess in (round(limit / off_by), round(limit * off_by)):
            assert ends_near(predicting(guess), limit) <= most


def test_when_nothing_fits_one_row_is_what_will_fail() -> None:
    known = records(fakes.cell(batch="max"))
    assert tries(known, limit=0) == [1]
    (result,) = known.results.values()
    assert (result.asked.batch, result.cell.batch) == ("max", 1)


def test_a_try_that_fails_for_another_reason_ends_the_search() -> None:
    known = records(fakes.cell(batch="max"))
    ((key, result),) = known.results.items()
    search = largest(known, key)
    next(search)
    known.results[key] = replace(result, outcome=Outcome("failed", "no kernel"))
    assert list(search) == []
    assert known.results[key].outcome == Outcome("failed", "no kernel")


@pytest.mark.parametrize(("limit", "found"), [(700, 700), (10**6, 4092)])
def test_the_longest_prompt_is_found_and_ends_at_the_context(limit: int, found: int) -> None:
    workload = {"name": "long", "text": "prose", "prompt_tokens": "max", "new_tokens": 4}
    cell, description = fakes.cell(workload=workload), fakes.description(context_tokens=4096)
    known = records(cell, description=description, host=fakes.host(memory_bytes=10**9))
    (key,) = known.results
    tried = []
    for job in largest(known, key):
        tried.append(job.cell.workload.least_prompt_tokens)
        known.fits[key, tried[-1]] = tried[-1] <= limit
    (result,) = known.results.values()
    assert result.cell.rows == 1
    assert found / 1.02 <= result.cell.workload.least_prompt_tokens <= found
    assert len(tried) <= 14
    assert (result.asked.workload.prompt_tokens, result.outcome) == ("max", Outcome("ok"))


def test_the_prediction_follows_the_memory() -> None:
    cell = fakes.cell(batch="max")
    known = records(cell, description=fakes.description())
    sizes = [fakes.host(memory_bytes=size) for size in (1, 10_000, 100_000)]
    predicted = [predicted_size(known, cell, host) for host in sizes]
    assert predicted[0] == 1 < predicted[1] < predicted[2]
    assert predicted_size(records(cell), cell, fakes.host()) == 1  # of a model nobody described


def test_the_search_comes_before_the_first_timed_process() -> None:
    known = records(fakes.cell(batch="max"))
    jobs = grid(known, wants_profiles=False)
    kinds = []
    for job in jobs:
        kinds.append(job.kind)
        known.fits[job.cell_id, job.cell.rows] = job.cell.rows <= 2
        if job.kind == "time":
            known.results[job.cell_id] = timed(known.results[job.cell_id])
    assert kinds == ["try", "try", "try", "try", "time"]  # 1, 4, 2, 3


# Passes


def test_every_pass_has_every_cell_in_an_order_of_its_own() -> None:
    known = records(*(fakes.cell(batch=batch, measure=THRICE) for batch in range(1, 9)))
    jobs = run(grid(known, False), known)
    passes = [tuple(job.cell_id for job in jobs[i : i + 8]) for i in (0, 8, 16)]
    assert [sorted(each) for each in passes] == [sorted(known.results)] * 3
    assert len(set(passes)) == 3


def test_the_seed_decides_the_order() -> None:
    results = [
        begin(cell, cell, fakes.host())
        for cell in (fakes.cell(batch=batch) for batch in range(1, 9))
    ]
    reseeded = [replace(result, cell=replace(result.cell, seed=1)) for result in results]
    assert due(results, 0) == due(results, 0) != due(reseeded, 0)


def test_what_is_done_or_cannot_run_is_not_scheduled() -> None:
    cells = [fakes.cell(batch=batch, measure=THRICE) for batch in (1, 2, 4)]
    known = records(*cells)
    done, partly, skipped = known.results
    known.results[done] = timed(known.results[done])
    known.results[partly] = replace(known.results[partly], replicates=(fakes.process(),) * 2)
    known.results[skipped] = replace(known.results[skipped], outcome=Outcome("skipped", "so"))
    assert [(job.kind, job.cell_id) for job in grid(known, False)] == [("time", partly)]


def test_a_cell_that_has_failed_is_not_run_in_later_passes() -> None:
    known = records(fakes.cell(measure=THRICE))
    (key,) = known.results
    jobs = grid(known, False)
    assert next(jobs).kind == "time"
    known.results[key] = replace(known.results[key], outcome=Outcome("oom", "no memory"))
    assert list(jobs) == []


# What is asked besides


def test_cells_with_the_same_sample_key_are_asked_once() -> None:
    known = records(*(fakes.cell(batch=batch, quality=ASKED) for batch in (1, 2, 4)))
    jobs = run(grid(known, False), known)
    assert sorted(job.kind for job in jobs) == ["quality", "time", "time", "time"]
    assert [job.cell.batch for job in jobs if job.kind == "quality"] == [1]
    other = records(*(fakes.cell(quant=quant, quality=ASKED) for quant in ("nf4", "bf16")))
    kinds = [job.kind for job in run(grid(other, False), other)]
    assert kinds == ["time", "quality"] * 2


def test_what_an_earlier_sweep_has_timed_but_not_asked_is_asked_first() -> None:
    cells = fakes.cell(batch=1, quality=ASKED), fakes.cell(quant="nf4")
    known = records(*cells)
    known.results[cell_id(cells[0])] = timed(known.results[cell_id(cells[0])])
    assert [job.kind for job in run(grid(known, False), known)] == ["quality", "time"]


def test_a_cell_without_a_number_is_asked_nothing() -> None:
    known = records(fakes.cell(quality=ASKED))
    (key,) = known.results
    jobs = grid(known, True)
    next(jobs)
    known.results[key] = replace(known.results[key], outcome=Outcome("oom", "no memory"))
    assert list(jobs) == []


def test_answers_that_are_there_are_not_asked_again() -> None:
    known = records(fakes.cell(quality=ASKED))
    (key,) = known.results
    known.results[key] = replace(timed(known.results[key]), answers=Answers(Outcome("ok")))
    assert list(grid(known, False)) == []


def test_each_cell_with_a_number_is_profiled_once_if_wanted() -> None:
    known = records(fakes.cell(batch=1), fakes.cell(batch=2))
    assert [job.kind for job in run(grid(known, True), known)] == ["time", "profile"] * 2


def test_random_weights_are_asked_nothing() -> None:
    asked = fakes.cell(quality="samples")
    assert (wants_answers(asked), wants_divergence(asked)) == (True, True)
    for silent in (fakes.cell(model="tiny", quality="samples"), fakes.cell(quality="none")):
        assert (wants_answers(silent), wants_divergence(silent)) == (False, False)
    tasks = fakes.cell(quality=fakes.group("quality", "none", tasks=["hellaswag"]))
    assert (wants_answers(tasks), wants_divergence(tasks)) == (True, False)


def test_where_no_reference_can_run_the_answers_are_asked_for_and_it_is_said_why() -> None:
    cell = fakes.resolved(quant="nf4", quality="samples")
    known = records(cell, host=fakes.host(memory_bytes=500))
    for quant in (FP32, BF16):
        known.descriptions[described_as(replace(cell, quant=quant))] = fakes.description()  # type: ignore[index]
    *_, asked = run(grid(known, False), known)
    assert (asked.kind, asked.reference) == ("quality", None)
    assert "not even one row fits" in str(asked.no_reference)


# The quality reference


def reference(cell: Cell, host: Host, **changes: Any) -> Cell | Outcome:
    """The first that can run, of a model of 2000 bytes in fp32 and 1000 in 16 bits."""
    known = Records({}, {"transformers": host}, {})
    for name, scale in (("fp32", 2), ("fp16", 1), ("bf16", 1)):
        of = replace(cell, quant=Quant(name, "none", name))  # type: ignore[arg-type]
        sized = fakes.description(matrices=(), plain_bytes=1000 * scale, **changes)
        known.descriptions[described_as(of)] = sized  # type: ignore[index]
    found = list(reference_cells(known, cell))
    return next((each for each in found if isinstance(each, Cell)), found[-1])


def test_the_reference_is_the_unquantized_model_in_the_widest_dtype_that_fits() -> None:
    nf4 = fakes.resolved(quant="nf4", batch=32, attn="sdpa_math", quality="samples")
    found = reference(nf4, fakes.host())
    assert isinstance(found, Cell)
    assert (found.quant, found.attn.name, found.decode.name, found.batch) == (
        FP32,
        "sdpa",
        "loop",
        1,
    )
    assert found.quality == nf4.quality
    small = reference(nf4, fakes.host(memory_bytes=1500))
    assert isinstance(small, Cell)
    assert small.quant == BF16
    too_large = reference(nf4, fakes.host(memory_bytes=500))
    assert isinstance(too_large, Outcome)
    assert str(too_large.reason).startswith("weights (0.0 GiB) and KV cache")


def test_a_reference_belongs_to_what_is_in_the_files_that_it_has_read() -> None:
    own = {"name": "w", "new_tokens": 4, "path": "/x", "sha256": "0", "bucket": "to8"}
    texts = fakes.group("quality", "samples", texts=["alice", "./a.txt"], digests=["0"])

    def file(quality: dict[str, Any] = texts, **workload: str) -> str:
        cell = fakes.resolved(quality=quality, workload=own | workload)
        return str(reference_file(cell, fakes.host()))

    assert file(bucket="to16") == file(path="/y") == file()  # read as a whole, wherever it lies
    assert len({file(), file(sha256="1"), file(texts | {"digests": ["1"]})}) == 3


def test_a_model_without_sdpa_has_a_reference_in_eager() -> None:
    eager = fakes.resolved(quant="nf4", attn="eager", quality="samples")
    found = reference(eager, fakes.host(), attention=("eager",))
    assert isinstance(found, Cell)
    assert (found.attn.name, found.attn.implementation) == ("eager", "eager")


@pytest.mark.parametrize("quant", ["fp32", "fp16", "bf16", "nf4"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_cell_is_more_precise_than_its_reference(device: str, quant: str) -> None:
    cell = fakes.resolved(quant=quant, device=device, quality="samples")
    found = reference(cell, fakes.gpu_host())
    assert isinstance(found, Cell)
    assert (found.quant, found.device) == (FP32, device)


@pytest.mark.parametrize(("capability", "dtype"), [(7.5, "fp16"), (9.0, "bf16")])
def test_where_fp32_does_not_fit_a_gpu_it_has_the_16_bits_that_the_gpu_computes_in(
    capability: float, dtype: str
) -> None:
    cell = fakes.resolved(quant="nf4", device="cuda", quality="samples")
    small = fakes.gpu_host(capability=capability, device_memory_bytes=1500)
    found = reference(cell, small)
    assert isinstance(found, Cell)
    assert found.quant.name == dtype


def test_a_reference_that_runs_out_of_memory_is_made_in_16_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    known = records(fakes.resolved(quant="nf4", quality="samples"))
    made = []
    for job in grid(known, False):
        if job.kind == "time":
            known.results[job.cell_id] = timed(known.results[job.cell_id])
        if job.kind == "reference":
            made.append(job.cell.quant.name)
            known.no_reference[str(job.reference)] = Outcome("oom", "too large")
        if job.kind == "quality":
            assert (job.reference, job.no_reference) == (None, "too large")
            known.answers[sample_key(job.cell)] = fakes.answers()
    assert made == ["fp32", "bf16"]


def test_a_reference_is_made_before_it_is_needed_and_tried_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    cells = [fakes.resolved(quant=quant, quality="samples") for quant in ("nf4", "fp16")]
    known = records(*cells)
    kinds = []
    for job in grid(known, False):
        kinds.append(job.kind)
        result = known.results[job.cell_id]
        if job.kind == "time":
            known.results[job.cell_id] = timed(result)
        if job.kind == "reference":
            assert str(reference_file(job.cell, result.host)) == job.reference
            known.no_reference[job.reference] = Outcome("failed", "it cannot be made")
        if job.kind == "quality":
            # Asked all the same, without a comparison
            assert (job.reference, job.no_reference) == (None, "it cannot be made")
            known.answers[sample_key(result.cell)] = fakes.answers()
    assert sorted(kinds) == ["quality", "quality", "reference", "time", "time"]
    assert kinds.index("reference") < kinds.index("quality")
