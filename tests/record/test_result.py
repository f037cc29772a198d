"""Results as JSON, and what reading refuses."""

import json
from typing import Any

import pytest

from bench.errors import StoreError
from bench.record.measurement import PhaseProfile, Profile, Sample, TaskScore
from bench.record.result import Outcome, Result, from_json
from tests import fakes

FULL = fakes.result(
    cell=fakes.cell(quant="int8", attn="flash2", batch=8, cpus=[0, 1], threads=2),
    host=fakes.gpu_host(),
    revision="0.1.2",
    attestation=fakes.attestation(
        outlier_share=0.1,
        mismatches=("14 layers are Linear",),
        details={"layers": {"Linear": 14}, "attention_operators": ["aten::a"], "depth": [1, {}]},
    ),
    measurement=fakes.measurement(clock_mismatch=0.001),
    samples=(
        Sample("Why?", "Because “ünïcode” \U0001f600.\n", (1, 2), True),
        Sample("", "", (), False),
    ),
    tasks=(TaskScore("two_words", "acc", 0.75, None),),
    divergence=fakes.divergence(fakes.window(kl_nats=-1e-17), answers=(fakes.sample(1, 2),)),
    profile=Profile((PhaseProfile("decode", 0.5, 4, {"matrix product": 0.5}),), 1.25),
)


def test_a_result_survives_the_way_to_json_and_back() -> None:
    assert from_json(FULL.to_json(), "here") == FULL


def test_a_result_with_only_what_must_be_there_survives_too() -> None:
    result = fakes.result()
    assert from_json(result.to_json(), "here") == result


def test_a_result_without_numbers_survives_too() -> None:
    result = fakes.result(
        cell=fakes.cell(model="tiny"), outcome=Outcome("failed", "it broke", "Traceback:\n...")
    )
    assert result.measurements == ()
    assert result.attestation is None
    assert from_json(result.to_json(), "here") == result


def test_a_result_that_is_read_is_made_of_immutable_parts() -> None:
    again = from_json(FULL.to_json(), "here")
    assert isinstance(again.measurements[0].repeats[0].decode_step_s, tuple)
    assert isinstance(again.cell.cpus, tuple)


def test_a_number_that_is_none_is_not_written() -> None:
    with pytest.raises(ValueError, match="nan"):
        fakes.result(started_at=float("nan")).to_json()


def edited(result: Result, **changes: Any) -> str:
    return json.dumps(json.loads(result.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^here: not a result file \(Expecting value"),
        (FULL.to_json()[:-10], r"^here: not a result file \("),
        ("[]", r"^here: written in schema None, this version reads 7; measure again"),
        ("null", r"^here: written in schema None, this version reads 7; measure again"),
        (edited(FULL, schema=0), r"^here: written in schema 0, this version reads 7; "),
        (edited(FULL, schema=3), r"^here: written in schema 3, this version reads 7; "),
        (edited(FULL, colour="red"), r"^here: colour=red: unknown key; known are schema, "),
        (
            edited(FULL, started_at=float("nan")),
            r"^here: started_at=nan: want a number, at least 0$",
        ),
        (
            edited(FULL, outcome={"status": "fine"}),
            r"^here: outcome\.status=fine: want one of ok, skipped, oom, ",
        ),
        (
            edited(FULL, started_at="1", sweep_id=5),
            r"^here: sweep_id=5: want a text; .*started_at=1: want a number, at least 0$",
        ),
    ],
)
def test_a_file_that_is_not_a_result_is_refused_by_its_name(text: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        from_json(text, "here")


def test_an_incomplete_result_is_refused() -> None:
    mapping = json.loads(FULL.to_json())
    del mapping["host"]["cpus"]
    with pytest.raises(StoreError, match=r"^here: host\.cpus: missing; want an integer, at"):
        from_json(json.dumps(mapping), "here")


def test_the_asked_cell_and_the_resolved_one_are_both_kept() -> None:
    asked = fakes.cell(batch="max", threads="auto")
    result = fakes.result(cell=fakes.cell(batch=7), asked=asked)
    again = from_json(result.to_json(), "here")
    assert (again.asked.batch, again.cell.batch) == ("max", 7)
    assert (again.asked.threads, again.cell.threads) == ("auto", 2)
