"""``choose`` through the real command line: the README's command, on less to choose from."""

from pathlib import Path

from bench.store.files import read_results
from tests.architectures import save_spread
from tests.command_line import from_readme, in_process, runs, sweep_folder

FEW = (
    "quant=fp32,nf4",
    "workload.new_tokens=4",
    "measure.warmups=1",
    "measure.repeats=2",
    "quality.text_tokens=256",
    "quality.prompts=null",
)


def test_a_model_of_ones_own_gets_an_answer(tmp_path: Path) -> None:
    save_spread(tmp_path / "mine")
    command = from_readme("python -m bench choose --goal chat --max-kl 0.05 --budget 20min")
    done = in_process(tmp_path, *command, "model=./mine", *FEW)
    assert done.returncode in (0, 4), done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == "asked for: shortest time per output token, KL at most 0.05 nat"
    assert "quant=" in second
    assert "AutoModelForCausalLM" in done.stdout
    results = list(read_results(sweep_folder(tmp_path)))
    searched = [r for r in results if r.cell.workload.text == "prose" and r.measurements]
    confirmed = [r for r in results if r.cell.workload.text == "alice" and r.measurements]
    assert len(searched) == 2
    assert confirmed
    assert all(result.divergence is not None for result in confirmed)
    ((parent,), children) = runs(tmp_path)
    assert len(children) == len(searched) + len(confirmed)
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)


def test_a_limit_of_divergence_that_nobody_reads_is_an_error(tmp_path: Path) -> None:
    done = in_process(tmp_path, "choose", "quant=bf16,fp16", "quality=none", "--max-kl", "0.1")
    assert done.returncode == 2
    assert done.stderr == "--max-kl: wants weights that are not random, and quality.texts\n"


def test_one_configuration_is_no_choice(tmp_path: Path) -> None:
    done = in_process(tmp_path, "choose", "quant=bf16")
    assert done.returncode == 2
    assert "nothing to choose from; want several values, like quant=bf16,nf4" in done.stderr
