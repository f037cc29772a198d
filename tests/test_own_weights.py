"""Weights of our own through whole command lines: mixed layers, a study's folder, an export."""

from pathlib import Path

import pytest

from bench.engine.transformers.load import load
from tests import fakes
from tests.command_line import TINY, from_readme, in_process, results


def test_layers_of_a_model_may_differ(tmp_path: Path) -> None:
    command = from_readme(
        "python -m bench -m quant=nf4"
        ' \'quant.layers={"model.layers.{0,29}.mlp.down_proj": int8_channel, "**.o_proj": none}\''
    )
    done = in_process(tmp_path, *command, *TINY, "quality=none", "tracking=none")
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    attestation = result.attestation
    assert attestation is not None
    assert attestation.details["layers"] == {"Linear4bit": 11, "Int8Linear": 1, "Linear": 3}


def test_a_misspelt_layer_is_a_sentence(tmp_path: Path) -> None:
    layers = 'quant.layers={"model.layers.0.mlp.down_prj": int8_channel}'
    done = in_process(tmp_path, "-m", "quant=nf4", layers, *TINY, "tracking=none")
    said = " ".join((done.stdout + done.stderr).split())
    assert "quant.layers.model.layers.0.mlp.down_prj: no layer has such a name" in said
    assert "nearest is model.layers.*.mlp.down_proj" in said
    assert done.returncode == 2


def test_a_cell_is_exported_and_read_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    load(fakes.cell(model="tiny", quant="fp32"), None).save_pretrained(tmp_path / "mine")
    settings = [*TINY[1:], "quality=none", "tracking=none", "model.tokenizer=bytes"]
    done = in_process(tmp_path, "-m", "model=./mine", "quant=bf16,int4_g64", *settings)
    assert done.returncode == 0, done.stderr
    cells = {result.cell.quant.name: result.cell_id for result in results(tmp_path)}
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    folders = {name: str(sweep / cell_id) for name, cell_id in cells.items()}
    done = in_process(tmp_path, "export", folders["int4_g64"], "int4")
    assert done.returncode == 0, done.stderr
    assert "transformers loads it" in done.stdout + done.stderr
    again = in_process(tmp_path, "export", folders["int4_g64"], "int4")
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    plain = in_process(tmp_path, "export", folders["bf16"], "other")
    assert plain.returncode == 1
    assert "only pretrained weights that this project quantizes" in plain.stdout + plain.stderr
    whole = in_process(tmp_path, "export", str(sweep), "other")
    assert (whole.returncode, "holds 2 cells" in whole.stderr) == (2, True)
