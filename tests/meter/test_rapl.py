"""Energy of the CPU's packages, by counters in files of our own making that a thread raises."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.analysis.metrics import derive
from bench.engine.clock import Clock
from bench.engine.prompts import Ids
from bench.engine.protocol import ENGINES
from bench.engine.scripted import ScriptedSession
from bench.meter import rapl
from bench.meter.cell import measure_cell
from bench.record.measurement import Energy
from tests import fakes
from tests.scripted import scripted

RANGE_UJ = 1_000_000


def plant(root: Path, zone: str, name: str, at_uj: int = 0) -> Path:
    """A zone; its counter."""
    folder = root / zone
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{at_uj}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with no zone yet."""
    monkeypatch.setattr(rapl, "POWERCAP", tmp_path)
    return tmp_path


def rise(counter: Path, by_uj: int) -> None:
    """As the kernel would have it: around at its range, and never half written."""
    aside = counter.with_name("aside")
    aside.write_text(f"{(int(counter.read_text()) + by_uj) % RANGE_UJ}\n")
    aside.replace(counter)


@contextmanager
def rising(counter: Path, power_w: float) -> Iterator[None]:
    """A thread raises it for as long as the block lasts."""
    over = threading.Event()

    def run() -> None:
        last_s = time.perf_counter()
        while not over.wait(0.005):
            now_s = time.perf_counter()
            rise(counter, round(power_w * (now_s - last_s) * 1e6))
            last_s = now_s

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_packages_count_and_neither_parts_of_them_nor_what_holds_them(powercap: Path) -> None:
    wanted = [
        plant(powercap, "intel-rapl:0", "package-0"),
        plant(powercap, "intel-rapl:1", "package-1-die-0"),
    ]
    plant(powercap, "intel-rapl:2", "psys")
    plant(powercap, "intel-rapl:0:0", "core")
    plant(powercap, "intel-rapl:0:1", "package-like")
    plant(powercap, "intel-rapl-mmio:0", "package-0")
    (powercap / "intel-rapl:3").symlink_to(powercap / "gone")
    (powercap / "intel-rapl").mkdir()
    assert rapl.counters() == wanted
    assert rapl.is_readable()


def test_where_there_is_none_nothing_is_readable_and_nothing_forbidden(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not rapl.is_readable()
    monkeypatch.setattr(rapl, "POWERCAP", powercap / "nowhere")
    assert (rapl.counters(), rapl.forbidden(), rapl.is_readable()) == ([], [], False)


def test_what_every_round_draws_is_added_up_over_all_packages(powercap: Path) -> None:
    first = plant(powercap, "intel-rapl:0", "package-0", at_uj=17)
    second = plant(powercap, "intel-rapl:1", "package-1", at_uj=123_456)

    def work() -> None:
        rise(first, 2000)
        rise(second, 500)
        time.sleep(0.01)

    found = rapl.watch(work, window_s=0.1, every_s=0.02)
    assert found.energy_j == pytest.approx(found.rounds * 0.0025)
    assert found.window_s >= 0.1
    assert found.power_w_mean == pytest.approx(found.energy_j / found.window_s)
    energies = [reading.energy_j for reading in found.readings]
    assert (energies[0], energies[-1]) == (0.0, found.energy_j)
    assert energies == sorted(energies)
    assert found.throttled is None


def test_a_counter_that_comes_around_is_followed_each_time(powercap: Path) -> None:
    counter = plant(powercap, "intel-rapl:0", "package-0", at_uj=RANGE_UJ - 1)

    def work() -> None:
        for _ in range(12):  # a fifth of its range at a time, and a reading after each
            rise(counter, RANGE_UJ // 5)
            time.sleep(0.03)

    found = rapl.watch(work, window_s=0, every_s=0.005)
    assert found.rounds == 1  # twice around
    assert found.energy_j == pytest.approx(12 * RANGE_UJ / 5 / 1e6)


def test_a_counter_that_stands_still_is_no_reading(powercap: Path) -> None:
    plant(powercap, "intel-rapl:0", "package-0", at_uj=5)
    found = rapl.watch(lambda: time.sleep(0.01), window_s=0.02)
    assert (found.energy_j, found.power_w_mean) == (None, None)
    assert rapl.idle_power_w(settle_s=0, window_s=0.02) is None


def test_idle_power_is_what_is_drawn_while_nothing_is_done(powercap: Path) -> None:
    counter = plant(powercap, "intel-rapl:0", "package-0")
    with rising(counter, power_w=0.5):  # its thread may have to wait for a CPU
        tries_w = (rapl.idle_power_w(settle_s=0.02, window_s=0.3) for _ in range(5))
        assert any(idle_w == pytest.approx(0.5, rel=0.3) for idle_w in tries_w)


def test_what_this_user_may_not_read_is_no_sum_and_the_doctor_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as name:  # that of pytest is closed to others
        root = Path(name)
        root.chmod(0o755)
        monkeypatch.setattr(rapl, "POWERCAP", root)
        assert rapl.availability() is None
        plant(root, "intel-rapl:0", "package-0")
        closed = plant(root, "intel-rapl:1", "package-1")
        assert rapl.availability() == "RAPL, 2 packages"
        closed.chmod(0)
        ours = os.geteuid()
        if ours == 0:
            os.seteuid(65534)  # root may read everything
        try:
            assert rapl.forbidden() == [closed]
            assert not rapl.is_readable()
            said = rapl.availability()
        finally:
            os.seteuid(ours)
    wanted = "not permitted; until the next start of the machine: sudo chmod a+r"
    assert said == f"{wanted} {closed}"


def test_a_cell_on_a_cpu_has_energy_of_prefill_and_whole_requests_apart(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token draws 4 mJ and each request 1 mJ before it."""
    counter = plant(powercap, "intel-rapl:0", "package-0")
    answer = ScriptedSession.request

    def request(session: ScriptedSession, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        time.sleep(0.005)
        rise(counter, 1000 + 4000 * new_tokens)
        return answer(session, ids, new_tokens, clock)

    monkeypatch.setattr(ScriptedSession, "request", request)
    cell = scripted(measure={"telemetry_s": 0.05}, batch=2)
    phases: list[str] = []
    place = ENGINES["scripted"]
    found = measure_cell(lambda phase, detail="": phases.append(phase), place, cell)
    assert found.measurement is not None
    energy = found.measurement.energy
    assert isinstance(energy, Energy)
    assert energy.prefill is not None
    assert energy.request is not None
    assert energy.prefill.energy_j == pytest.approx(energy.prefill.rounds * 0.005)
    assert energy.request.energy_j == pytest.approx(energy.request.rounds * 0.017)
    assert phases.index("measure") < phases.index("telemetry") < phases.index("profile")
    result = fakes.result(cell=cell, measurement=found.measurement, attestation=found.attestation)
    values = derive(result)
    assert values["j_per_output_tok"] == pytest.approx(0.012 / 3 / 2)
    assert values["j_per_prompt_tok"] == pytest.approx(0.005 / 16)
    assert energy.idle_power_w is None  # this counter stands still between requests

    without = replace(cell, measure=replace(cell.measure, telemetry_s=0.0))
    found = measure_cell(lambda *_: None, place, without)
    assert found.measurement is not None
    assert found.measurement.energy is None
