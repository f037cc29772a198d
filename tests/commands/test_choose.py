"""``bench choose`` on the scripted engine: what it prints, keeps, and goes on from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.advice import Goal, Limits
from bench.analysis.choice_score import score
from bench.analysis.metrics import derive
from bench.analysis.racing import Question
from bench.commands import run_command
from bench.commands.choose import Asked, choose, space
from bench.config.settings import Config
from bench.driver.process import OnPhase, Task, run_isolated
from bench.driver.sweep import run_sweep
from bench.errors import ConfigError
from bench.meter.host import has_compiler
from bench.meter.nvml import driver_version
from bench.paths import CONF, DATA, ROOT
from bench.store.files import read_choice, read_results
from tests import fakes
from tests.scripted import in_this_process, scripted, settings

NO_QUALITY = fakes.group("quality", "none")


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_LOCK", str(tmp_path / "lock"))


def asked(goal: Goal = "tpot", limits: Limits | None = None, is_json: bool = False) -> Asked:
    return Asked(("engine=scripted",), Question(goal, limits or Limits(), 0.03, 0.95), 600, is_json)


def configs(tmp_path: Path, script: str, *quants: str, **changes: Any) -> list[Config]:
    return [
        Config(
            scripted(script, quant=fakes.group("quant", quant), quality=NO_QUALITY, **changes),
            settings(tmp_path),
        )
        for quant in quants
    ]


FAST_NF4 = "nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.5"


def test_the_command_searches_confirms_and_says_what_to_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "nf4: ttft 1.0 steps 0.25; int8: then oom; ttft 1.0 steps 0.5"
    space = configs(tmp_path, script, "bf16", "nf4", "int8")
    code = choose(asked(), space, run_isolated)
    out = capsys.readouterr().out
    assert code == 0, out
    assert "use quant=nf4 (over 99% sure" in out
    assert "quant=int8: out of memory, says the script" in out
    assert "quant=bf16: after 1 process each, 2.00 times the leader's" in out
    assert "python -m bench quant=nf4 engine=scripted measure=standard" in out
    (folder,) = (tmp_path / "sweeps").iterdir()
    answer = (folder / "choice.txt").read_text()
    assert answer.splitlines() == out.splitlines()[: len(answer.splitlines())]
    page = (folder / "report.html").read_text()
    assert "use quant=nf4 (over 99% sure" in page
    assert "not enough data" not in page
    found = read_choice(folder)
    assert found is not None
    assert found.configurations[str(found.best)].name == "quant=nf4"
    assert len(found.configurations) == 3
    low_s, high_s = found.configurations[str(found.best)].intervals_s["tpot_s"]
    assert low_s <= 0.25 <= high_s


def test_a_later_sweep_scores_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.5"
    space = configs(tmp_path, script, "bf16", "nf4")
    assert choose(asked(), space, run_isolated) == 0
    careful = [
        replace(c, cell=replace(c.cell, measure=replace(c.cell.measure, passes=2))) for c in space
    ]
    assert run_sweep(careful, (), run_isolated, lambda *_: []) == 0
    choice, later = sorted((tmp_path / "sweeps").iterdir())
    prediction = read_choice(choice)
    assert prediction is not None
    results = list(read_results(later))
    values = {result.cell_id: derive(result) for result in results}
    found = score(prediction, results, values, {})
    assert found is not None
    assert (found.measured, found.right) == (2, 1.0)
    wrong = replace(
        prediction, best=next(k for k in prediction.configurations if k != prediction.best)
    )
    unlucky = score(wrong, results, values, {})
    assert unlucky is not None
    assert unlucky.right == 0.0
    assert score(prediction, [], {}, {}) is None
    alone = score(prediction, [r for r in results if r.cell.quant.name == "nf4"], values, {})
    assert alone is not None
    assert alone.right is None
    assert "nothing else that was in question was measured here" in str(alone)
    strict = score(replace(prediction, limits={"max_kl_nats": 0.1}), results, values, {})
    assert strict is not None
    assert (strict.right, strict.unread) == (1.0, ("max_kl_nats",))
    capsys.readouterr()
    assert run_command("compare", [str(choice), str(later)]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"the choice {choice.name} said quant=nf4, ")
    assert "by 2 of its 2 configurations here it is right, over 99% sure" in said


def test_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "nf4: ttft 1.0 steps 0.25; fp16: ttft 1.0 steps 0.9; ttft 1.0 steps 0.3"
    space = configs(tmp_path, script, "bf16", "nf4", "fp16")
    assert choose(asked(is_json=True), space, run_isolated) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answer"], found["configuration"]) == ("chosen", "quant=nf4")
    assert found["chance"] > 0.95
    best, rival = found["confirmed"]
    assert (best["cell"], best["configuration"]) == (found["best"], "quant=nf4")
    assert best["metrics"]["tpot_s"]["low"] <= 0.25 <= best["metrics"]["tpot_s"]["high"]
    assert rival["chance"] < 0.05
    schema = json.loads((DATA / "choice.schema.json").read_text(encoding="utf-8"))
    inner = schema["properties"]
    assert [*found] == schema["required"] == [*inner]
    for name in ("confirmed", "dropped"):
        items = inner[name]["items"]
        assert found[name]
        for given in found[name]:
            assert [*given] == items["required"] == [*items["properties"]]


def test_without_axes_every_installed_engine_is_chosen_from() -> None:
    cells = [config.cell for config in space((), "chat")]
    engines = {cell.engine.name: cell.engine for cell in cells}
    assert {c.quant.name for c in cells if c.engine.python is None} >= {"bf16", "nf4", "int4_g64"}
    compiled = {c.attn.name for c in cells if c.decode.name == "compiled"}
    kernels = {"auto"} if driver_version() else {"sdpa_packed", "eager"}
    compiles = bool(driver_version()) or has_compiler()
    assert compiled == (kernels if compiles else set())
    batched = [config.cell for config in space((), "batch")]
    assert {cell.batch for cell in batched} == {1, 8, 32}
    named = [cell for cell in batched if cell.attn.name != "auto"]
    combined = {(cell.quant.name, cell.attn.name, cell.batch) for cell in named}
    quants, attns = ("bf16", "int8_channel", "int4_g64"), ("sdpa_packed", "eager")
    on_cpu = {(q, a, b) for q in quants for a in attns for b in (8, 32)}
    assert combined == (set() if driver_version() else on_cpu)
    assert {cell.decode.name for cell in named} <= {"compiled" if has_compiler() else "loop"}
    for name, quant in (("llama_cpp", "gguf_q8_0"), ("vllm", "bf16")):
        is_installed = (ROOT / ".engines" / name / "bin/python").is_file()
        assert (name in engines) is is_installed
        of_engine = {c.quant.name for c in cells if c.engine.name == name}
        assert (quant in of_engine) is is_installed
    assert {
        c.engine.name for c in (config.cell for config in space(("quant=bf16,nf4",), "chat"))
    } == {"transformers"}


def test_nothing_fits_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = configs(tmp_path, "ttft 1.0 steps 0.5", "bf16", "nf4")
    assert choose(asked(limits=Limits(max_tpot_s=0.1)), space, run_isolated) == 1
    asked_for, headline, first, *_ = capsys.readouterr().out.splitlines()
    assert asked_for == "asked for: shortest time per output token, TPOT at most 100 ms"
    assert headline == "nothing keeps these limits"
    assert first.startswith("  would be first, but: quant=")


def test_a_choice_that_is_made_again_goes_on_from_its_readings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"resume": True}
    space = configs(tmp_path, FAST_NF4, "bf16", "nf4", measure=kept)
    assert choose(asked(), space, in_this_process) == 0
    first = capsys.readouterr().out.splitlines()[1]
    started: list[str] = []

    def counted(task: Task, on_phase: OnPhase, log: Path) -> Any:
        started.append(task.place)
        return in_this_process(task, on_phase, log)

    assert choose(asked(), space, counted) == 0
    assert capsys.readouterr().out.splitlines()[1] == first
    assert not [place for place in started if "measure_cell" in place]


@pytest.mark.parametrize("after", range(1, 9))
def test_a_choice_goes_on_wherever_ctrl_c_ended_it(
    after: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = configs(tmp_path, FAST_NF4, "bf16", "nf4", measure={"resume": True})
    left = after

    def until(task: Task, on_phase: OnPhase, log: Path) -> Any:
        nonlocal left
        if "measure" in task.place:
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return in_this_process(task, on_phase, log)

    code = choose(asked(), space, until)
    said = capsys.readouterr()
    if code == 130:
        assert "interrupted: what is finished is kept; resume=true" in said.err
    assert choose(asked(), space, in_this_process) == 0
    assert "use quant=nf4 (over 99% sure" in capsys.readouterr().out


def test_where_some_never_ran_no_chance_is_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = configs(tmp_path, "ttft 1.0 steps 0.5", "bf16", "nf4", "fp16")
    short = replace(asked(), budget_s=1e-9)
    assert choose(short, space, in_this_process) == 4
    out = capsys.readouterr().out
    assert "the budget does not suffice to tell; best guess quant=bf16, some never ran" in out
    assert "quant=nf4: did not run: the budget was over" in out
    assert "more time would tell: --budget 1s" in out
    assert choose(replace(short, is_json=True), space, in_this_process) == 4
    assert json.loads(capsys.readouterr().out)["chance"] is None


def test_the_report_lists_all_that_was_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(file.stem for file in (CONF / "quant").glob("int*.yaml"))
    names += sorted(file.stem for file in (CONF / "quant").glob("gguf*.yaml"))
    assert len(names) > 14
    short = replace(asked(), budget_s=1e-9)
    assert choose(short, configs(tmp_path, "ttft 1.0 steps 0.5", *names), in_this_process) == 4
    said = capsys.readouterr().out
    listed = said.count("did not run: the budget was over")
    assert listed == 12
    (more,) = [line for line in said.splitlines() if line.endswith("more: see the report")]
    (report,) = tmp_path.glob("**/report.html")
    dropped = listed + int(more.split()[1])
    assert report.read_text().count("did not run: the budget was over") == dropped
    assert "more: see the report" not in report.read_text()


def test_what_was_near_the_best_is_told_apart_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "nf4: ttft 1.0 steps 0.25; ttft 1.0 steps 0.28"
    assert choose(asked(), configs(tmp_path, script, "bf16", "nf4"), in_this_process) == 0
    assert "  quant=bf16: 1.12 times the best's" in capsys.readouterr().out


def test_the_command_that_measures_again_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("engine=scripted", "measure=standard", "resume=true")
    given = replace(asked(), overrides=typed)
    assert choose(given, configs(tmp_path, FAST_NF4, "bf16", "nf4"), in_this_process) == 0
    again = "measure it again: python -m bench quant=nf4 engine=scripted measure=standard\n"
    assert again in capsys.readouterr().out


def test_what_would_run_is_not_known_before(tmp_path: Path) -> None:
    space = configs(tmp_path, FAST_NF4, "bf16", "nf4")
    dry = [replace(c, settings=replace(c.settings, dry_run=True)) for c in space]
    with pytest.raises(ConfigError, match="dry_run: choose decides on the way what runs"):
        choose(asked(), dry, in_this_process)
