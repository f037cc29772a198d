"""The checks in real processes, on engines that tell the truth or lie; and the bundle."""

import dataclasses
import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.commands import run_command
from bench.commands.checks import CHECKS, Here
from bench.commands.selftest import conclusion, exit_code, line, run_checks
from bench.driver.process import OnPhase, Task, begin_server, check_server, run_isolated
from bench.engine.protocol import Announce
from bench.errors import ConfigError
from bench.record.result import Outcome
from bench.record.selftest import SCHEMA, Check, SelfTest, cell_timings, from_json
from tests import fakes

HERE = f"{__name__}:"


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    begin_server(())
    assert check_server((), lambda phase, detail: None) is None


def exit_at_once(announce: Announce, *_: Any) -> None:
    """In the place of a process that is killed."""
    announce("measure")
    os._exit(0)


def with_exits(task: Task, on_phase: OnPhase, log: Path) -> Any:
    is_killed = task.place.endswith(":die_by_signal")
    return run_isolated(
        replace(task, place=f"{HERE}exit_at_once") if is_killed else task, on_phase, log
    )


def run(folder: Path, name: str, engine: str, worker: Any = run_isolated) -> Check:
    here = Here(worker, lambda *_: None, fakes.host(), folder, f"tests.lying:{engine}")
    (check,) = run_checks(here, {name: CHECKS[name]})
    return check


@pytest.mark.parametrize("name", ["clocks", "slowdown", "oom", "killed", "memory"])
def test_an_honest_engine_is_ok(name: str, tmp_path: Path) -> None:
    check = run(tmp_path, name, "HONEST")
    assert (check.name, check.verdict) == (name, "ok"), check.found
    assert check.seconds > 0


@pytest.mark.parametrize(
    ("name", "engine", "said"),
    [
        ("clocks", "FAST", "found +"),  # a clock that runs 5 % fast
        ("clocks", "DEAF", "found +"),
        ("slowdown", "DEAF", "found 0.000 ms"),  # a clock that hears no delay
        ("oom", "STINGY", "found ok; the next: fine"),  # whatever is asked for is given
        ("memory", "STINGY", "of 256 MiB"),
        ("memory", "HALVING", "of 256 MiB"),
    ],
)
def test_a_lying_engine_is_not(name: str, engine: str, said: str, tmp_path: Path) -> None:
    check = run(tmp_path, name, engine)
    assert check.verdict == "NOT OK"
    assert said in line(check)


def test_a_process_that_ends_itself_was_not_killed(tmp_path: Path) -> None:
    check = run(tmp_path, "killed", "HONEST", with_exits)
    assert check.verdict == "NOT OK"
    assert "exit code 0 in phase measure; the next: fine" in check.found


@pytest.mark.parametrize("name", ["events", "bandwidth", "energy", "attention flash2"])
def test_what_needs_a_gpu_is_not_run_without_one(name: str, tmp_path: Path) -> None:
    check = run(tmp_path, name, "HONEST")
    assert check.verdict == "not run"
    assert "device" in check.found


def test_what_the_library_declines_is_not_run(tmp_path: Path) -> None:
    check = run(tmp_path, "attention sdpa", "HONEST")  # a script shows no logits
    assert (check.verdict, check.found) == ("not run", "skipped: this engine shows no logits")


# The bundle

PROMPT = "the prompt that nobody may read"
SECRET = "hf_abcdefghijklmnopqrstuvwxyz"


def bundle(**changes: Any) -> SelfTest:
    checks = (
        Check("clocks", "two clocks", "0.1 % apart", "ok", 1.5, {"e2e_s": [1.0]}),
        Check("energy", "energy", "no CUDA device here", "not run"),
    )
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "version": "0.1.0",
        "commit": "0123abc",
        "changed_files": 0,
        "date": "2026-01-31T12:00:00Z",
        "host": fakes.host(),
        "checks": checks,
        "cells": (),
        "warnings": (),
    }
    return SelfTest(**values | changes)


