"""One cell, from nothing to a result: the straight line that runs in the measured process.

prepare -> load -> warm up -> measure -> attest -> samples. ``announce`` tells the parent where we are and returns when it
has gone back to sleep; it is never called between two clock readings, and between requests only every few seconds,
because the request after a pause finds cold caches and sleeping threads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bench.errors import CellFailure
from bench.meter.device import nvml_used_bytes
from bench.meter.host import import_libraries, prepare_process
from bench.meter.isolate import Announce
from bench.meter.memory import cuda_uuid, read_peaks, reset_peaks, status_bytes
from bench.meter.samples import answer_samples
from bench.meter.speed import decode_syncs, time_requests
from bench.model import sources
from bench.model.load import load
from bench.model.prompts import prompt_ids
from bench.model.verify import attest
from bench.result import Findings, Measurement
from bench.spec import Cell

_BETWEEN_ANNOUNCEMENTS_S = 2.0


def run_cell(announce: Announce, cell: Cell, wants_samples: bool) -> Findings:
    """Measure a cell whose ``auto`` values have been resolved.

    Raises:
        CellFailure: when there is no number that deserves the cell's name.
    """
    announce("prepare", "")
    folder = sources.fetch(cell.model)
    precision = prepare_process(cell)
    import_libraries(cell)
    rss_before = status_bytes("VmRSS")
    used_before = nvml_used_bytes(cuda_uuid()) if cell.device == "cuda" else None

    announce("load", "")
    has_reset = reset_peaks(cell.device)
    started = time.perf_counter()
    subject = load(cell, folder)
    if cell.device == "cuda":
        torch.cuda.synchronize()
    load_s = time.perf_counter() - started
    load_memory = read_peaks(cell.device, used_before, has_reset)

    ids = prompt_ids(cell, subject.tokenizer, subject.model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        before = _now_and_then(announce, "warm-up", cell.measure.warmups)
        warmups, _ = time_requests(cell, subject, ids, cell.measure.warmups, before)
        has_reset = reset_peaks(cell.device)
        before = _now_and_then(announce, "measure", cell.measure.repeats)
        repeats, mismatch = time_requests(cell, subject, ids, cell.measure.repeats, before)
        run_memory = read_peaks(cell.device, used_before, has_reset)
        announce("attest", "")
        # Not earlier: a profiler and other shapes just before make the next requests up to 20 % slower.
        syncs = decode_syncs(cell, subject.model, ids) if cell.device == "cuda" else None
        attestation = attest(cell, subject.model, ids)
    if torch.get_num_threads() != cell.threads:
        raise CellFailure("not_engaged", f"torch runs {torch.get_num_threads()} threads, want {cell.threads}")
    measurement = Measurement(
        prompt_tokens=ids.shape[1],
        load_s=load_s,
        warmups=warmups,
        repeats=repeats,
        load_memory=load_memory,
        run_memory=run_memory,
        rss_before_load_bytes=rss_before,
        threads=torch.get_num_threads(),
        precision=precision,
        clock_mismatch=mismatch,
        decode_syncs=syncs,
    )
    findings = Findings(sources.revision(cell.model, folder), attestation, measurement, ())
    if not wants_samples or subject.tokenizer is None:
        return findings
    announce("samples", "", findings)  # whatever happens from here on, the numbers are there
    return replace(findings, samples=answer_samples(cell, subject))


def _now_and_then(announce: Announce, phase: str, count: int) -> Callable[[int], None]:
    """Announces the first request of a phase, and of the others those that begin long enough after the last one."""
    last_s = -math.inf

    def before(index: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > _BETWEEN_ANNOUNCEMENTS_S:
            announce(phase, f"{index + 1}/{count}")
            last_s = time.monotonic()

    return before
