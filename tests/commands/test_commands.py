"""Where the commands look for a sweep: below the output_dir that it was run with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.commands import run_command
from bench.errors import ConfigError
from bench.store.files import read_sweep, write_result, write_sweep
from tests import fakes, stores
from tests.analysis.test_advice import KNOWN, SWEEP
from tests.command_line import from_readme


def run(name: str, *arguments: str) -> int:
    return run_command(name, list(arguments))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Below an output_dir of another name: an older sweep of one cell, and a newer one of nine."""
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    for name, results in (("2026-01-01_00-00-00", KNOWN[:1]), ("2026-02-02_00-00-00", KNOWN)):
        folder = tmp_path / "elsewhere" / "sweeps" / name
        folder.mkdir(parents=True)
        cells = tuple(result.cell_id for result in results)
        write_sweep(folder, replace(SWEEP, sweep_id=name, cells=cells))
        for result in results:
            write_result(folder, fakes.in_sweep(result, name))
    return Path("elsewhere")


def test_the_newest_sweep_is_the_one_of_that_folder(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", "--output-dir", "elsewhere") == 0
    written = elsewhere / "sweeps" / "2026-02-02_00-00-00" / "report.html"
    assert capsys.readouterr().out.splitlines()[0] == str(written)
    assert written.is_file()
    assert run("advise", "--output-dir", "elsewhere", "--goal", "chat") == 0
    assert "quant=nf4 batch=1" in capsys.readouterr().out


def test_a_price_comes_from_the_sweep_or_the_option(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ("--output-dir", "elsewhere")
    with pytest.raises(ConfigError, match=r"^--goal cost: this sweep has no price; add what"):
        run("advise", *there, "--goal", "cost")
    command = from_readme("python -m bench advise --goal cost --price-per-hour 2.50")
    assert run(*command, *there) == 0
    said = capsys.readouterr().out
    assert said.startswith("cost (least cost per output token): quant=bf16 batch=32\n")
    assert "2.170 per million output tokens" in said
    folder = elsewhere / "sweeps" / "2026-02-02_00-00-00"
    write_sweep(folder, replace(read_sweep(folder), price_per_hour=5.0))
    assert run("advise", *there, "--goal", "cost", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (only,) = found["answers"]
    assert found["price_per_hour"] == 5.0
    assert found["cells"][only["best"]]["metrics"]["cost/output_mtok"] == pytest.approx(
        4.3403, rel=1e-4
    )
    assert run("report", *there) == 0
    assert "4.340" in (folder / "report.md").read_text()
    assert run("report", *there, "--price-per-hour", "2.50") == 0
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "2.170" in text
        assert "price_per_hour=2.5," in text


def test_energy_that_no_cell_has_is_no_goal(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--goal battery: no cell of this sweep has energy; "):
        run("advise", "--output-dir", str(elsewhere), "--goal", "battery")


def test_a_name_is_looked_for_in_that_folder_and_a_path_is_a_path(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("2026-02-02_00-00-00", "--baseline", "2026-01-01_00-00-00")
    assert run("gate", *names, "--output-dir", "elsewhere") == 4  # the same readings
    assert "1 cell: the baseline's own readings" in capsys.readouterr().out
    sweeps = elsewhere / "sweeps"
    assert run("gate", str(sweeps / names[0]), "--baseline", str(sweeps / names[2])) == 4
    assert run("compare", names[2], names[0], "--output-dir", "elsewhere") == 0


@pytest.mark.parametrize("command", ["report", "advise", "push"])
def test_where_there_is_none_the_place_and_the_option_are_named(
    elsewhere: Path, command: str
) -> None:
    with pytest.raises(ConfigError, match=r"no sweep in outputs/sweeps; .*--output-dir DIR"):
        run(command)
    wanted = r"^nowhere: no such folder, and no such sweep in outputs/sweeps; --output-dir DIR"
    with pytest.raises(ConfigError, match=wanted):
        run(command, "nowhere")
    with pytest.raises(ConfigError, match=r"no such sweep in elsewhere/sweeps"):
        run(command, "nowhere", "--output-dir", "elsewhere")


def test_a_sweep_is_pushed_to_the_store_beside_it(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores.database(elsewhere / "mlflow.db")
    assert run("push", "2026-01-01_00-00-00", "--output-dir", "elsewhere") == 0
    assert "1 of 1 cells" in capsys.readouterr().out
    assert (elsewhere / "mlflow.db").is_file()


@pytest.mark.parametrize(
    "command",
    ["push", "fetch", "compare", "gate", "advise", "report", "import", "reproduce", "doctor"],
)
def test_help_has_an_example_that_its_parser_takes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(command, "-h")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m bench {command} ")
    (example,) = [line for line in said.splitlines() if line.startswith("example: ")]
    words = example.removeprefix("example: python -m bench ").split()
    assert words[0] == command
    with pytest.raises(SystemExit) as ended:  # -h comes first to answer: the words before it parse
        run(*words, "-h")
    assert ended.value.code == 0
