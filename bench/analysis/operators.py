"""Where the time of a profiled request went, by kind of operation: the answer to "why is this one
slower here?".

torch's profiler records operators that call operators. The time of each that its callees do not
account for is its own, and belongs to one kind: the outermost operator that ``RULES`` knows
decides, since what a linear layer or an attention call does inside is part of it. What holds
several kinds (bitsandbytes' int8 layer) is ``open``: operators inside it may say better, and what
none of them claims is its own kind. Time in no operator at all is the interpreter's and the
library's Python. On a GPU a kernel has the kind of the operator that launched it, and what no
kernel fills is idle. A profiler slows the host down, so shares and differences mean more than
totals.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.record.measurement import PhaseProfile, ProfiledPhase

PREFILL_MARK, DECODE_MARK = "bench::prefill", "bench::decode"
_MARKS: dict[str, ProfiledPhase] = {PREFILL_MARK: "prefill", DECODE_MARK: "decode"}

OTHER, INTERPRETER, IDLE = "other operators", "interpreter", "idle"


@dataclass(frozen=True, slots=True)
class Rule:
    """Operators whose name contains ``part`` are of ``kind``; inside an ``open`` one others may say
    better."""

    part: str
    kind: str
    open: bool = False


RULES: tuple[Rule, ...] = (  # the first that matches a name
    Rule("gemv_4bit", "product with packed weights"),
    # On CUDA one operator: it unpacks as it multiplies, or first unpacks and then calls linear
    Rule("gemm_4bit", "product with packed weights", open=True),
    Rule("_weight_int4pack_mm", "product with packed weights"),  # torchao's
    Rule("bench::int8_linear", "product with packed weights"),
    Rule("bench::int4_linear", "product with packed weights"),
    Rule("int8_mm_dequant", "dequantization"),
    Rule("int8_vectorwise_quant", "activations to int8"),
    Rule("int8_double_quant", "activations to int8"),
    Rule("dequant", "dequantization"),
    Rule("int8_linear_matmul", "matrix product"),
    Rule("int8_scaled_mm", "activations to int8", open=True),
    # Splits off the outliers' columns
    Rule("int8_mixed_scaled_mm", "activations to int8", open=True),
    Rule("MatMul8bitLt", "activations to int8", open=True),
    Rule("aten::linear", "matrix product"),
    Rule("aten::addmm", "matrix product"),  # GPT-2's Conv1D, and int8's product of outliers
    Rule("aten::mm", "matrix product"),
    Rule("scaled_dot_product", "attention"),
    Rule("flash_attn", "attention"),
    Rule("flex_attention", "attention"),
    # Outside linear layers only eager attention multiplies matrices, and always batches of them: a
    # single product inside is torchao's with a dequantized weight
    Rule("aten::matmul", "attention", open=True),
    Rule("aten::bmm", "attention"),
    Rule("aten::softmax", "attention"),
    # Of the keys and values so far with the new ones, each step
    Rule("aten::cat", "cache copies"),
    Rule("aten::argmax", "sampling"),
)


# Kernels that say better than the operator which launches them; bitsandbytes 0.50.2
_KERNELS = {"kDequantizeBlockwise": "dequantization"}


@dataclass(frozen=True, slots=True)
class Span:
    """One operator or kernel of a trace. Units: seconds on the trace's clock."""

    name: str
    start_s: float
    end_s: float
    thread: int  # of the host; of no meaning for a kernel
    # Its own number; of a kernel, that of the operator which launched it; 0: no operator
    operator: int
    on_device: bool


@dataclass(slots=True)
class _Open:
    """A span that has not ended yet."""

    end_s: float
    phase: ProfiledPhase | None
    kind: str | None  # None: in no operator
    decided: bool


@dataclass(slots=True)
class _Phase:
    start_s: float
    end_s: float
    host_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    device_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def by_kind(spans: Iterable[Span], decode_steps: int) -> tuple[PhaseProfile, ...]:
    """Prefill and decode, with the time of each kind, largest first; phases are the spans named by
    the two marks."""
    host = sorted((s for s in spans if not s.on_device), key=lambda s: (s.start_s, -s.end_s))
    threads = {s.thread for s in host if s.name in _MARKS}
    phases: dict[ProfiledPhase, _Phase] = {
        _MARKS[s.name]: _Phase(s.start_s, s.end_s) for s in host if s.name in _MARKS
    }
    launched_by: dict[int, tuple[ProfiledPhase | None, str]] = {}
    stack: list[_Open] = []
    for span in (s for s in host if s.thread in threads):
        while stack and stack[-1].end_s <= span.start_s:
            stack.pop()
        opened = _opened(span, stack[-1] if stack else None)
        if opened.phase is not None:
            took = phases[opened.phase].host_s
            took[opened.kind or INTERPRETER] += span.end_s - span.start_s
            if span.name not in _MARKS:
                took[stack[-1].kind or INTERPRETER] -= span.end_s - span.start_s
        if span.operator:
            launched_by[span.operator] = (opened.phase, opened.kind or OTHER)
        stack.append(opened)
    for kernel in (s for s in spans if s.on_device):
        of, kind = launched_by.get(kernel.operator, (None, OTHER))
        kind = next((k for part, k in _KERNELS.items() if part in kernel.name), kind)
        if of is not None:
            phases[of].device_s[kind] += kernel.end_s - kernel.start_s
            phases[of].end_s = max(phases[of].end_s, kernel.end_s)
    return tuple(
        _profile(name, phases[name], decode_steps) for name in _MARKS.values() if name in phases
    )


def _opened(span: Span, parent: _Open | None) -> _Open:
    if span.name in _MARKS:
        return _Open(span.end_s, _MARKS[span.name], None, False)
    phase = None if parent is None else parent.phase
    if parent is not None and parent.decided:
        return _Open(span.end_s, phase, parent.kind, True)
    rule = next((rule for rule in RULES if rule.part in span.name), None)
    if rule is not None:
        return _Open(span.end_s, phase, rule.kind, not rule.open)
    return _Open(span.end_s, phase, (parent and parent.kind) or OTHER, False)


def _profile(name: ProfiledPhase, phase: _Phase, decode_steps: int) -> PhaseProfile:
    wall_s = phase.end_s - phase.start_s
    seconds = dict(phase.host_s)
    if phase.device_s:
        seconds = {**phase.device_s, IDLE: wall_s - sum(phase.device_s.values())}
    largest_first = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return PhaseProfile(name, wall_s, decode_steps if name == "decode" else 1, largest_first)


def per_step_s(profile: PhaseProfile) -> dict[str, float]:
    """Seconds of each kind in one prefill, or in one decode step."""
    return {kind: seconds / profile.steps for kind, seconds in profile.seconds.items()}
