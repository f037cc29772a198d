"""Verdicts on planted processes: what is the same, what is not, and what cannot be known."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from bench.analysis.differences import differences, in_memory
from bench.analysis.reproduction import (
    Reproduction,
    kernel_change,
    likeliest_reason,
    overall,
    reproductions,
)
from bench.record.measurement import Canary, Choice, Interference, Repeat
from bench.record.result import Outcome, Result
from bench.report.reproduced import findings, numbers
from tests import fakes

CELL = fakes.cell(quality="samples")
HOST, CODE = fakes.host(), fakes.provenance()


def once_more(then: Result, now: Result, margin: float = 0.05) -> Reproduction:
    (found,) = reproductions([(then, now)], margin)
    return found


def paced(*steps_s: float, **changes: object) -> Result:
    return fakes.paced(CELL, *steps_s, **changes)


def test_processes_that_lie_close_on_both_sides_are_reproduced() -> None:
    found = once_more(paced(0.100, 0.101, 0.099), paced(0.100, 0.099, 0.101))
    assert found.word == "reproduced"
    tpot, ttft = found.changes
    assert (tpot.metric, ttft.metric) == ("tpot_s", "ttft_s")
    ratio, low, _ = tpot.change.slowdown
    assert ratio == pytest.approx(1.0)
    assert low is not None
    assert 1 / 1.05 < low < 1


def test_a_change_that_lies_beyond_the_margin_differs_either_way() -> None:
    slow = once_more(paced(0.100, 0.101, 0.099), paced(0.115, 0.116, 0.114))
    assert slow.word == "differs"
    assert slow.changes[0].change.slowdown[0] == pytest.approx(1.15, rel=0.01)
    assert once_more(paced(0.115, 0.116, 0.114), paced(0.100, 0.101, 0.099)).word == "differs"


def test_a_change_at_the_margin_cannot_be_told_and_no_number_of_processes_helps() -> None:
    found = once_more(paced(0.100, 0.101, 0.099), paced(0.105, 0.106, 0.104))
    assert found.word == "cannot tell"
    assert found.changes[0].processes_needed is None


def test_noise_wants_more_processes_and_says_how_many() -> None:
    then = paced(0.100, 0.107, 0.094, 0.103, 0.097, 0.100)
    noisy = once_more(then, paced(0.100, 0.106, 0.094))
    assert noisy.word == "cannot tell"
    needed = noisy.changes[0].processes_needed
    assert needed is not None
    # With so many, spread alike, it would have been told.
    draws = [0.1 * math.exp(0.16 * (i / (needed - 1) - 0.5)) for i in range(needed)]
    assert once_more(then, paced(*draws)).word == "reproduced"
    assert f"about {needed} processes here would tell" in "\n".join(findings([noisy], [], 0.05))


def test_one_process_a_side_says_nothing_of_the_noise() -> None:
    found = once_more(paced(0.1), paced(0.1))
    assert found.word == "cannot tell"
    assert "want --processes 5" in "\n".join(findings([found], [], 0.05))
    assert once_more(paced(0.1), paced(0.100, 0.101, 0.099, 0.100, 0.100)).word == "reproduced"


def test_another_machine_s_processes_say_nothing_of_the_original_s_noise() -> None:
    now = paced(0.100, 0.101, 0.099, 0.100, 0.100, host=fakes.host(cpu_name="Another CPU"))
    alone = once_more(paced(0.1), now)
    assert alone.word == "cannot tell"
    assert "the original has one process" in "\n".join(findings([alone], [], 0.05))
    calm, noisy = paced(0.100, 0.100, 0.100), paced(0.100, 0.104, 0.096)
    here, there = once_more(noisy, calm), once_more(noisy, replace(calm, host=now.host))
    pooled, apart = (found.changes[0].change.slowdown for found in (here, there))
    assert pooled[0] == pytest.approx(apart[0])
    assert pooled[1] is not None
    assert apart[1] is not None
    assert apart[1] < pooled[1]  # two degrees of freedom where both together have four


def test_the_margin_is_what_was_asked_for() -> None:
    then, now = paced(0.100, 0.101, 0.099), paced(0.105, 0.106, 0.104)
    assert once_more(then, now, margin=0.10).word == "reproduced"
    assert once_more(then, now, margin=0.01).word == "differs"


def test_how_often_it_errs() -> None:
    """Simulated: 1 % between processes, two cells. Equal ones are never said to differ, a change of
    15 % always is found."""
    draw = random.Random(1)

    def side(mean_s: float) -> list[Result]:
        return [noisy(name, mean_s) for name in ("a", "b")]

    def noisy(name: str, mean_s: float) -> Result:
        times = [
            (math.exp(draw.gauss(0, 0.01)), mean_s * math.exp(draw.gauss(0, 0.01)))
            for _ in range(3)
        ]
        requests = [Repeat(ttft_s, (step_s,) * 3, ttft_s + 3 * step_s) for ttft_s, step_s in times]
        return fakes.result(
            cell=CELL,
            cell_id=name,
            replicates=tuple(fakes.process(repeats=(each,)) for each in requests),
        )

    def words(then_s: float, now_s: float) -> list[str]:
        tries = [
            reproductions(list(zip(side(then_s), side(now_s), strict=True)), 0.05)
            for _ in range(200)
        ]
        return [overall(found) for found in tries]

    same, slower, at_the_margin = words(0.1, 0.1), words(0.1, 0.115), words(0.1, 0.105)
    assert same.count("differs") == 0
    assert same.count("reproduced") >= 180
    assert slower.count("differs") >= 180
    assert slower.count("reproduced") == 0
    assert at_the_margin.count("reproduced") <= 20  # 5 % of each of them may be


def test_a_sweep_is_reproduced_when_every_cell_is() -> None:
    steady, slow = paced(0.100, 0.101, 0.099), paced(0.130, 0.131, 0.129)
    pairs = [
        (replace(steady, cell_id=name), replace(now, cell_id=name))
        for name, now in (("a", steady), ("b", slow))
    ]
    found = reproductions(pairs, 0.05)
    assert [each.word for each in found] == ["reproduced", "differs"]
    assert overall(found) == "differs"
    assert overall(found[:1]) == "reproduced"


def ended(status: Any, reason: str | None = None) -> Result:
    return fakes.result(cell=CELL, outcome=Outcome(status, reason))


@pytest.mark.parametrize(
    ("then", "now", "word"),
    [
        (paced(0.1, 0.1), ended("oom", "no memory left"), "differs"),
        (ended("oom", "no memory left"), paced(0.1, 0.1), "differs"),
        (paced(0.1, 0.1), ended("not_engaged", "no int8"), "differs"),
        (ended("oom"), ended("oom"), "reproduced"),
        (ended("killed", "ended by the user"), paced(0.1, 0.1), "cannot tell"),
        (paced(0.1, 0.1), ended("skipped", "threads=8: only 2 CPUs can be used"), "cannot tell"),
        (paced(0.1, 0.1), ended("failed", "a server went away"), "cannot tell"),
    ],
)
def test_how_it_ended_is_compared_where_that_says_something(
    then: Result, now: Result, word: str
) -> None:
    found = once_more(then, now)
    assert found.word == word
    said = "\n".join(findings([found], [], 0.05))
    assert said.startswith(f"{word}: no number on both sides")
    if then.outcome.status != now.outcome.status:
        assert f"it was {then.outcome.status}" in said
        assert f"and is {now.outcome.status}" in said
        assert "None" not in said


def test_what_only_one_side_has_cannot_be_told() -> None:
    steady = paced(0.100, 0.101, 0.099)
    answered = replace(steady, answers=fakes.answers(samples=(fakes.sample(1, 2),)))
    assert once_more(answered, steady).word == "cannot tell"
    assert "on one side only" in "\n".join(findings([once_more(answered, steady)], [], 0.05))
    against_fp32 = replace(steady, answers=fakes.answers(divergence=fakes.divergence()))
    assert once_more(against_fp32, steady).word == "cannot tell"
    against_bf16 = replace(
        steady,
        answers=fakes.answers(divergence=replace(fakes.divergence(), reference="bf16")),
    )
    found = once_more(against_fp32, against_bf16)
    assert (found.word, found.exactness.windows) == ("cannot tell", 0)


def test_answers_that_were_kept_out_of_the_record_are_not_missed() -> None:
    quality = fakes.group("quality", "samples", store_prompts=False)
    now = fakes.paced(fakes.cell(quality=quality), 0.100, 0.101, 0.099)
    now = replace(now, answers=fakes.answers(samples=(fakes.sample(1, 2),)))
    then = replace(now, answers=fakes.answers())
    assert once_more(then, now).word == "reproduced"
    assert once_more(now, then).word == "cannot tell"


def test_cells_that_are_one_now_keep_their_numbers_apart() -> None:
    now = paced(0.100, 0.101, 0.099)
    found = reproductions(
        [(paced(0.100, 0.101, 0.099), now), (paced(0.130, 0.131, 0.129), now)], 0.05
    )
    assert [each.changes[0].then_s for each in found] == pytest.approx([0.1, 0.13], rel=0.01)
    assert [each.word for each in found] == ["reproduced", "differs"]
    assert [len(each.changes) for each in found] == [2, 2]


def test_answers_are_compared_to_the_last_token_where_that_is_promised() -> None:
    def answered(*tokens: int, **changes: object) -> Result:
        return paced(
            0.100, 0.101, 0.099, samples=(fakes.sample(1, 2), fakes.sample(*tokens)), **changes
        )

    same = once_more(answered(3, 4), answered(3, 4))
    assert (same.word, same.exactness.answers, same.exactness.other_answers) == ("reproduced", 2, 0)
    other = once_more(answered(3, 4), answered(3, 5))
    assert (other.word, other.exactness.promised, other.exactness.other_answers) == (
        "differs",
        True,
        1,
    )
    assert likeliest_reason(other, []) == "nothing that is recorded explains another answer"
    newer = fakes.host(versions={"torch": "2.10.0", "transformers": "5.0.0"})
    elsewhere = once_more(answered(3, 4), answered(3, 5, host=newer))
    assert (elsewhere.word, elsewhere.exactness.promised) == ("reproduced", False)
    assert "nothing promises it" in "\n".join(findings([elsewhere], [], 0.05))


def test_divergence_is_compared_to_the_last_digit() -> None:
    then = paced(0.100, 0.101, 0.099, divergence=fakes.divergence())
    moved = fakes.divergence(fakes.window(), fakes.window(kl_nats=0.5 + 1e-12))
    found = once_more(then, replace(then, answers=fakes.answers(divergence=moved)))
    assert (found.exactness.windows, found.exactness.other_windows, found.word) == (2, 1, "differs")


def test_choices_are_compared_to_the_last_digit() -> None:
    chosen = (Choice(0, (-1.0, -2.0)), Choice(1, (-1.0, -2.0)))
    then = paced(0.100, 0.101, 0.099, choices=chosen)
    moved = (chosen[0], Choice(1, (-1.0, -2.0 + 1e-12)))
    found = once_more(then, replace(then, answers=fakes.answers(choices=moved)))
    assert (found.exactness.choices, found.exactness.other_choices, found.word) == (2, 1, "differs")
    assert "1 of 2 multiple-choice items are equal to the last digit" in "\n".join(
        findings([found], [], 0.05)
    )
    gone = once_more(then, replace(then, answers=None))
    assert (gone.exactness.is_one_sided, gone.word) == (True, "cannot tell")


def test_a_busy_neighbour_is_warned_of_whatever_the_verdict() -> None:
    crowded = Interference(
        wall_s=10.0, throttled_s=0.0, steal_s=0.0, involuntary_switches=9, pressure_s=4.0
    )
    then = paced(0.100, 0.101, 0.099)
    busy = tuple(fakes.process(repeats=m.repeats, interference=crowded) for m in then.measurements)
    found = once_more(then, fakes.result(cell=CELL, replicates=busy))
    assert found.word == "reproduced"
    assert any(
        "warning: interference" in line and "40%" in line for line in findings([found], [], 0.05)
    )
    assert not any("interference" in line for line in findings([once_more(then, then)], [], 0.05))


def test_medians_that_moved_alone_are_warned_of() -> None:
    """In two processes of three most requests take 1.4 times as long: the medians say so, the
    quickest do not."""
    quick, slow = Repeat(1.0, (0.1, 0.1, 0.1), 1.3), Repeat(1.0, (0.14, 0.14, 0.14), 1.42)
    steady = fakes.process(repeats=(quick,) * 9)
    disturbed = fakes.process(repeats=(quick,) * 3 + (slow,) * 6)
    then = fakes.result(cell=CELL, replicates=(steady,) * 3)
    found = once_more(then, fakes.result(cell=CELL, replicates=(steady, disturbed, disturbed)))
    assert found.word == "reproduced"
    assert found.changes[0].medians_ratio == pytest.approx(1.4 ** (2 / 3), rel=0.01)
    assert numbers(found)["reproduction/tpot_ratio_of_medians"] == found.changes[0].medians_ratio
    assert "warning: the medians of TPOT are 1.25 times as long" in "\n".join(
        findings([found], [], 0.05)
    )
    assert "medians" not in "\n".join(findings([once_more(then, then)], [], 0.05))


def test_numbers_for_mlflow() -> None:
    found = once_more(paced(0.100, 0.101, 0.099), paced(0.115, 0.116, 0.114))
    values = numbers(found)
    assert values["reproduction/tpot_ratio"] == pytest.approx(1.15, rel=0.01)
    assert (
        values["reproduction/tpot_ratio_low"]
        < values["reproduction/tpot_ratio"]
        < values["reproduction/tpot_ratio_high"]
    )
    assert values["reproduction/reference_kernels_ratio"] == 1.0


def test_what_could_matter_most_comes_first() -> None:
    now = fakes.host(
        device_name="Another CPU",
        cpu_name="Another CPU",
        python="3.12.1",
        versions={"torch": "2.10.0", "numpy": "2.1"},
    )
    code = fakes.provenance(
        commit="fedcba9", measuring="ffffffffffff", packages={"torch": "2.10.0", "tqdm": "4.67.0"}
    )
    found = differences(HOST, now, CODE, code)
    assert [each.what for each in found] == [
        "device",
        "files that measure, with their texts (digest)",
        "torch",
        "transformers",
        "numpy",
        "Python",
        "package torch",
        "package tqdm",
        "commit",
    ]
    assert str(found[0]) == "device: Some CPU then, Another CPU now"
    assert str(found[3]) == "transformers: 5.0.0 then, none now"
    assert differences(HOST, HOST, CODE, CODE) == []


def test_another_power_limit_is_another_machine() -> None:
    then, now = (
        fakes.gpu_host(device_settings={"power limit, W": watts, "ECC": "on"})
        for watts in ("350", "250")
    )
    code = fakes.provenance()
    (found,) = differences(then, now, code, code)
    assert str(found) == "GPU power limit, W: 350 then, 250 now"
    assert found.is_decisive


def test_many_packages_are_not_listed_one_by_one() -> None:
    then, now = (
        fakes.provenance(packages={f"p{i:02}": version for i in range(20)}) for version in "12"
    )
    found = differences(HOST, HOST, then, now)
    assert len(found) == 6
    assert found[-1].what == "15 packages more"


def test_what_was_loaded_is_compared_too() -> None:
    then = fakes.result()
    now = replace(then, attestation=fakes.attestation(weight_bytes=999), revision="abc")
    assert [each.what for each in in_memory(then, now)] == [
        "model revision",
        "in memory, weight bytes",
    ]
    assert in_memory(then, then) == []


def test_the_likeliest_reason() -> None:
    slow = once_more(paced(0.100, 0.101, 0.099), paced(0.130, 0.131, 0.129))
    newer = differences(
        HOST, fakes.host(versions={"torch": "2.10.0", "transformers": "5.0.0"}), CODE, CODE
    )
    assert likeliest_reason(slow, newer) == "torch: 2.9.0 then, 2.10.0 now"
    readme = differences(HOST, HOST, CODE, fakes.provenance(commit="fedcba9"))
    assert likeliest_reason(slow, readme).startswith("commit: ")
    assert likeliest_reason(slow, []).startswith("nothing that is recorded differs")
    hot = fakes.process(before=Canary(read_s=0.013, matmul_s=0.002, steps_s=0.004))
    heated = replace(slow, now=replace(slow.now, replicates=(hot,)))
    assert kernel_change(heated.then, heated.now) == pytest.approx(1.3)
    assert "reference kernels take 1.30 times as long" in likeliest_reason(heated, readme)
