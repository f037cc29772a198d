"""The GPU's readings, on a machine without one: pynvml is the real one, the library below it plays
back a script.

``nvml_stub.c`` is built with the system's compiler and found by the loader as
``libnvidia-ml.so.1``, so symbols, structs and error codes go through the same ctypes calls as with
a driver. It is loaded in a fork of its own for each question.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pynvml
import pytest

from bench.config.parse import parse
from bench.meter.nvml import SHORTEST_ENERGY_WINDOW_S, GpuProcess
from bench.paths import ROOT
from bench.record.measurement import GpuState, Reading, Telemetry

GPU = {
    "init": "ok",
    "handle": "ok",
    "uuid": "GPU-1",
    "name": "Stub",
    "driver": "999.1",
    "used": "12345678901",
    "sm_clock": "1980",
    "memory_clock": "2619",
    "temperature": "61",
    "power": "345678",
    "energy": "9876543210123",
    "reasons": "0",
    "power_limit": "350000",
    "ecc": "1",
    "app_clock": "1755",
    "max_clock": "1980",
    "violation_power": "2500000000",
    "violation_heat": "0",
    "compute": "nobody",
    "graphics": "nobody",
}
FIELDS = {
    "sm_clock": "sm_clock_hz",
    "memory_clock": "memory_clock_hz",
    "temperature": "temperature_c",
    "power": "power_w",
    "used": "used_bytes",
    "energy": "energy_j",
    "reasons": "throttle",
}
# Rounds of work that last until the GPU was read seven times more, however slow the machine is
WATCH = "watch('GPU-1', lambda: wait_for_readings(7), window_s=0.2, every_s=0.01)"
COUNTED = WATCH.replace("lambda:", "lambda: done.append(1) or")
SHORT_WINDOWS_COUNT = "telemetry.SHORTEST_ENERGY_WINDOW_S = 0.2"

# One process imports everything, a fork of it answers each question: NVML is loaded in the fork.
_ACT = """
import dataclasses, json, os, sys, threading, time, traceback
import pynvml
from bench.errors import CellFailure
from bench.meter import nvml as telemetry
from bench.meter.gpu_state import device_settings, gpu_state
from bench.meter.nvml import (
    idle_power_w, nvml_uuid, other_processes, used_bytes, wait_until_free, watch
)

loaded, readings, last_of_reading = (
    "torch" in sys.modules, [], pynvml.nvmlDeviceGetCurrentClocksEventReasons
)

def read_reasons(handle):
    readings.append(handle)
    return last_of_reading(handle)

def wait_for_readings(count):
    wanted = len(readings) + count
    while len(readings) < wanted:
        time.sleep(0.001)

pynvml.nvmlDeviceGetCurrentClocksEventReasons = read_reasons
for line in sys.stdin:
    before, asked, variables = json.loads(line)
    if os.fork():
        os.wait()
        continue
    os.environ.update(variables)
    try:
        exec(before)
        answer = {"value": eval(asked)}
    except CellFailure as failure:
        answer = {"value": {"status": failure.status, "reason": failure.reason}}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer, default=dataclasses.asdict, allow_nan=False), flush=True)
    os._exit(0)
