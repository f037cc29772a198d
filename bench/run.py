"""One cell, from nothing to a result: the straight line that runs in the measured process.

prepare -> load -> first request -> attest -> warm up -> measure -> samples. ``announce`` tells the parent where we are
and returns when it has gone back to sleep; it is never called between two clock readings.
"""

import time
from dataclasses import dataclass

import torch

from bench.errors import CellFailure
from bench.meter.clock import decode_syncs
from bench.meter.device import nvml_used_bytes
from bench.meter.host import import_libraries, prepare_process
from bench.meter.isolate import Announce
from bench.meter.memory import cuda_uuid, read_peaks, reset_peaks, status_bytes
from bench.meter.samples import answer_samples
from bench.meter.speed import time_requests
from bench.model import sources
from bench.model.attn import pinned
from bench.model.decode import LOOPS
from bench.model.load import load
from bench.model.prompts import prompt_ids
from bench.model.verify import attest
from bench.result import Attestation, Measurement, Sample
from bench.spec import Cell


@dataclass(frozen=True, slots=True)
class Findings:
    """What the measured process hands back."""

    revision: str | None
    attestation: Attestation
    measurement: Measurement
    samples: tuple[Sample, ...]


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
    reset_peaks(cell.device)
    started = time.perf_counter()
    subject = load(cell, folder)
    if cell.device == "cuda":
        torch.cuda.synchronize()
    load_s = time.perf_counter() - started
    load_memory = read_peaks(cell.device, used_before)

    ids = prompt_ids(cell, subject.tokenizer, subject.model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        first, _ = time_requests(cell, subject, ids, 1, lambda i: announce("warm-up", "first request"))
        attestation = attest(cell, subject.model, ids)
        warmups = cell.measure.warmups - 1
        more, _ = time_requests(cell, subject, ids, warmups, lambda i: announce("warm-up", f"{i + 2}/{warmups + 1}"))
        syncs = None
        if cell.device == "cuda":
            with pinned(cell.attn):
                syncs = decode_syncs(LOOPS[cell.decode.loop], subject.model, ids, cell.workload.new_tokens)
        reset_peaks(cell.device)
        count = cell.measure.repeats
        repeats, mismatch = time_requests(cell, subject, ids, count, lambda i: announce("measure", f"{i + 1}/{count}"))
    run_memory = read_peaks(cell.device, used_before)

    samples: tuple[Sample, ...] = ()
    if wants_samples and subject.tokenizer is not None:
        announce("samples", "")
        samples = answer_samples(cell, subject)
    measurement = Measurement(
        prompt_tokens=ids.shape[1],
        load_s=load_s,
        warmups=(*first, *more),
        repeats=repeats,
        load_memory=load_memory,
        run_memory=run_memory,
        rss_before_load_bytes=rss_before,
        threads=torch.get_num_threads(),
        precision=precision,
        clock_mismatch=mismatch,
        decode_syncs=syncs,
    )
    if torch.get_num_threads() != cell.threads:
        raise CellFailure("not_engaged", f"torch runs {torch.get_num_threads()} threads, want {cell.threads}")
    return Findings(sources.revision(cell.model, folder), attestation, measurement, samples)
