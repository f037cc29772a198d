"""How times grow with the context, through the real command line: a tiny model at four depths, and
a fifth one that the first sweep has predicted."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from bench.store.files import GROWTH, read_growths
from tests.command_line import TINY, from_readme, in_process


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sweeps and what they printed."""
    folder = tmp_path_factory.mktemp("depth")
    command = from_readme(
        "python -m bench -m quant=bf16,nf4 workload.prompt_tokens=128,512,2048,4096"
    )
    tiny = [*TINY, "quant=fp32", "quality=none"]
    done = in_process(folder, *(word for word in command if not word.startswith("quant")), *tiny)
    assert done.returncode == 0, done.stderr
    (folder / "first").write_text(done.stdout)
    done = in_process(folder, *tiny, "workload.prompt_tokens=6144")
    assert done.returncode == 0, done.stderr
    (folder / "second").write_text(done.stdout)
    return folder


def sweeps(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "sweeps").iterdir())


def test_the_sweep_says_what_context_costs_and_writes_it_down(deep: Path) -> None:
    first, second = sweeps(deep)
    said = " ".join((deep / "first").read_text().split())
    assert "context: " in said
    assert "one process a depth cannot tell whether these are straight lines" in said
    (growth,) = read_growths(second).values()
    assert growth.sweep_id == first.name
    assert growth.prompt_tokens == (128, 512, 2048, 4096)
    assert growth.step.df == 2
    assert growth.prefill is not None
    # Of random layers as small as these the prefill alone surely grows
    assert growth.prefill.coefficients[1] * 4096 + growth.prefill.coefficients[2] * 4096**2 > 0
    assert (first / "depth.png").stat().st_size > 1000
    assert read_growths(first) == {}


def test_the_next_one_scores_it_and_its_report_does_again(deep: Path) -> None:
    first, second = sweeps(deep)
    said = " ".join((deep / "second").read_text().split())
    assert f"predicted by the fits of sweep {first.name}: model=tiny quant=fp32 batch=1" in said
    assert " at 6,144 tokens TPOT " in said
    assert not (second / GROWTH).exists()
    for folder, is_scored in ((second, True), (first, False)):
        done = in_process(deep, "report", str(folder))
        assert done.returncode == 0, done.stderr
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert ("predicted by the fits of sweep" in page) is is_scored


def test_the_fit_is_a_metric_of_each_of_its_cells(deep: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{deep / 'outputs' / 'mlflow.db'}")
    first, second = sweeps(deep)
    ids = [each.experiment_id for each in client.search_experiments()]
    grown = read_growths(second).popitem()[1]
    cells = client.search_runs(
        ids, f"tags.`bench.sweep_id` = '{first.name}' and tags.`bench.kind` = 'cell'"
    )
    assert len(cells) == 4
    for run in cells:
        base_s, per_token_s = grown.step.coefficients
        assert run.data.metrics["step_base_s"] == pytest.approx(base_s, rel=1e-5)
        assert run.data.metrics["step_per_context_token_s"] == pytest.approx(per_token_s, rel=1e-5)
        assert run.data.metrics["step_per_context_token_s_low"] < per_token_s
    (alone,) = client.search_runs(ids, f"tags.`bench.sweep_id` = '{second.name}'")
    assert "step_base_s" not in alone.data.metrics
