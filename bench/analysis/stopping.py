"""When a process has run enough requests: first to be warm, then to know its times well enough.

Warm: the medians of the last two windows of requests agree, in TTFT and TPOT, to within 5 %.
Compilation, lazy loading and a growing allocator change times by more than that; slower drifts are
what the reference kernels are for.

Enough: at one of a few looks (``stats.looks``) both geometric means are known to within the
profile's target, or the time that the process may take is over. That interval speaks about this
process only: whether two cells differ is never decided by it, because processes differ from each
other as well.
"""

from collections.abc import Sequence
from statistics import median

import scipy.special  # noqa: F401  # now, and not when stats needs it between two timed requests

from bench.analysis.readings import tpot_s
from bench.analysis.stats import is_narrow, look_level, looks
from bench.config.cell import Measure
from bench.record.measurement import Repeat, Stopped

_AGREE = 0.05


def is_warm(requests: Sequence[Repeat], measure: Measure) -> bool:
    """Whether the last two windows of requests took the same time."""
    if len(requests) < 2 * measure.window:
        return False
    earlier, later = requests[-2 * measure.window : -measure.window], requests[-measure.window :]
    ratios = [median(times(later)) / median(times(earlier)) for times in (_ttft_s, _tpot_s)]
    return all(abs(ratio - 1) <= _AGREE for ratio in ratios)


def why_stop(requests: Sequence[Repeat], measure: Measure, elapsed_s: float) -> Stopped | None:
    """Why no further request is timed; None: go on. ``elapsed_s``: since the first of them
    began."""
    n = len(requests)
    at = looks(measure.repeats)
    if measure.target is not None and n in at:
        level = look_level(measure.repeats)
        if all(is_narrow(times(requests), measure.target, level) for times in (_ttft_s, _tpot_s)):
            return "target"
    if n >= measure.repeats:
        return "repeats"
    if measure.budget_s is not None and n >= at[0] and elapsed_s > measure.budget_s:
        return "budget"
    return None


def _ttft_s(requests: Sequence[Repeat]) -> list[float]:
    return [request.ttft_s for request in requests]


def _tpot_s(requests: Sequence[Repeat]) -> list[float]:
    return [tpot_s(request) for request in requests]
