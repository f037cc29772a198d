"""Each check of the self-test judges true readings as ok, and those of a planted fault as not."""

from typing import Any

import pytest

from bench.analysis import selftest as judge
from bench.record.measurement import Reading, Telemetry
from bench.record.result import Outcome, Peaks
from bench.record.selftest import Check
from tests import fakes

MIB = 2**20
OK, SHEET = Outcome("ok"), Peaks(3e12, {}, "data sheet: made up", measured=False)


def least(plain: float, slowed: float, seen: float) -> dict[str, list[tuple[float, ...]]]:
    """Two requests of two steps; the second request is disturbed."""
    steps = {"plain": plain, "slowed": slowed, "plain_other": plain, "slowed_other": plain + seen}
    return {name: [(step_s, step_s), (step_s + 9, step_s + 9)] for name, step_s in steps.items()}


def window(energy_j: float | None, power_w: float | None) -> Telemetry:
    reading = Reading(0.0, None, None, None, power_w, None, energy_j, None)
    return Telemetry(10.0, 1, (reading,), energy_j, power_w, None)


CASES: list[tuple[str, Check, Check]] = [
    ("clocks", judge.clocks([1.005, 1.0], [1.0, 1.0]), judge.clocks([1.05, 1.05], [1.0, 1.0])),
    ("events", judge.events([0.001, 0.009, 0.5]), judge.events([0.011, 0.012, 0.001])),
    ("slowdown", judge.slowdown(least(1, 3.3, 2.2), 2), judge.slowdown(least(1, 1, 2.2), 2)),
    (
        "oom",
        judge.ending("oom", "oom", "", Outcome("oom", "no memory"), OK),
        judge.ending("oom", "oom", "", OK, OK),
    ),
    (
        "killed",
        judge.ending("killed", "failed", "SIGKILL", Outcome("failed", "by SIGKILL"), OK),
        judge.ending("killed", "failed", "SIGKILL", Outcome("failed", "exit code 0"), OK),
    ),
    (
        "memory",
        judge.memory(256 * MIB, 100 * MIB, fakes.memory(rss_peak_bytes=355 * MIB)),
        judge.memory(256 * MIB, 100 * MIB, fakes.memory(rss_peak_bytes=228 * MIB)),
    ),
    ("bandwidth", judge.bandwidth([1e12, 2.7e12], SHEET), judge.bandwidth([2.0e12], SHEET)),
    (
        "attention sdpa",
        judge.attention("sdpa", "fp16", 2, 1.0, 0.015),
        judge.attention("sdpa", "fp16", 2, 1.0, 0.016),
    ),
    ("quantization nf4", judge.weights("nf4", 1000, 1000), judge.weights("nf4", 1001, 1000)),
    ("energy", judge.energy(window(500.0, 52.0)), judge.energy(window(500.0, 60.0))),
    (
        "grid",
        judge.grid([fakes.result()]),
        judge.grid([fakes.result(), fakes.result(outcome=Outcome("oom", "no memory"))]),
    ),
]


@pytest.mark.parametrize(("name", "right", "wrong"), CASES)
def test_a_fault_is_not_ok(name: str, right: Check, wrong: Check) -> None:
    assert (right.name, right.verdict) == (name, "ok")
    assert (wrong.name, wrong.verdict) == (name, "NOT OK")
    assert right.expected == wrong.expected
    assert right.found != wrong.found


@pytest.mark.parametrize(
    "check",
    [
        judge.ending("killed", "failed", "SIGKILL", Outcome("failed", "SIGKILL"), Outcome("oom")),
        # Faster than memory can be: not all of it was copied
        judge.bandwidth([3.1e12], SHEET),
        judge.attention("sdpa", "fp32", 2, 1.0, float("nan")),
        judge.attention("sdpa_math", "fp32", 2, 1.0, 0.0, ["sdpa took flash, want math"]),
        judge.weights("nf4", 1000, 1000, ["14 layers are Linear, want Linear4bit"]),
        judge.slowdown(least(1, 2.5, 1.5), 2),  # less than was planted
        judge.slowdown(least(1, 3.5, 2.2), 2),  # more than another clock saw
        judge.grid([]),
        judge.failed("clocks", Outcome("timeout", "too long")),
    ],
)
def test_so_are_these(check: Check) -> None:
    assert check.verdict == "NOT OK"


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (judge.memory(1, None, fakes.memory()), "does not tell"),
        (judge.weights("nf4", None, 1000), "does not describe"),
        (judge.energy(None), "no energy"),
        (judge.energy(window(None, 50.0)), "no energy"),
    ],
)
def test_what_cannot_be_read_is_not_run(check: Check, why: str) -> None:
    assert check.verdict == "not run"
    assert why in check.found


def device(allocated: int, used: int | None) -> Check:
    readings: Any = {"allocated_peak_bytes": allocated * MIB}
    readings |= {} if used is None else {"device_used_bytes": used * MIB}
    return judge.device_memory(256 * MIB, 10 * MIB, fakes.memory(**readings))


def test_a_gpu_s_allocator_is_exact_and_nvml_sees_no_less() -> None:
    assert [device(266, used).verdict for used in (266, 700, None)] == ["ok"] * 3
    assert device(266, 265).verdict == "NOT OK"
    assert [device(each, 700).verdict for each in (265, 267)] == ["NOT OK"] * 2


def test_cells_of_the_default_model_are_compared_with_the_first() -> None:
    quants = ("bf16", "nf4", "int4_g64")
    results = [fakes.result(cell=fakes.cell(quant=quant)) for quant in quants]
    check = judge.default_model(results)
    assert check.verdict == "ok"
    assert check.found.endswith("; as fast as bf16: nf4 1.00x, int4_g64 1.00x")
    assert judge.default_model([results[0], fakes.result(outcome=Outcome("oom"))]).verdict != "ok"
    lacking = fakes.result(outcome=Outcome("skipped", "needs g++"))
    check = judge.default_model([results[0], lacking])
    assert (check.verdict, "skipped: needs g++; a token in bf16" in check.found) == ("ok", True)
    assert judge.default_model([lacking]).verdict == "not run"
