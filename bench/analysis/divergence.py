"""What a configuration costs in quality: divergence with intervals, and answers token by token.

Every number of a divergence is a mean over windows of equal length, and each window was read by
both models, so differences are paired. Intervals are Student's at 95 % over the windows: they tell
of other texts of this kind, not of other kinds of text. A divergence is *above the floor* when the
interval of its difference from the floor, window by window, excludes 0.

Greedy answers of two models are equal until the first position at which their most likely tokens
differ; from there on they follow different texts, so what comes after says less than where it
began.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from bench.analysis.stats import ALPHA, Estimate, mean_interval
from bench.record.measurement import Divergence, Sample, Window
from bench.record.result import Result

_LEVEL = 1 - ALPHA
_LARGEST_LOG = 700.0  # exp of more is no float
_LEAST_LOOP = 8  # tokens: shorter repetitions are style
_TIMES = 3


@functools.lru_cache(maxsize=4096)
def estimates(divergence: Divergence) -> dict[str, Estimate]:
    """By the key of the metric, over all windows."""
    return _estimates(divergence.windows)


def by_text(divergence: Divergence) -> dict[str, dict[str, Estimate]]:
    """The same for each text, where there are several."""
    names = list(dict.fromkeys(window.text for window in divergence.windows))
    if len(names) < 2:
        return {}
    return {name: _estimates([w for w in divergence.windows if w.text == name]) for name in names}


def _estimates(windows: Sequence[Window]) -> dict[str, Estimate]:
    def over(value: Callable[[Window], float]) -> Estimate:
        return mean_interval([value(window) for window in windows], _LEVEL)

    bytes_a_window = fmean(window.bytes for window in windows)
    return {
        "kl_nats": over(lambda w: w.kl_nats),
        "kl_median_nats": over(lambda w: w.kl_median_nats),
        "kl_p99_nats": over(lambda w: w.kl_p99_nats),
        "kl_floor_nats": over(lambda w: w.floor_kl_nats),
        "top1_agreement": over(lambda w: w.top1_agreement),
        "perplexity": _exp(over(lambda w: w.nll_nats)),
        "reference_perplexity": _exp(over(lambda w: w.reference_nll_nats)),
        "perplexity_ratio": _exp(over(lambda w: w.nll_nats - w.reference_nll_nats)),
        "bits_per_byte": over(lambda w: w.nll_nats * w.tokens / math.log(2) / bytes_a_window),
    }


def _exp(log: Estimate) -> Estimate:
    value, low, high = (
        math.exp(x) if x < _LARGEST_LOG else math.inf for x in (log.value, log.low, log.high)
    )
    return Estimate(value, low, high, log.n)


def is_above_floor(divergence: Divergence) -> bool:
    """Whether it is more than what another batch size and attention do to the reference itself."""
    return mean_interval([w.kl_nats - w.floor_kl_nats for w in divergence.windows], _LEVEL).low > 0


def is_at_floor(divergence: Divergence) -> bool:
    """Whether it cannot be told from that; how small such a divergence is means nothing. One window
    cannot tell."""
    return len(divergence.windows) > 1 and not is_above_floor(divergence)


def ranked_kl_nats(divergence: Divergence | None) -> float:
    """Mean KL for comparing cells by it: 0 at the noise floor, where an order would be chance; nan
    without a divergence."""
    if divergence is None:
        return math.nan
    return 0.0 if is_at_floor(divergence) else estimates(divergence)["kl_nats"].value


def strided_perplexity(result: Result) -> float | None:
    """Over all texts that were read in overlapping windows; None without any."""
    tokens = sum(text.tokens for text in result.strided)
    if not tokens:
        return None
    mean = sum(text.nll_nats * text.tokens for text in result.strided) / tokens
    return math.exp(mean) if mean < _LARGEST_LOG else math.inf


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """One answer beside the reference's."""

    # Position of the first token that differs, from 0; None: the answers are equal
    first_difference: int | None
    equal_share: float  # of the positions of the longer one, those with the same token
    is_loop: bool
    is_empty: bool


def compare_answers(ours: Sample, theirs: Sample) -> AnswerDifference:
    """Two answers to one prompt."""
    longest = max(len(ours.tokens), len(theirs.tokens))
    equal = [a == b for a, b in zip(ours.tokens, theirs.tokens, strict=False)]
    shorter = len(equal)
    first = next(
        (i for i, same in enumerate(equal) if not same), None if shorter == longest else shorter
    )
    return AnswerDifference(
        first,
        sum(equal) / longest if longest else 1.0,
        is_loop(ours.tokens),
        not ours.answer.strip(),
    )


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the end says the same thing three times over, in at least 8 tokens."""
    for period in range(1, len(tokens) // _TIMES + 1):
        length = max(_TIMES * period, _LEAST_LOOP)
        tail = tokens[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False


def answer_differences(result: Result) -> list[AnswerDifference]:
    """Of each prompt, in their order; empty without answers or without a reference."""
    answers = () if result.divergence is None else result.divergence.answers
    theirs = {answer.prompt: answer for answer in answers}
    return [
        compare_answers(ours, theirs[ours.prompt])
        for ours in result.samples
        if ours.prompt in theirs
    ]


def equal_tokens(result: Result) -> float | None:
    """Share of the tokens of the answers that are the reference's, mean of the prompts."""
    shares = [answer.equal_share for answer in answer_differences(result)]
    return sum(shares) / len(shares) if shares else None


def first_difference(result: Result) -> float | None:
    """Median position at which an answer leaves the reference's; infinite when most are equal."""
    positions = [answer.first_difference for answer in answer_differences(result)]
    return median(math.inf if at is None else at for at in positions) if positions else None
