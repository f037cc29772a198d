"""The self-test as a stranger runs it, on this CPU. Minutes on two cores, most of them the grid and
the default model."""

import json
import signal
import time
from pathlib import Path

import psutil

from bench.commands.checks import CHECKS
from bench.config.compose import collect, parsed
from bench.engine import sources
from bench.record.selftest import from_json
from tests.command_line import bench, from_readme, in_process, start, wait_until_gone

NEEDS_A_GPU = {"events", "bandwidth", "energy"}


def test_this_machine_is_measured_truly(tmp_path: Path) -> None:
    command = from_readme("python -m bench doctor --selftest --bundle selftest.json")
    done = bench(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    shown = [text for text in said if " want " in text]
    assert [text.partition(" want ")[0].strip() for text in shown] == list(CHECKS)
    bundle = from_json((tmp_path / "selftest.json").read_bytes(), "selftest.json")
    verdicts = {check.name: check.verdict for check in bundle.checks}
    assert "NOT OK" not in verdicts.values()
    assert {name for name in NEEDS_A_GPU if verdicts[name] == "not run"} == NEEDS_A_GPU
    (default,) = parsed(collect([]))
    if sources.cached(default.cell.model) is not None:
        assert verdicts["default model"] == "ok"
    for name in ("clocks", "slowdown", "oom", "killed", "memory", "grid", "attention sdpa_math"):
        assert verdicts[name] == "ok"
    assert "9 of 9 cells ok" in done.stdout
    assert len(bundle.cells) >= 9
    assert "decode_step_s" in json.dumps(bundle.cells)
    assert len(bundle.to_json()) < 2_000_000
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] in ([], ["lock"])

    command = from_readme("python -m bench doctor --read selftest.json")
    again = in_process(tmp_path, *command)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    words = ["doctor", "--selftest", "--bundle", "b.json"]
    driver = start(tmp_path, words, TMPDIR=str(scratch))
    assert driver.stdout is not None
    while " want " not in driver.stdout.readline():
        assert driver.poll() is None
    time.sleep(0.5)  # into the next check
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert err.splitlines()[-1] == "interrupted: no verdict, and no bundle"
    wait_until_gone(family)
    assert [path.name for path in scratch.iterdir() if path.name.startswith("bench")] == []
    assert not (tmp_path / "b.json").exists()
