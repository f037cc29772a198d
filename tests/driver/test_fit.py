"""The search for the largest batch, and that of a real model."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.driver.fit import predicted_batch, search
from bench.driver.plan import resolve
from tests import fakes
from tests.command_line import bench, from_readme, results


@pytest.mark.parametrize("limit", [1, 2, 7, 40, 99, 1000, 12345])
@pytest.mark.parametrize("guess", [1, 8, 100, 5000])
def test_the_search_ends_within_a_twentieth_below_the_limit(limit: int, guess: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found = search(guess, fits)
    assert found <= limit <= found + max(1, found // 20)
    assert len(tried) == len(set(tried))


def test_a_good_guess_takes_few_tries() -> None:
    tried: list[int] = []
    search(95, lambda batch: tried.append(batch) or batch <= 100)  # type: ignore[func-returns-value]
    assert len(tried) <= 6


def test_when_nothing_fits_one_row_is_what_will_fail() -> None:
    assert search(64, lambda batch: False) == 1


def test_the_prediction_follows_the_memory() -> None:
    cell = resolve(fakes.cell(), fakes.host())
    small, large = (
        predicted_batch(cell, fakes.host(memory_bytes=size))
        for size in (400_000_000, 4_000_000_000)
    )
    assert 1 < small < large
    assert predicted_batch(cell, fakes.host(memory_bytes=1)) == 1


def test_the_largest_batch_is_found_and_measured(tmp_path: Path) -> None:
    """Different prompts run out before the memory does: the byte tokenizer makes one token of each
    byte of the text."""
    few = [
        *from_readme("python -m bench quant=nf4 batch=max"),
        "model=tiny",
        "workload.text=null",
        "workload.prompt=abcdefghij",
        "workload.prompt_tokens=2",
    ]
    short = ["workload.new_tokens=2", "measure.warmups=1", "measure.repeats=1"]
    done = bench(tmp_path, *few, *short)
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result.cell.batch == 10
    assert "batch=max is 10 for tiny/nf4/sdpa" in done.stderr


def test_what_a_large_model_would_take_is_predicted(tmp_path: Path) -> None:
    command = from_readme(
        "python -m bench -m model=mistral-7b model.weights=random batch=1,max dry_run=true"
    )
    done = bench(tmp_path, *command, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    batches = [
        int(words[0])
        for line in done.stdout.splitlines()
        if (words := line.split()) and words[-1] == "process"
    ]
    assert len(batches) == 2
    assert batches[0] == 1 < batches[1]
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_the_search_runs_without_torch() -> None:
    code = "import bench.driver.fit, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
