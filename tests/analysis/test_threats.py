"""What limits a whole sweep is said from its record, and only then."""

from dataclasses import replace

from bench.analysis.threats import threats
from bench.record.measurement import Canary
from bench.record.result import Peaks
from bench.record.sweep import Spread
from tests import fakes

STEADY = fakes.measurement().before
QUIET = fakes.result(
    cell=fakes.resolved(quality="none"),
    measurement=fakes.measurement(after=STEADY),
)
CLEAN = fakes.sweep(QUIET.cell_id, provenance=fakes.provenance(changed=()))


def about(words: list[str]) -> list[str]:
    """What each sentence is about."""
    return [line.partition(":")[0] for line in words]


def test_a_quiet_sweep_says_its_scope_and_how_often_it_was_measured() -> None:
    found = threats([QUIET], CLEAN)
    assert about(found) == ["Replication", "Clocks", "Quality", "Scope"]
    assert "No difference is established" in found[0]
    assert "a fast cell may answer badly" in found[2]


def test_nothing_measured_threatens_nothing() -> None:
    assert threats([], CLEAN) == []


def test_calibration_and_passes_are_told_apart() -> None:
    calibrated = replace(CLEAN, calibration={"tpot_s": Spread(0.02, 7)})
    assert "found earlier by" in threats([QUIET], calibrated)[0]
    thrice = replace(QUIET, replicates=(QUIET.replicates[0],) * 3)
    assert "at least 3 processes a cell" in threats([thrice], CLEAN)[0]


def test_what_was_recorded_is_said() -> None:
    slowed = fakes.measurement(after=Canary(read_s=0.012, matmul_s=0.0024, steps_s=0.005))
    noisy = replace(
        fakes.result(
            divergence=fakes.divergence(fakes.window(), fakes.window()), measurement=slowed
        ),
        peaks=Peaks(2e9, {"bf16": 1e12}, "measured here", measured=True),
        reused_from="earlier",
    )
    dirty = replace(CLEAN, provenance=fakes.provenance(changed=("a", "b"), lock=None))
    words = about(threats([noisy], dirty))
    wanted = ["Replication", "Time", "Drift", "Clocks", "Roofline", "Quality", "Code", "Packages"]
    assert words == [*wanted, "Scope"]