def test_a_bundle_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "jupiter.example.org")
    monkeypatch.setenv("HOME", "/data/alice")
    monkeypatch.setenv("USER", "alice")
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-shape")
    workload = {"name": "own", "prompt": PROMPT, "new_tokens": 4}
    answers = fakes.answers(samples=(fakes.sample(1, prompt=PROMPT),))
    asked = fakes.result(cell=fakes.cell(workload=workload), answers=answers)
    lost = fakes.result(outcome=Outcome("failed", "jupiter: /scratch/alice/x", "/home/bob/y.py"))
    warnings = (
        "/data/alice/venv/lib/torch/x.py: UserWarning",
        "on JUPITER and jupiter.example.org",
        f"token {SECRET}, a-token-of-no-known-shape",
        "http://alice:pw@proxy:1/x",
    )
    missing = {"flash_attn": "ImportError: /Users/alice/lib/libx.so on jupiter"}
    planted = bundle(
        cells=tuple(map(cell_timings, (asked, lost))),
        warnings=warnings,
        host=fakes.host(missing=missing),
    )
    text = planted.to_json()
    for name in ("jupiter", "alice", "bob", SECRET, "a-token-of-no-known-shape", PROMPT, ":pw@"):
        assert name not in text.lower(), name
    assert "~/venv/lib/torch/x.py: UserWarning" in text
    assert "decode_step_s" in text


def test_a_machine_that_is_called_like_its_device_keeps_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "gpu")
    here = fakes.gpu_host()
    kept = from_json(bundle(host=here).to_json(), "x").host
    assert kept == replace(here, device_uuid=None)  # which is of one card in the world


def test_a_bundle_is_read_as_it_was_written_and_printed_as_it_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "b.json"
    for checks, code in ((bundle().checks, 0), ((Check("oom", "x", "y", "NOT OK"),), 1)):
        written = bundle(checks=checks)
        file.write_text(written.to_json())
        assert from_json(file.read_bytes(), "b.json") == written
        assert run_command("doctor", ["--read", str(file)]) == exit_code(checks) == code
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "self-test of version 0.1.0, commit 0123abc, 2026-01-31T12:00:00Z"
        assert said[2:] == [*map(line, checks), conclusion(checks)]


def test_a_line_has_what_was_expected_and_found() -> None:
    ok, not_run = map(line, bundle().checks)
    assert " ".join(ok.split()) == "clocks want two clocks; found 0.1 % apart: ok"
    assert " ".join(not_run.split()) == "energy want energy: not run, no CUDA device here"
    assert conclusion(bundle().checks) == "1 ok, 0 NOT OK, 1 not run, in 0 min 2 s"


def damaged(**changes: Any) -> str:
    return json.dumps(json.loads(bundle().to_json()) | changes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "not JSON"),
        ("[]", "no bundle of a self-test"),
        (json.dumps(dataclasses.asdict(fakes.host())), "no bundle of a self-test"),
        (damaged(schema=99), "written in schema 99, this version reads 1"),
        (damaged(checks=[{"name": "x"}]), "damaged (checks"),
        (None, "cannot be read (No such file"),
    ],
)
def test_what_is_no_bundle_is_refused_in_a_sentence(
    content: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "b.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        run_command("doctor", ["--read", str(file)])
    (problem,) = caught.value.problems
    assert said in problem
    assert "\n" not in problem


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("mine")
    for file, said in (("b.json", "is there already"), ("no/b.json", "no such folder")):
        with pytest.raises(ConfigError, match=said):
            run_command("doctor", ["--selftest", "--bundle", str(tmp_path / file)])
    assert (tmp_path / "b.json").read_text() == "mine"
    with pytest.raises(ConfigError, match="--bundle: goes with --selftest"):
        run_command("doctor", ["--bundle", str(tmp_path / "c.json")])
