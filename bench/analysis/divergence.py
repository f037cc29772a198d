"""What a configuration costs in quality, with intervals over the windows of the text.

Every number is a mean over windows of equal length, and each window was read by both models, so
differences are paired. Intervals are Student's at 95 % over the windows: they tell of other texts
of this kind, not of other kinds of text. A divergence is *above the floor* when the interval of its
difference from the floor, window by window, excludes 0.
"""

import functools
import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from bench.analysis.answers import AnswerDifference, compare_answers
from bench.analysis.metric import Metric
from bench.analysis.stats import ALPHA, Estimate, mean_interval
from bench.record.measurement import Divergence, Window
from bench.record.result import Result

_LEVEL = 1 - ALPHA
_LARGEST_LOG = 700.0  # exp of more is no float


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


def _exp(found: Estimate) -> Estimate:
    value, low, high = (
        math.exp(x) if x < _LARGEST_LOG else math.inf for x in (found.value, found.low, found.high)
    )
    return Estimate(value, low, high, found.n)


def is_above_floor(divergence: Divergence) -> bool:
    """Whether it is more than what another batch size and attention do to the reference itself."""
    return mean_interval([w.kl_nats - w.floor_kl_nats for w in divergence.windows], _LEVEL).low > 0


def answer_differences(result: Result) -> list[AnswerDifference]:
    """Of each prompt, in their order; empty without answers or without a reference."""
    theirs = (
        {}
        if result.divergence is None
        else {answer.prompt: answer for answer in result.divergence.answers}
    )
    return [
        compare_answers(ours, theirs[ours.prompt])
        for ours in result.samples
        if ours.prompt in theirs
    ]


def _of(key: str) -> Callable[[Result], float | None]:
    return lambda result: (
        None if result.divergence is None else estimates(result.divergence)[key].value
    )


def _of_answers(
    value: Callable[[Sequence[AnswerDifference]], float],
) -> Callable[[Result], float | None]:
    return lambda result: value(found) if (found := answer_differences(result)) else None


def _row(
    key: str, unit: str, better: str, doc: str, value: Callable[[Result], float | None]
) -> Metric:
    return Metric(key, unit, better, doc, lambda r, m, a: value(r))  # type: ignore[arg-type]


QUALITY_METRICS: tuple[Metric, ...] = (
    _row(
        "kl_nats",
        "nat",
        "lower",
        "KL(reference || cell) of the next token, on the same text",
        _of("kl_nats"),
    ),
    _row(
        "kl_median_nats",
        "nat",
        "lower",
        "its median over positions, mean of windows",
        _of("kl_median_nats"),
    ),
    _row(
        "kl_p99_nats",
        "nat",
        "lower",
        "its 99th percentile over positions, mean of windows",
        _of("kl_p99_nats"),
    ),
    _row(
        "kl_floor_nats",
        "nat",
        "neither",
        "the same of the reference in 16 bits against itself, at another batch size and attention",
        _of("kl_floor_nats"),
    ),
    _row(
        "top1_agreement",
        "1",
        "higher",
        "how often cell and reference expect the same token most",
        _of("top1_agreement"),
    ),
    _row(
        "perplexity", "1", "lower", "of the text; exp of the mean NLL of a token", _of("perplexity")
    ),
    _row(
        "reference_perplexity",
        "1",
        "lower",
        "the reference's, on the same windows",
        _of("reference_perplexity"),
    ),
    _row(
        "perplexity_ratio",
        "1",
        "lower",
        "the cell's / the reference's, paired by window",
        _of("perplexity_ratio"),
    ),
    _row(
        "bits_per_byte",
        "bit",
        "lower",
        "NLL of the text / its bytes: comparable across tokenizers",
        _of("bits_per_byte"),
    ),
    _row(
        "equal_tokens",
        "1",
        "higher",
        "share of the tokens of greedy answers that are the reference's, mean of the prompts",
        _of_answers(lambda all_: sum(each.equal_share for each in all_) / len(all_)),
    ),
    _row(
        "first_difference",
        "token",
        "higher",
        "median position at which an answer leaves the reference's; absent when most are equal",
        _of_answers(
            lambda all_: median(
                math.inf if (at := each.first_difference) is None else at for each in all_
            )
        ),
    ),
    _row(
        "answers_looping",
        "1",
        "lower",
        "answers that end in a repetition",
        _of_answers(lambda all_: sum(each.is_loop for each in all_)),
    ),
    _row(
        "answers_empty",
        "1",
        "lower",
        "answers without a word",
        _of_answers(lambda all_: sum(each.is_empty for each in all_)),
    ),
)