"""


class Play(Protocol):
    """``asked`` evaluated in a process whose NVML is the stub; ``readings`` replace lines of the
    usual script."""

    def __call__(self, asked: str, before: str = "", **readings: str | None) -> Any: ...


class Server:
    """A process that finds ``libnvidia-ml.so.1`` in this folder first."""

    def __init__(self, library_folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ACT],
            cwd=ROOT,
            env={**os.environ, "LD_LIBRARY_PATH": str(library_folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, asked: str, before: str = "", **variables: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([before, asked, variables]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "g++"))), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, to build a stub of NVML")
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).parents[1] / "nvml_stub.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(built), str(source)], check=True, timeout=60
    )
    return built


@pytest.fixture(scope="module")
def server(library: Path) -> Iterator[Server]:
    running = Server(library.parent)
    yield running
    running.end()


@pytest.fixture
def play(server: Server, tmp_path: Path) -> Play:
    def playing(asked: str, before: str = "", **readings: str | None) -> Any:
        script = tmp_path / "script"
        lines = [
            f"{key} {values}" for key, values in {**GPU, **readings}.items() if values is not None
        ]
        script.write_text("\n".join(lines))
        return server.ask(asked, before, NVML_STUB_SCRIPT=str(script))

    return playing


def telemetry_of(answer: Any) -> Telemetry:
    """Through the parser of stored results: what is read must survive being a JSON file."""
    found = parse(Telemetry, answer)
    assert dataclasses.asdict(found) == {
        **answer,
        "throttled": found.throttled,
        "readings": tuple(dataclasses.asdict(reading) for reading in found.readings),
    }
    return found


def test_a_reading_is_in_base_units(play: Play) -> None:
    reading = telemetry_of(play(WATCH)).readings[0]
    assert reading == Reading(
        at_s=reading.at_s,
        sm_clock_hz=1_980_000_000,
        memory_clock_hz=2_619_000_000,
        temperature_c=61,
        power_w=345.678,
        used_bytes=12_345_678_901,
        energy_j=9_876_543_210.123,
        throttle=(),
    )


def test_readings_follow_the_device(play: Play) -> None:
    found = telemetry_of(
        play(WATCH, sm_clock="210 1980 1965 1950", used="1 2 3 4", temperature="40 50 60 61")
    )
    assert [reading.sm_clock_hz for reading in found.readings[:4]] == [
        210_000_000,
        1_980_000_000,
        1_965_000_000,
        1_950_000_000,
    ]
    assert [reading.used_bytes for reading in found.readings[:4]] == [1, 2, 3, 4]
    assert [reading.temperature_c for reading in found.readings[:5]] == [40, 50, 60, 61, 61]


def test_the_window_is_full_and_its_rounds_are_counted(play: Play) -> None:
    answer = play(f"[{COUNTED}, len(done), threading.active_count()]", before="done = []")
    found, done, threads = telemetry_of(answer[0]), answer[1], answer[2]
    assert found.rounds == done
    assert 1 <= done <= 4
    assert found.window_s >= 0.2
    moments = [reading.at_s for reading in found.readings]
    assert moments == sorted(moments)
    assert moments[-1] - moments[0] == found.window_s
    assert 2 < len(moments) <= 2 + found.window_s / 0.01
    assert threads == 1


def test_work_longer_than_the_window_runs_once(play: Play) -> None:
    found = telemetry_of(
        play("watch('GPU-1', lambda: time.sleep(0.1), window_s=0.0, every_s=0.01)")
    )
    assert found.rounds == 1
    assert found.window_s >= 0.1


@pytest.mark.parametrize("key", FIELDS)
def test_a_reading_that_nvml_refuses_is_none_and_not_0(play: Play, key: str) -> None:
    # Not supported, no permission, ..., unknown
    refused = "error:3 error:4 error:13 error:17 error:21 error:999"
    readings = telemetry_of(play(WATCH, **{key: f"{refused} {GPU[key]}"})).readings
    assert [getattr(reading, FIELDS[key]) for reading in readings[:6]] == [None] * 6
    assert getattr(readings[6], FIELDS[key]) is not None
    others = set(FIELDS.values()) - {FIELDS[key]}
    assert all(getattr(reading, other) is not None for reading in readings for other in others)


def test_a_device_that_tells_nothing_gives_no_numbers(play: Play) -> None:
    found = telemetry_of(play(WATCH, before=SHORT_WINDOWS_COUNT, **dict.fromkeys(FIELDS)))
    assert {getattr(reading, field) for reading in found.readings for field in FIELDS.values()} == {
        None
    }
    assert (found.energy_j, found.power_w_mean, found.throttled) == (None, None, None)


@pytest.mark.parametrize(
    "lines",
    [
        # A driver of tomorrow
        {"temperature": "error:13", "temperature_v": "70", "reasons": "0x4"},
        {"temperature": "70", "reasons": "error:13", "old_reasons": "0x4"},  # one of yesterday
    ],
)
def test_drivers_that_know_one_name_of_two_are_read(play: Play, lines: dict[str, str]) -> None:
    reading = telemetry_of(play(WATCH, **lines)).readings[0]
    assert (reading.temperature_c, reading.throttle) == (70, ("sw_power_cap",))


@pytest.mark.parametrize(
    "lines",
    [
        {"uuid": "GPU-2"},
        {"handle": "error:2"},
        {"handle": "error:4"},
        {"init": "error:4"},
        {"init": "error:9"},  # driver not loaded
        {"init": "error:18"},  # library and kernel module of different versions
        {"init": "error:999"},
    ],
)
def test_without_nvml_or_the_device_nothing_is_run_and_nothing_read(
    play: Play, lines: dict[str, str]
) -> None:
    asked = f"[{COUNTED}, idle_power_w('GPU-1', settle_s=0), other_processes('GPU-1', []), done]"
    assert play(asked, before="done = []", **lines, compute="7=1") == [None, None, [], []]


def test_without_the_library_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("found before a real one, and no library")
    without = Server(tmp_path)
    asked = f"[{WATCH}, idle_power_w('GPU-1', settle_s=0), other_processes('GPU-1', [])]"
    assert without.ask(asked) == [None, None, []]
    without.end()


A_WHILE = "watch('GPU-1', lambda: time.sleep(0.05), window_s=50, every_s=0.01)"


@pytest.mark.parametrize("code", [15, 16])
@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("handle {}", A_WHILE),
        ("power {}", A_WHILE),
        ("energy 1 2 {}", A_WHILE),
        ("power 1 2 {}", "idle_power_w('GPU-1', settle_s=0, window_s=50, every_s=0.01)"),
        ("compute {}", "other_processes('GPU-1', [])"),
    ],
)
def test_a_gpu_that_is_gone_fails_the_cell_at_once(
    play: Play, line: str, asked: str, code: int
) -> None:
    key, _, values = line.format(f"error:{code}").partition(" ")
    answer = play(asked, **{key: values})  # and not after the 50 s that were asked for
    assert answer["status"] == "failed"
    assert {15: "GPU is lost", 16: "GPU requires restart"}[code] in answer["reason"]


def test_nvml_is_shut_down_and_the_thread_ended_whatever_the_work_does(play: Play) -> None:
    before = f"""
