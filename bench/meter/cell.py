"""One cell, from nothing to a result: the straight line that runs in the measured process.

prepare -> load -> warm up -> measure -> attest -> telemetry, profile, samples; the reference
kernels run before the load and after the timed requests. ``announce`` tells the parent where we are
and returns when it has gone back to sleep.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch

from bench.config.cell import Cell
from bench.driver.process import Announce
from bench.engine import sources
from bench.engine.prompts import prompt_ids
from bench.engine.transformers.attest import attest, mismatches
from bench.engine.transformers.load import Subject, load, release_heap
from bench.engine.transformers.profile import profile
from bench.engine.transformers.tasks import evaluate_tasks
from bench.errors import CellFailure
from bench.meter.answers import answer_samples
from bench.meter.canary import read_sentinel
from bench.meter.device import nvml_used_bytes
from bench.meter.divergence import evaluate
from bench.meter.energy import read_energy
from bench.meter.host import begin_task
from bench.meter.interference import counters, since
from bench.meter.memory import cuda_uuid, read_peaks, reset_peaks, status_bytes
from bench.meter.repeat import measure, warm_up
from bench.meter.requests import decode_syncs, time_requests
from bench.record.afterwards import Afterwards
from bench.record.measurement import Measurement, Memory
from bench.record.result import Findings


def run_cell(announce: Announce, cell: Cell, afterwards: Afterwards) -> Findings:
    """Measure a cell whose ``auto`` values have been resolved.

    Raises:
        CellFailure: when there is no number that deserves the cell's name.
    """
    folder, precision = begin_task(announce, cell)
    rss_before = status_bytes("VmRSS")
    used_before = nvml_used_bytes(cuda_uuid()) if cell.device == "cuda" else None
    before = read_sentinel(cell.device)
    if cell.device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()  # the reference kernels' memory is not the model's
        torch.cuda.empty_cache()

    announce("load", "")
    subject, load_s, load_memory = _load(cell, folder, used_before)
    ids = prompt_ids(cell, subject.tokenizer, subject.model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        warmups, settled = warm_up(announce, cell, subject, ids)
        has_reset = reset_peaks(cell.device)
        counted = counters()
        repeats, stopped, mismatch = measure(announce, cell, subject, ids)
        contamination = since(counted)
        run_memory = read_peaks(cell.device, used_before, has_reset)
        after = read_sentinel(cell.device)
        announce("attest", "")
        # Not earlier: a profiler and other shapes just before make the next requests up to 20 %
        # slower.
        syncs = decode_syncs(cell, subject.model, ids) if cell.device == "cuda" else None
        attestation = attest(cell, subject.model, ids)
    revision = sources.revision(cell.model, folder)
    reasons = [*mismatches(cell, subject.model, attestation), *_wrong_threads(cell)]
    if reasons:
        raise CellFailure("not_engaged", "; ".join(reasons), Findings(revision, attestation, None))
    measurement = Measurement(
        prompt_tokens=ids.shape[1],
        load_s=load_s,
        warmups=warmups,
        settled=settled,
        repeats=repeats,
        stopped=stopped,
        before=before,
        after=after,
        contamination=contamination,
        load_memory=load_memory,
        run_memory=run_memory,
        rss_before_load_bytes=rss_before,
        threads=torch.get_num_threads(),
        precision=precision,
        clock_mismatch=mismatch,
        decode_syncs=syncs,
    )
    return _afterwards(
        announce, cell, subject, ids, Findings(revision, attestation, measurement), afterwards
    )


def _afterwards(
    announce: Announce,
    cell: Cell,
    subject: Subject,
    ids: torch.Tensor,
    findings: Findings,
    wanted: Afterwards,
) -> Findings:
    """What is read after the timed requests; if the process ends here, the numbers are with the
    parent already."""
    if cell.device == "cuda" and cell.measure.telemetry_s and findings.measurement is not None:
        announce("telemetry", "", findings)
        with torch.inference_mode():
            energy = read_energy(cell, subject, ids)
        findings = replace(findings, measurement=replace(findings.measurement, energy=energy))
    if wanted.trace is not None:
        announce("profile", "", findings)
        with torch.inference_mode():
            findings = replace(findings, profile=profile(cell, subject, ids, wanted.trace))
    if wanted.samples and subject.tokenizer is not None:
        announce("samples", "", findings)
        findings = replace(findings, samples=answer_samples(cell, subject))
    if wanted.reference is not None:
        announce("quality", "", findings)
        findings = replace(findings, divergence=evaluate(cell, subject, wanted.reference))
    if wanted.tasks and cell.quality.tasks:
        announce("quality", "tasks", findings)
        findings = replace(findings, tasks=evaluate_tasks(cell, subject))
    return findings


def run_one_request(announce: Announce, cell: Cell) -> None:
    """Load a resolved cell and answer one request, measuring nothing: does it fit?

    Raises:
        CellFailure: when it does not, or fails otherwise.
    """
    folder, _ = begin_task(announce, cell)
    announce("load", "")
    subject = load(cell, folder)
    ids = prompt_ids(cell, subject.tokenizer, subject.model.config.get_text_config().vocab_size)
    announce("warm-up", "")
    with torch.inference_mode():
        time_requests(cell, subject, ids, lambda done: not done)


def _load(
    cell: Cell, folder: Path | None, used_before: int | None
) -> tuple[Subject, float, Memory]:
    """The model in memory, how long that took, and the peaks of it."""
    has_reset = reset_peaks(cell.device)
    started = time.perf_counter()
    subject = load(cell, folder)
    if cell.device == "cuda":
        torch.cuda.synchronize()
    load_s = time.perf_counter() - started
    memory = read_peaks(cell.device, used_before, has_reset)
    release_heap()
    return subject, load_s, memory


def _wrong_threads(cell: Cell) -> list[str]:
    found = torch.get_num_threads()
    return [] if found == cell.threads else [f"torch runs {found} threads, want {cell.threads}"]
