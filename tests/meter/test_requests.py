"""Requests of one process: which readings are refused, and when a series ends."""

from typing import Any

import numpy as np
import pytest

from bench.config.cell import Measure
from bench.engine.clock import Clock
from bench.engine.prompts import Ids
from bench.engine.scripted import ScriptedSession
from bench.errors import CellFailure
from bench.meter.requests import one_request, time_requests, until_known, until_warm
from bench.record.measurement import Repeat, Stopped
from tests import fakes
from tests.scripted import scripted

IDS = np.zeros((2, 8), dtype=np.int64)


class Odd(ScriptedSession):
    """A session that answers one token too many or too few, or with a clock that is wrong."""

    def __init__(self, readings: list[tuple[Repeat, float | None]], more: int = 0) -> None:
        super().__init__(scripted())
        self.readings, self.more = readings, more

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        return np.zeros((len(ids), new_tokens + self.more), dtype=np.int64)

    def clock(self, new_tokens: int) -> Clock:
        session = self

        class Reading:
            def start(self) -> None: ...
            def token(self, count: int = 1) -> None: ...
            def read(self) -> tuple[Repeat, float | None]:
                return session.readings.pop(0)

        return Reading()


def timed(*readings: tuple[Repeat, float | None], more: int = 0) -> tuple[Any, float | None]:
    session = Odd(list(readings), more)
    return time_requests(session, IDS, 4, lambda done: len(done) < len(readings))


def test_readings_are_kept_in_their_order_with_the_largest_disagreement_of_two_clocks() -> None:
    first, second = Repeat(1.0, (0.5,) * 3, 2.5), Repeat(2.0, (0.5,) * 3, 3.5)
    assert timed((first, 0.001), (second, 0.004)) == ((first, second), 0.004)
    assert timed((first, None)) == ((first,), None)


def test_a_strategy_that_brings_several_tokens_at_once_counts_each() -> None:
    speculative = Repeat(1.0, (0.5, 0.5), 2.0, step_tokens=(2, 1))
    assert timed((speculative, None))[0] == (speculative,)


@pytest.mark.parametrize(
    ("repeat", "more", "said"),
    [
        (Repeat(1.0, (0.5,) * 3, 2.5), 1, r"\(2, 5\) tokens came out, want \(2, 4\)"),
        (Repeat(1.0, (0.5,) * 2, 2.0), 0, "2 tokens after the first were timed, want 3"),
        (Repeat(1.0, (0.5,) * 3, 2.5, step_tokens=(1, 1, 2)), 0, "4 tokens after the first"),
        (Repeat(0.0, (0.5,) * 3, 1.5), 0, "a time that is not positive"),
        (Repeat(1.0, (0.5, 0.0, 0.5), 2.0), 0, "a time that is not positive"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(repeat: Repeat, more: int, said: str) -> None:
    with pytest.raises(CellFailure, match=said) as caught:
        timed((repeat, None), more=more)
    assert caught.value.status == "failed"


class Announced(list[tuple[str, str]]):
    """What was announced."""

    def __call__(self, phase: str, detail: str = "") -> None:
        self.append((phase, detail))


def care(**changes: Any) -> Measure:
    return fakes.cell(measure=fakes.group("measure", "quick", **changes)).measure


def count(measure: Measure, script: str, warm: bool) -> tuple[int, list[Stopped], Announced]:
    """How many requests of a script are made, why no more, and what was announced."""
    announced, reasons = Announced(), list[Stopped]()
    session = ScriptedSession(scripted(script))
    ending = until_warm(announced, measure) if warm else until_known(announced, measure, reasons)
    repeats, _ = time_requests(session, IDS, 4, ending)
    return len(repeats), reasons, announced


def test_equal_requests_are_warm_after_two_windows() -> None:
    made, _, announced = count(care(warmups=50, window=3), "ttft 1 steps 0.5", warm=True)
    assert made == 6
    assert announced == [("warm-up", "1/50")]  # and then only every few seconds


def test_no_more_warm_ups_are_made_than_are_allowed() -> None:
    assert count(care(warmups=4, window=3), "ttft 1 steps 0.5", warm=True)[0] == 4


def test_equal_requests_are_known_long_before_as_many_as_allowed() -> None:
    made, reasons, announced = count(care(repeats=100, target=0.02), "ttft 1 steps 0.5", warm=False)
    assert made < 100
    assert reasons == ["target"]
    assert announced == [("measure", "1/100")]


def test_without_a_target_as_many_are_made_as_are_allowed() -> None:
    made, reasons, _ = count(care(repeats=7, target=None), "ttft 1 steps 0.5", warm=False)
    assert (made, reasons) == (7, ["repeats"])


def test_time_that_is_over_ends_the_series() -> None:
    measure = care(repeats=100, target=None, budget_s=0)
    made, reasons, _ = count(measure, "ttft 1 steps 0.5", warm=False)
    assert made < 100
    assert reasons == ["budget"]


def test_one_request_that_fits_says_nothing_and_one_that_does_not_says_why() -> None:
    cell = scripted()
    one_request(cell, ScriptedSession(cell), IDS)
    with pytest.raises(CellFailure, match="says the script"):
        one_request(cell, ScriptedSession(scripted("then oom")), IDS)
