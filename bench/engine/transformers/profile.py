"""One request under torch's profiler, after everything that is timed: a trace to look at, and its
time by kind.

A few decode steps are enough, since each does the same, and traces of whole answers would be
hundreds of megabytes. The loop is the one that is timed; the marks between its phases are set by
the clock that it is given.
"""

import time
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench.analysis.operators import DECODE_MARK, PREFILL_MARK, Span, by_kind
from bench.config.cell import Cell
from bench.engine.transformers.attention import pinned
from bench.engine.transformers.load import Subject
from bench.engine.transformers.strategies import LOOPS
from bench.record.measurement import Profile

_MOST_STEPS = 4


class _Marks:
    """A clock that reads no time: it marks prefill and decode in the trace."""

    def __init__(self) -> None:
        self._mark = torch.profiler.record_function(PREFILL_MARK)

    def start(self) -> None:
        self._mark.__enter__()

    def first_token(self) -> None:
        self._mark.__exit__(None, None, None)
        self._mark = torch.profiler.record_function(DECODE_MARK)
        self._mark.__enter__()

    def token(self) -> None:
        pass

    def end(self) -> None:
        self._mark.__exit__(None, None, None)


def profile(cell: Cell, subject: Subject, prompt_ids: torch.Tensor, trace: str) -> Profile:
    """The cell's request with its first few decode steps; ``trace`` gets the gzipped trace for
    Perfetto or Chrome.

    Shapes: prompt_ids (batch, prompt_tokens) on the CPU.
    """
    steps = min(cell.workload.new_tokens - 1, _MOST_STEPS)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (cell.device == "cuda")
    with pinned(cell.attn):
        bare_s = _request_s(cell, subject, prompt_ids, steps, _Marks())
        with torch.profiler.profile(activities=activities) as recorded:
            profiled_s = _request_s(cell, subject, prompt_ids, steps, _Marks())
    recorded.export_chrome_trace(trace)
    events = [event for event in recorded.profiler.kineto_results.events() if not _is_shadow(event)]
    origin_ns = min(event.start_ns() for event in events)
    spans = [_span(event, origin_ns) for event in events]
    return Profile(by_kind(spans, steps), profiled_s / bare_s)


def _request_s(
    cell: Cell, subject: Subject, prompt_ids: torch.Tensor, steps: int, marks: _Marks
) -> float:
    started = time.perf_counter()
    LOOPS[cell.decode.loop](subject.model, prompt_ids, steps + 1, marks)
    marks.end()
    if cell.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _span(event: Any, origin_ns: int) -> Span:
    on_device = event.device_type() == DeviceType.CUDA
    start_s = (event.start_ns() - origin_ns) / 1e9
    # To an operator; of the host, only calls of the CUDA runtime have one
    linked = event.linked_correlation_id()
    operator = linked if on_device else 0 if linked else event.correlation_id()
    return Span(
        event.name(),
        start_s,
        start_s + event.duration_ns() / 1e9,
        event.start_thread_id(),
        operator,
        on_device,
    )


def _is_shadow(event: Any) -> bool:
    """The device's copy of a mark of the host: no kernel."""
    return event.device_type() == DeviceType.CUDA and event.name() in (PREFILL_MARK, DECODE_MARK)
