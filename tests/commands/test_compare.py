"""``compare``, ``report`` of several sweeps and ``gate`` as command lines, on sweeps that the
scripted engine ran."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from bench.commands import run_command
from bench.engine import scripted as engine
from bench.errors import ConfigError
from bench.store.files import read_place, write_result
from tests.command_line import from_readme
from tests.scripted import in_this_process, scripted, sweep

PASSES = 4
GRID = [scripted("ttft 1.0 steps 0.5", batch=batch, measure={"passes": PASSES}) for batch in (1, 8)]


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output_dir with three sweeps of the same two cells: the second as fast as the first, the
    third 10 % slower. Processes differ by a percent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    original, noise = engine.ScriptedClock, random.Random(0)
    for slower in (1.0, 1.0, 1.1):

        class Clock(original):  # type: ignore[misc, valid-type]
            """Of a process of its own."""

            def __init__(self, script: engine.Script, slower: float = slower) -> None:
                factor = slower * (1 + noise.uniform(-0.01, 0.01))
                steps_s = tuple(factor * step_s for step_s in script.steps_s)
                super().__init__(replace(script, ttft_s=factor * script.ttft_s, steps_s=steps_s))

        monkeypatch.setattr(engine, "ScriptedClock", Clock)
        code, _ = sweep(tmp_path / "outputs", *GRID, worker=in_this_process, resume=False)
        assert code == 0
    return tmp_path / "outputs"


def names(outputs: Path) -> list[str]:
    """Of the sweeps, in the order in which they ran."""
    return sorted(folder.name for folder in (outputs / "sweeps").iterdir())


def given(command: list[str], **places: str) -> tuple[str, list[str]]:
    """A command of the README, with sweeps in the place of NEW and OLD."""
    name, *words = command
    return name, [places.get(word, word) for word in words]


def test_sweeps_side_by_side(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, again, new = names(outputs)
    command = from_readme("python -m bench compare OLD NEW")
    name, words = given(command, OLD=old, NEW=new)
    assert run_command(name, words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"A = {old}: 2 cells, ")
    assert "B from A: machine, versions and code are the same" in said
    assert "B against A: worse: of 4 times in 2 cells 4 slower by over 3% or lost" in said
    assert said.count("0.91x slower") + said.count("0.90x slower") + said.count("0.92x slower") == 4
    assert run_command("compare", [old, again, new, "--margin", "5%"]) == 0
    said = capsys.readouterr().out
    assert (
        "B against A: no worse: of 4 times in 2 cells 0 slower by over 5% or lost, 4 not slower"
        in said
    )
    assert said.count("equivalent (") == 4
    assert "C against A: worse" in said


def test_a_report_of_several_is_one_page_in_the_newest(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, again, new = names(outputs)
    name, words = given(from_readme("python -m bench report OLD NEW"), OLD=new, NEW=old)
    assert run_command(name, words) == 0  # the newest, wherever it stands
    there = Path("outputs") / "sweeps" / new
    files = [str(there / f"comparison.{ending}") for ending in ("html", "md", "csv")]
    assert capsys.readouterr().out.splitlines() == files
    assert f"{new}, {old} side by side" in Path(files[0]).read_text()
    assert not (there / "report.html").is_file()
    Path("elsewhere").mkdir()
    assert run_command("report", [old, again, new, "--into", "elsewhere"]) == 0
    assert "C against A: worse" in Path("elsewhere/comparison.md").read_text()


def test_the_gate_is_the_verdict_as_an_exit_code(outputs: Path) -> None:
    old, again, new = names(outputs)
    command = from_readme("python -m bench gate NEW --baseline OLD")
    codes = []
    for current in (again, new, old):
        name, words = given(command, NEW=current, OLD=old)
        codes.append(run_command(name, words))
    assert codes == [0, 1, 4]


def test_one_cell_of_each_is_compared_too(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, _, new = names(outputs)
    cell = read_place(outputs / "sweeps" / old).results[0].cell_id
    cells = [str(outputs / "sweeps" / name / cell) for name in (old, new)]
    assert run_command("compare", cells) == 0
    assert "4 times" not in (said := capsys.readouterr().out)
    assert "of 2 times in 1 cell " in said


def test_another_host_is_said_first(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, again, _ = names(outputs)
    for result in read_place(outputs / "sweeps" / again).results:
        host = replace(result.host, device_name="Other CPU", cpu_name="Other CPU")
        write_result(outputs / "sweeps" / again, replace(result, host=host))
    assert run_command("compare", [old, again]) == 0
    said = capsys.readouterr().out
    assert "in A; Other CPU in B" in said
    assert said.index("B to A is a ratio of that too") < said.index("TPOT ms")
    assert "equivalent (" in said


def test_a_damaged_result_is_named_and_the_others_are_compared(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, again, _ = names(outputs)
    bad = read_place(outputs / "sweeps" / again).results[0].cell_id
    (outputs / "sweeps" / again / bad / "result.json").write_text("{")
    assert run_command("compare", [old, again]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("left out: ")
    assert "of 2 times in 1 cell " in said.out
    assert "unclear, and a result cannot be read" in " ".join(said.out.split())
    assert said.out.count(" damaged ") == 3  # a place in each table
    assert "only in A" not in said.out


def test_mistakes_are_a_sentence_each(outputs: Path) -> None:
    old, again, new = names(outputs)
    sweep(outputs, scripted("steps 0.5", batch=3), worker=in_this_process)
    (other,) = set(names(outputs)) - {old, again, new}
    empty = outputs / "empty"
    empty.mkdir()
    mistakes = {
        ("compare", old): r"^sweeps to compare: want 2 to 26, got 1$",
        ("compare", old, old): rf"^outputs/sweeps/{old}: given twice; want different sweeps$",
        ("compare", old, "nowhere"): r"^nowhere: no such folder, and no such sweep in",
        ("compare", old, str(empty)): r"empty: no sweep.json in it; want the folder of a sweep",
        ("compare", old, other): r"^no cell is in two of these sweeps: nothing to compare;",
        ("report", old, other): r"^no cell is in two of these sweeps: nothing to compare;",
        ("report", old, "--into", "x"): r"^--into: goes with several sweeps$",
        ("report", old, again, "--price-per-hour", "2"): r"^--price-per-hour: goes with one sweep$",
        ("report", old, again, "--into", "x"): r"comparison\.html: cannot be written \(No such",
    }
    for (name, *words), said in mistakes.items():
        with pytest.raises(ConfigError, match=said) as raised:
            run_command(name, list(words))
        assert len(raised.value.problems) == 1


def test_a_second_sweep_that_took_over_everything_was_not_measured(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(outputs)
    sweep(outputs, *GRID, worker=in_this_process, resume=True)
    (resumed,) = set(names(outputs)) - set(before)
    assert run_command("gate", [resumed, "--baseline", before[-1]]) == 4
    assert "2 cells: the baseline's own readings" in capsys.readouterr().out
    assert run_command("compare", [before[-1], resumed]) == 0
    assert capsys.readouterr().out.count("the same readings") == 4
