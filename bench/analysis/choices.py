"""Multiple choice: which answers change, whether a difference in accuracy can be shown, and how
large a one these items could show.

Accuracy hides changes: about as many answers become right as become wrong (Dutta et al., Accuracy
is Not All You Need, arXiv 2407.09141). So the cell and the reference are compared item by item. An
answer *changes* where they choose differently: it becomes worse, better, or another wrong one.

* The difference in accuracy is (better - worse) / items. If nothing but chance decides which way an
  answer changes, the worse ones are heads of a fair coin among the worse and better ones:
  McNemar's test, exact and two-sided (McNemar 1947; Fagerland et al. 2013,
  doi:10.1186/1471-2288-13-91).
* The *smallest difference* is the one that this test finds in 80 % of such sets. The number of
  worse and better answers is binomial with the share d of them that was seen, and each of these is
  worse with probability (1 + difference / d) / 2; the exact test's rejections are summed up over
  both. A difference larger than d means more changes than were seen: then d is the difference.

Each cell is tested by itself, at 5 %: of twenty that change nothing, one is called different.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.divergence import is_above_floor, is_at_floor
from bench.analysis.stats import ALPHA, Estimate, share_interval
from bench.record.measurement import Choice
from bench.record.result import Result

POWER = 0.8
_STEPS = 30  # halvings: to 1e-9


@dataclass(frozen=True, slots=True)
class Flips:
    """How a cell's choices differ from the reference's. Counts of items."""

    items: int
    worse: int  # the reference is right, the cell is not
    better: int
    between_wrong: int  # both are wrong, and choose differently

    @property
    def changed(self) -> int:
        return self.worse + self.better + self.between_wrong

    @property
    def p(self) -> float:
        """How often chance alone makes worse and better differ so much."""
        return mcnemar_p(self.worse, self.better)

    @property
    def smallest_difference(self) -> float:
        """Of accuracy, that so many items would mostly show."""
        return smallest_difference(self.items, self.worse + self.better)

    @property
    def is_different(self) -> bool:
        return self.p < ALPHA


def is_right(choice: Choice) -> bool:
    """Whether the text's own continuation is the likeliest."""
    return _chosen(choice) == choice.right


def _chosen(choice: Choice) -> int:
    likelihoods = choice.log_likelihood_nats
    return max(range(len(likelihoods)), key=lambda index: likelihoods[index])


def accuracy(choices: Sequence[Choice]) -> Estimate:
    """The share of right choices with its interval at 95 %."""
    return share_interval(sum(map(is_right, choices)), len(choices), 1 - ALPHA)


def flips_of(result: Result) -> Flips | None:
    """A cell's choices beside its reference's; None where one side has none."""
    theirs = () if result.divergence is None else result.divergence.choices
    return flips(result.choices, theirs) if result.choices and theirs else None


@functools.lru_cache(maxsize=256)
def flips(ours: tuple[Choice, ...], theirs: tuple[Choice, ...]) -> Flips:
    """Ours beside the reference's, of the same items."""
    pairs = list(zip(ours, theirs, strict=True))
    right = [(is_right(our), is_right(their)) for our, their in pairs]
    return Flips(
        items=len(pairs),
        worse=right.count((False, True)),
        better=right.count((True, False)),
        between_wrong=sum(
            _chosen(our) != _chosen(their) and pair == (False, False)
            for (our, their), pair in zip(pairs, right, strict=True)
        ),
    )


def mcnemar_p(worse: int, better: int) -> float:
    """Two-sided, exact."""
    from scipy.special import bdtr  # scipy.stats takes a second more to import

    fewer, both = min(worse, better), worse + better
    return min(1.0, 2 * float(bdtr(fewer, both, 0.5)))


def power(items: int, discordant: float, difference: float) -> float:
    """How often the test finds a difference in accuracy.

    Args:
        discordant: share of items on which one side is right and the other is not; at least the
            difference.
    """
    from scipy.special import bdtr

    worse = (1 + difference / discordant) / 2
    counts = np.arange(items + 1)  # of discordant items
    cumulated = bdtr(counts, items, discordant)
    weights = np.diff(cumulated, prepend=0.0)
    most = np.array([_largest_rejected(int(count)) for count in counts])
    rejects = most >= 0
    n, k = counts[rejects], most[rejects]
    found = bdtr(k, n, worse) + bdtr(k, n, 1 - worse)
    return float((weights[rejects] * found).sum())


@functools.cache
def _largest_rejected(discordant: int) -> int:
    """The most answers that go the rarer way where the test still finds a difference; -1: none."""
    from scipy.special import bdtr

    minorities = np.arange(discordant // 2 + 1)
    return int((2 * bdtr(minorities, discordant, 0.5) < ALPHA).sum()) - 1


@functools.lru_cache(maxsize=256)
def smallest_difference(items: int, discordant: int) -> float:
    """The least difference in accuracy that is found with ``POWER``; 1 where not even the largest
    is.

    Args:
        discordant: worse and better answers that were seen.
    """
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if power(items, max(discordant / items, middle), middle) < POWER:
            low = middle
        else:
            high = middle
    return high


def sentence(flips: Flips) -> str:
    """The verdict in words."""
    ways = f"{flips.worse} worse, {flips.better} better"
    if flips.between_wrong:
        ways += f", {flips.between_wrong} from wrong to wrong"
    changes = f"{flips.changed} of {flips.items} answers change"
    changes += f": {ways}" if flips.changed else ""
    points = abs(flips.better - flips.worse) / flips.items * 100
    if flips.is_different:
        word = "better" if flips.better > flips.worse else "worse"
        return f"{changes}; {points:.1f} points {word} (p = {flips.p:.2g})"
    return (
        f"{changes}; no difference can be shown (p = {flips.p:.2g}; {flips.items} items would show"
        f" {flips.smallest_difference * 100:.1f} points)"
    )


def is_distinguishable(result: Result) -> bool | None:
    """Whether a cell's predictions can be told from the unquantized model's: by a divergence above
    its noise floor, or by multiple choice. None where there is too little to say."""
    divergence, of_choices = result.divergence, flips_of(result)
    if divergence is None:
        return None
    if is_above_floor(divergence) or (of_choices is not None and of_choices.is_different):
        return True
    return False if is_at_floor(divergence) else None