def is_shut_down():
    try:
        pynvml.nvmlSystemGetDriverVersion()
        return False
    except pynvml.NVMLError_Uninitialized:
        return threading.active_count() == 1

def fails():
    raise ZeroDivisionError

found = [isinstance({WATCH}, telemetry.Telemetry) and is_shut_down()]
try:
    watch("GPU-1", fails, 50.0, 0.01)
except ZeroDivisionError:
    found.append(is_shut_down())
other_processes("GPU-1", [])
found.append(is_shut_down())
"""
    assert play("found", before=before) == [True, True, True]


REASONS = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake",
    0x200: "board_limit",
    0x400: "reliability",
}
CHOICES = (
    pynvml.nvmlClocksEventReasonGpuIdle
    | pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    | pynvml.nvmlClocksEventReasonDisplayClockSetting
)


def test_throttling_is_told_apart_from_idling_and_chosen_clocks(play: Play) -> None:
    masks = [0, CHOICES, *REASONS, CHOICES | 0x8 | 0x40, 1 << 63]
    work = f"wait_for_readings({len(masks)})"
    asked = f"watch('GPU-1', lambda: {work}, window_s=0.0, every_s=0.01)"
    readings = telemetry_of(play(asked, reasons=" ".join(map(hex, masks)))).readings
    names = [(name,) for name in REASONS.values()]
    assert [reading.throttle for reading in readings[: len(masks)]] == [
        (),
        (),
        *names,
        ("hw_slowdown", "hw_thermal"),
        (),
    ]


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [
        # The first is from before the work
        ("0x80 0x40 0x1 0x4 0x0", ("sw_power_cap", "hw_thermal")),
        ("0x4 0x1", ()),
        ("0x4 error:3", None),
        ("0x4 error:999 0x20 error:999", ("sw_thermal",)),
    ],
)
def test_the_window_keeps_every_reason_seen_while_the_work_ran(
    play: Play, reasons: str, throttled: tuple[str, ...] | None
) -> None:
    assert telemetry_of(play(WATCH, reasons=reasons)).throttled == throttled


def test_mean_power_is_of_the_readings_while_the_work_ran(play: Play) -> None:
    found = telemetry_of(play(WATCH, power="900000 100000 error:999 300000 200000"))
    powers_w = [reading.power_w for reading in found.readings]
    assert powers_w[:4] == [900.0, 100.0, None, 300.0]
    assert found.power_w_mean == pytest.approx(200)


ENERGIES = [
    ("5000 999999 7500", 2.5),  # the second is of another moment
    ("0 2500", 2.5),  # a counter may begin at 0
    ("5000", None),  # stands still
    ("5000 6000 4000", None),  # runs back
    ("error:3", None),
    ("error:999 5000", None),
    ("5000 error:3", None),
]


@pytest.mark.parametrize(("energy", "energy_j"), ENERGIES)
def test_energy_is_the_difference_of_the_counter(
    play: Play, energy: str, energy_j: float | None
) -> None:
    assert telemetry_of(play(WATCH, before=SHORT_WINDOWS_COUNT, energy=energy)).energy_j == energy_j


def test_a_window_too_short_for_the_counter_gives_no_energy(play: Play) -> None:
    found = telemetry_of(play(WATCH, energy="5000 7500"))
    assert found.energy_j is None
    assert found.readings[-1].energy_j == 7.5
    assert found.window_s < SHORTEST_ENERGY_WINDOW_S == 10


IDLE = "idle_power_w('GPU-1', settle_s=0, window_s=0.2, every_s=0.01)"


def test_idle_power_is_by_the_energy_counter(play: Play) -> None:
    # 20 J in 0.2 s or a little more, and not what power says
    watts = play(IDLE, before=SHORT_WINDOWS_COUNT, energy="0 20000")
    assert watts <= 100


@pytest.mark.parametrize(
    ("before", "lines", "watts"),
    [
        (SHORT_WINDOWS_COUNT, {"energy": None}, 345.678),
        ("", {"energy": "0 20000"}, 345.678),
        ("", {"energy": None, "power": None}, None),
    ],
)
def test_idle_power_is_by_power_where_the_counter_does_not_tell(
    play: Play, before: str, lines: dict[str, str | None], watts: float | None
) -> None:
    answer = play(IDLE, before=before, **lines)
    assert (answer and round(answer, 3)) == watts


def test_the_device_settles_before_idle_power_counts(play: Play) -> None:
    asked = (
        "[idle_power_w('GPU-1', settle_s=0.4, window_s=0.05, every_s=0.01), time.perf_counter() -"
        " started]"
    )
    assert play(asked, before="started = time.perf_counter()")[1] >= 0.45


def test_other_processes_are_named(play: Play) -> None:
    me, gone = os.getpid(), 2**22 + 1  # no Linux has a pid above 2**22
    found = play(
        "other_processes('GPU-1', [1234])",
        compute=f"1234=500,{gone}=none,{me}=700",
        graphics=f"{me}=700,77777777=0",
    )
    assert [GpuProcess(**process) for process in found] == [
        GpuProcess(me, Path("/proc/self/comm").read_text().strip(), 700),
        GpuProcess(gone, None, None),
        GpuProcess(77777777, None, 0),
    ]


@pytest.mark.parametrize(
    ("own", "lines", "pids"),
    [
        ([1, 2], {"compute": "1=5", "graphics": "2=5"}, []),
        ([1], {"compute": "nobody", "graphics": "nobody"}, []),
        ([1], {"compute": "nobody", "graphics": "1=5,3=5"}, [3]),
        ([1], {"compute": "4000001=5,4000002=5"}, []),  # pids of the host, seen from a container
        ([], {"compute": "4000001=5,4000002=5"}, [4000001, 4000002]),  # none of them can be ours
        ([1], {"compute": "error:4", "graphics": "1=5,3=5"}, [3]),
        ([], {"compute": "error:3", "graphics": "error:999"}, []),
        ([], {"compute": "error:13", "graphics": "error:13"}, []),  # a driver before 510
    ],
)
def test_processes_are_listed_as_far_as_they_can_be_told_apart(
    play: Play, own: list[int], lines: dict[str, str], pids: list[int]
) -> None:
    assert [process["pid"] for process in play(f"other_processes('GPU-1', {own})", **lines)] == pids


@pytest.mark.parametrize(
    ("lines", "used_bytes"),
    [
        ({}, 12345678901),
        ({"used": "error:3"}, None),
        ({"uuid": "GPU-2"}, None),
        ({"init": "error:9"}, None),
    ],
)
def test_memory_in_use_is_read_through_the_same_library(
    play: Play, lines: dict[str, str], used_bytes: int | None
) -> None:
    assert play("used_bytes('GPU-1')", **lines) == used_bytes


@pytest.mark.parametrize("name", ["GPU-5f4c", "MIG-5f4c"])
def test_a_device_is_named_by_what_nvml_knows_it_as(play: Play, name: str) -> None:
    assert play("nvml_uuid('5f4c')", uuid=name) == name


@pytest.mark.parametrize(
    ("used", "held"), [("900000000 900000000 1000", 0), ("900000000", 900000000)]
)
def test_the_next_cell_waits_until_memory_is_free(play: Play, used: str, held: int) -> None:
    assert play("wait_until_free('GPU-1', 0, limit_s=0.5)", used=used) == held


# Before and after the timed requests


def test_the_state_of_the_gpu_is_read_in_base_units(play: Play) -> None:
    assert parse(GpuState, play("gpu_state('GPU-1')")) == GpuState(
        sm_clock_hz=1_980_000_000,
        memory_clock_hz=2_619_000_000,
        power_limit_w=350.0,
        held_down_s={"power": 2.5, "heat": 0.0},
    )
    assert play("device_settings('GPU-1')") == {
        "power limit, W": "350",
        "ECC": "on",
        "application clock, MHz": "1755",
        "highest clock, MHz": "1980",
    }


@pytest.mark.parametrize(
    "refused",
    ["error:3", "error:4", "error:13", None],  # not supported, no permission, function not found
)
def test_what_a_driver_or_an_instance_does_not_tell_is_left_out(
    play: Play, refused: str | None
) -> None:
    """As of a MIG instance, for a user without permission, or of a driver before the function."""
    keys = ("sm_clock", "memory_clock", "power_limit", "ecc", "app_clock", "max_clock")
    silent = dict.fromkeys((*keys, "violation_power", "violation_heat"), refused)
    asked = "[gpu_state('GPU-1'), device_settings('GPU-1')]"
    state, settings = play(asked, **silent)
    assert parse(GpuState, state) == GpuState(None, None, None, {})
    assert settings == {}


def test_without_nvml_or_the_device_there_is_no_state(play: Play) -> None:
    asked = "[gpu_state(None), gpu_state('GPU-2'), device_settings('GPU-2')]"
    assert play(asked) == [None, None, {}]
    assert play("gpu_state('GPU-1')", init="error:9") is None


def test_a_gpu_that_is_gone_has_no_state(play: Play) -> None:
    assert play("gpu_state('GPU-1')", power_limit="error:15")["status"] == "failed"


def test_reading_a_gpu_does_not_load_torch(play: Play) -> None:
    assert play("loaded") is False
