"""torch's profiler on a running model, and which of its operations wait for the device."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity
from transformers import PreTrainedModel

from bench.analysis.operators import DECODE_MARK, PREFILL_MARK, Span, by_kind
from bench.engine.clock import Clock, Untimed
from bench.engine.prompts import Ids
from bench.engine.transformers.strategies import new_cache
from bench.paths import PACKAGE
from bench.record.measurement import PhaseProfile, Profile

_PROFILED_STEPS = 4  # each does the same, and traces of whole answers are hundreds of megabytes
_HOST, _BOTH = [ProfilerActivity.CPU], [ProfilerActivity.CPU, ProfilerActivity.CUDA]
_STEPS, _STEPS_S = 16, 0.5  # of a single step: as many tries as fit, at least one

Request = Callable[[Ids, int, Clock], Ids]


class _SyncWatch(Untimed):
    """Has torch warn of whatever waits for the device, and sorts the warnings by phase."""

    def __init__(self, caught: list[warnings.WarningMessage], new_tokens: int) -> None:
        self.caught = caught
        self.new_tokens = self.left = new_tokens
        self.before_decode = 0

    def start(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")

    def token(self, count: int = 1) -> None:
        if self.left == self.new_tokens:
            self.before_decode = len(self.caught)
        self.left -= count
        if not self.left:
            torch.cuda.set_sync_debug_mode("default")


def syncs(
    request: Request, ids: Ids, new_tokens: int
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Which operations of one request on CUDA wait for the device, in prefill and after the first
    token: how often, by the line of Python that calls them.

    By design the ids of the prompt and of the first token cross over, and each step waits in int8
    with a threshold (is any activation above it?) and in transformers' eager attention (its mask
    takes a scalar from the host). flash_attention_2 waits in each layer's prefill of a batch of 1
    (is the sequence packed? transformers 5.23.0, modeling_flash_attention_utils.py). torch sees its
    own operations only, not those of other libraries' kernels. Its warnings carry the frame of
    Python that was running.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = _SyncWatch(caught, new_tokens)
        request(ids, new_tokens, watch)
    prefill, decode = caught[: watch.before_decode], caught[watch.before_decode :]
    ours = str(PACKAGE)
    return (
        _by_place(warning for warning in prefill if not warning.filename.startswith(ours)),
        _by_place(decode),
    )


def _by_place(caught: Iterable[warnings.WarningMessage]) -> Mapping[str, int]:
    sync = "called a synchronizing CUDA operation"
    places = Counter(
        f"{warning.filename.rpartition('site-packages/')[2]}:{warning.lineno}"
        for warning in caught
        if sync in str(warning.message)
    )
    return dict(places.most_common())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class _Marks(Untimed):
    """Marks prefill and decode in a trace."""

    def __init__(self) -> None:
        self._mark = torch.profiler.record_function(PREFILL_MARK)
        self._is_decoding = False

    def start(self) -> None:
        self._mark.__enter__()

    def token(self, count: int = 1) -> None:
        if not self._is_decoding:
            self._mark.__exit__(None, None, None)
            self._mark = torch.profiler.record_function(DECODE_MARK)
            self._mark.__enter__()
        self._is_decoding = True

    def end(self) -> None:
        self._mark.__exit__(None, None, None)


def profile_request(
    request: Request, ids: Ids, new_tokens: int, device: str, trace: Path
) -> Profile:
    """One request with its first few decode steps under torch's profiler.

    ``trace`` gets the gzipped trace for Perfetto or Chrome.
    """
    steps = min(new_tokens - 1, _PROFILED_STEPS)
    activities = _BOTH if device == "cuda" else _HOST
    bare_s = _request_s(request, ids, steps, device)
    with torch.profiler.profile(activities=activities) as recorded:
        profiled_s = _request_s(request, ids, steps, device)
    recorded.export_chrome_trace(str(trace))
    return Profile(by_kind(_spans(_events(recorded)), steps), profiled_s / bare_s)


def profile_step(model: PreTrainedModel, ids: Ids, device: str) -> PhaseProfile:
    """A decode step of the whole batch under torch's profiler.

    On a CPU the quickest of a few: others on the same hardware only ever add time. On CUDA, where
    the device works by itself, the mean of a few.

    The prompt is read by one row, whose cache all others get, since only the steps count; each row
    goes on with a token of its own, so that experts are chosen as in a real batch.
    """
    cache = new_cache(model)
    on_device = torch.from_numpy(ids).to(model.device)
    model(on_device[:1], **cache, use_cache=True, logits_to_keep=1)
    for kept in cache.values():
        kept.batch_repeat_interleave(len(ids))
    token = on_device[:, -1:]

    def step() -> torch.Tensor:
        logits = model(token, **cache, use_cache=True, logits_to_keep=1).logits
        following: torch.Tensor = logits[:, -1].argmax(-1, keepdim=True)
        return following

    started = time.perf_counter()
    step()
    _wait(device)
    step_s = time.perf_counter() - started
    tries = max(1, min(_STEPS, int(_STEPS_S / step_s)))
    if device == "cuda":
        rounds, steps, activities = 1, min(tries, _PROFILED_STEPS), _BOTH
    else:
        rounds, steps, activities = tries, 1, _HOST
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(rounds):
            with torch.profiler.record_function(DECODE_MARK):
                for _ in range(steps):
                    token = step()
                token.tolist()
    events = _events(recorded)
    (found,) = by_kind(_spans(events if rounds == 1 else _quickest(events)), steps)
    return found


def _quickest(events: list[Any]) -> list[Any]:
    """What began within the shortest mark: of 326,000 events of 12 steps in int8, 27,000."""
    marks = [event for event in events if event.name() == DECODE_MARK]
    shortest = min(marks, key=lambda mark: mark.duration_ns())
    began_ns = shortest.start_ns()
    ended_ns = began_ns + shortest.duration_ns()
    return [event for event in events if began_ns <= event.start_ns() < ended_ns]


def _events(recorded: Any) -> list[Any]:
    # profile.events() would build a tree of them, for seconds
    return [event for event in recorded.profiler.kineto_results.events() if not _is_shadow(event)]


def _spans(events: list[Any]) -> list[Span]:
    origin_ns = min(event.start_ns() for event in events)
    return [_span(event, origin_ns) for event in events]


def _request_s(request: Request, ids: Ids, steps: int, device: str) -> float:
    marks = _Marks()
    started = time.perf_counter()
    request(ids, steps + 1, marks)
    marks.end()
    _wait(device)
    return time.perf_counter() - started


def _span(event: Any, origin_ns: int) -> Span:
    on_device = event.device_type() == DeviceType.CUDA
    start_s = (event.start_ns() - origin_ns) / 1e9
    # To an operator; of the host, only calls of the CUDA runtime have one.
    linked = event.linked_correlation_id()
    operator = linked if on_device else 0 if linked else event.correlation_id()
    end_s = start_s + event.duration_ns() / 1e9
    return Span(event.name(), start_s, end_s, event.start_thread_id(), operator, on_device)


def _is_shadow(event: Any) -> bool:
    """The device's copy of a mark of the host: no kernel."""
    on_device = event.device_type() == DeviceType.CUDA
    return on_device and event.name() in (PREFILL_MARK, DECODE_MARK)
