"""The default model through the real command line: what it answers, and how far each kind of
quantization takes it from the model as published."""

import json
from pathlib import Path

from mlflow import MlflowClient

from bench.analysis.metrics import derive
from tests.command_line import (
    in_process,
    results,
    runs,
)


def test_the_default_model_answers_in_each_kind_of_quantization(tmp_path: Path) -> None:
    """The others differ in tables and scales: tests/engine has them on tiny models."""
    names = "fp32,bf16,int8,nf4"
    short = ["workload.new_tokens=4", "measure.warmups=1", "measure.repeats=1", "threads=1"]
    short += ["quality.max_new_tokens=8", "quality.text_tokens=64", "quality.window_tokens=64"]
    done = in_process(tmp_path, "-m", f"quant={names}", *short)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    for one in found:
        assert len(one.samples) >= 8
        if one.cell.quant.name in ("fp32", "bf16"):
            assert "Paris" in one.samples[0].answer
        assert one.revision == "0.1.2"
    bits = {r.cell.quant.name: derive(r)["bits_per_weight"] for r in found}
    assert bits["fp32"] > bits["bf16"] > bits["int8"] > bits["nf4"]
    kl = {result.cell.quant.name: derive(result)["kl_nats"] for result in found}
    assert abs(kl["fp32"]) < 1e-6  # it is the reference
    assert kl["bf16"] < kl["int8"] < kl["nf4"]
    for result in found:
        if result.cell.quant.name in ("int8", "nf4"):
            assert result.divergence is not None
            for window in result.divergence.windows:
                assert window.kl_nats > 5 * window.floor_kl_nats, result.cell.label
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    run = runs(tmp_path)[1][0]
    file = client.download_artifacts(run.info.run_id, "samples.json", str(tmp_path))
    table = json.loads(Path(file).read_text())
    assert table["columns"][:2] == ["prompt", "answer"]
    prompts = [sample.prompt for sample in found[0].samples]
    assert [row[0] for row in table["data"]] == prompts
