"""From layers to a sweep: the command studies the tiny model, and what it writes runs."""

import re
from pathlib import Path

import pytest
import yaml

from bench.analysis.mixed import Budget, Mixed, mixed
from bench.record.sensitivity import Study, from_json
from tests.command_line import TINY, Ended, from_readme, in_process, results

NAME = "mixed_4.5bits"
CONTROLS = [f"{NAME}_{control}" for control in ("uniform", "random", "inverted", "ends")]
SCHEMES = ["int4_g128", "int4_g32", "int8_channel", "none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture(scope="module")
def done(folder: Path) -> Ended:
    asked = from_readme(
        "python -m bench sensitivity quant=int4_g128 --schemes int4_g32,int8_channel,none"
        " --budget 4.5bits"
    )
    done = in_process(folder, *asked, "model=tiny", "workload.new_tokens=4", "threads=1")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def study(done: Ended, folder: Path) -> Study:
    (kept,) = folder.glob("outputs/sensitivity/*/sensitivity.json")
    return from_json(kept.read_bytes(), str(kept))


@pytest.fixture(scope="module")
def found(study: Study) -> list[Mixed]:
    return mixed(study.readings, SCHEMES, Budget(4.5, "bits", "4.5bits"), study.cell.seed)


def test_it_says_what_it_allocates(done: Ended, found: list[Mixed]) -> None:
    best = found[0]
    line = next(line for line in done.stdout.splitlines() if line.startswith(f"{NAME} "))
    assert f"{best.bits_per_weight:.3f}" in line
    assert f"{best.kl_nats.value:.3g} [" in line
    assert f"python -m bench sweeps={NAME}" in done.stderr


def test_its_files_are_values_and_a_sweep(
    folder: Path,
    found: list[Mixed],
) -> None:
    asked = ("quant=mixed_4.5bits", "model=tiny", "tracking=none", "--cfg", "job")
    code, out, _ = in_process(folder, *asked)
    assert code == 0
    assert yaml.safe_load(out)["quant"]["name"] == NAME
    written = yaml.safe_load((folder / "outputs/conf/sweeps" / f"{NAME}.yaml").read_text())
    values = written["hydra"]["sweeper"]["params"]
    assert values["model"] == "tiny"
    assert values["quant"].split(",") == ["bf16", "nf4", *SCHEMES[:3], NAME, *CONTROLS]
    code, out, err = in_process(folder, f"sweeps={NAME}", "dry_run=true")
    assert code == 0, err
    assert "10 cells" in out
    code, _, err = in_process(folder, "quant=mixed")
    assert code == 2
    assert NAME in err


def test_its_cell_has_the_bytes_that_were_predicted(folder: Path, found: list[Mixed]) -> None:
    done = in_process(folder, "-m", f"quant={NAME},{CONTROLS[0]}", *TINY, "tracking=none")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {result.cell.quant.name: result for result in results(folder)}
    for each in found[:2]:
        attestation = cells[each.name].attestation
        assert attestation is not None
        assert attestation.weight_bytes == each.stored_bytes
    assert 0.97 * 4.5 < found[0].bits_per_weight <= 4.5  # 14 layers have no finer steps


def test_elsewhere_it_is_found_by_its_folder(
    folder: Path,
    found: list[Mixed],
) -> None:
    (folder / "below").mkdir()
    asked = ("--config-dir", "../outputs/conf", f"quant={NAME}", "model=tiny", "dry_run=true")
    code, _, err = in_process(folder / "below", *asked)
    assert code == 0, err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--objective time", "--objective time: want --max-kl, and no --budget"),
        ("--max-kl 0.1", "--max-kl: goes with --objective time"),
        ("quant=nf4 --budget 4bits", "--schemes: want more schemes to allocate, like .*"),
        (
            "quant=nf4_double_mixed --schemes nf4 --budget 4bits",
            "quant=nf4_double_mixed: has layers of other schemes; want one scheme",
        ),
    ],
)
def test_what_cannot_be_allocated_is_a_sentence(
    asked: str,
    said: str,
    tmp_path: Path,
) -> None:
    code, _, err = in_process(tmp_path, "sensitivity", *asked.split())
    assert code == 2
    assert re.fullmatch(said, err.strip())
