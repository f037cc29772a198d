"""A second real engine, in an interpreter without torch: its rules here, its numbers where it is
built (make engine-llama_cpp)."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.cell import Cell
from bench.config.models import own_model
from bench.driver.plan import unknown_names, why_not
from bench.driver.process import Task, run_isolated
from bench.engine import sources
from bench.engine.llama_cpp import ENGINE
from bench.engine.protocol import ENGINES
from bench.errors import CellFailure
from bench.paths import CONF, ROOT, interpreter
from tests import fakes

PYTHON = interpreter(fakes.cell(engine="llama_cpp").engine.python)
built = pytest.mark.skipif(
    not (ROOT / ".engines/llama_cpp/.installed").is_file(),
    reason="make engine-llama_cpp has not been run",
)
DITHERED = fakes.group("model", "smollm2-135m", weights="dithered")
GGUF = fakes.group("quant", "gguf_q8_0")
TYPES = sorted(file.stem for file in (CONF / "quant").glob("gguf_*.yaml"))


@pytest.fixture(autouse=True)
def _threads_that_wait_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that spin where they wait for each other hardly get on beside other tests: a request
    of a second took minutes."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")


def cell(engine: str = "llama_cpp", **changes: Any) -> Cell:
    workload = {"name": "few", "text": "prose", "prompt_tokens": 32, "new_tokens": 16}
    return fakes.cell(**{"engine": engine, "quant": "fp16", "workload": workload} | changes)


def run(name: str, tmp_path: Path, of: Cell, *arguments: Any, python: str | None = None) -> Any:
    place = ENGINES[of.engine.name]
    task = Task(name, (place, of, *arguments), python=python or of.engine.python)
    return run_isolated(task, lambda *_: None, tmp_path / "log")


def test_the_driver_can_import_it_without_its_libraries() -> None:
    code = (
        "import sys, bench.engine.llama_cpp\n"
        "print(sorted({'llama_cpp', 'gguf', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_relative_interpreter_is_below_the_checkout() -> None:
    assert str(ROOT / ".engines/llama_cpp/bin/python") == PYTHON
    assert interpreter("/usr/bin/python3") == "/usr/bin/python3"
    assert interpreter(None) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quant": "nf4"}, "quant.scheme=bnb_4bit: no such one; engine=llama_cpp has none, gguf"),
        (
            {"attn": "eager"},
            "attn.implementation=eager: no such one; engine=llama_cpp has only sdpa",
        ),
        ({"attn": "sdpa_math"}, "attn.backend=math: no such one; engine=llama_cpp has only null"),
        (
            {"decode": "generate"},
            "decode.strategy=generate: no such one; engine=llama_cpp has only loop",
        ),
        (
            {"engine": {"name": "llama_cpp", "options": {"mmap": True}}},
            "engine.options.mmap=true: unknown key; known are kv",
        ),
        (
            {"engine": {"name": "llama_cpp", "options": {"kv": "q5_0"}}},
            "engine.options.kv=q5_0: want one of f16, q8_0, q4_0",
        ),
        (
            {"quant": {**GGUF, "parameters": {"type": "q3"}}},
            "quant.parameters.type=q3: want one of native, q8_0",
        ),
        ({"quant": {**GGUF, "dtype": "bf16"}}, "quant.dtype=bf16: want fp32"),
        (
            {"quant": fakes.group("quant", "fp16", layers={"*": {"name": "x", "scheme": "none"}})},
            "quant.layers: llama.cpp quantizes a file as a whole",
        ),
    ],
)
def test_names_that_it_does_not_have(changes: dict[str, Any], sentence: str) -> None:
    (found,) = ENGINE.unknown_names(cell(**changes))
    assert found.startswith(sentence)
    assert ENGINE.unknown_names(cell()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": 257}, "engine=llama_cpp runs at most 256 sequences: batch=256"),
        ({"device": "cuda"}, "engine=llama_cpp is built for the CPU: device=cpu"),
        (
            {"model": fakes.group("model", "gpt2", weights="random")},
            "engine=llama_cpp has no random weights: pretrained ones",
        ),
        (
            {"model": DITHERED, "quant": "gguf_native"},
            "quant=gguf_native is the published file, which has no noise: name a type",
        ),
        (
            {"engine": {"name": "llama_cpp"}},
            "engine=llama_cpp lives in an environment of its own: make engine-llama_cpp",
        ),
        (
            {"engine": {"name": "llama_cpp", "python": "no/such/python"}},
            "engine=llama_cpp lives in an environment of its own: make engine-llama_cpp",
        ),
    ],
)
def test_what_it_cannot_run_is_skipped(changes: dict[str, Any], reason: str) -> None:
    outcome = ENGINE.why_not(cell(**changes), fakes.host())
    assert isinstance(ENGINE.lines(cell(**changes)), str)  # asked of each cell before it is known
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("skipped", reason)


@built
def test_what_it_can_run_is_not_skipped() -> None:
    for batch in (1, 256, "max"):
        assert ENGINE.why_not(cell(batch=batch), fakes.host()) is None


@pytest.mark.parametrize("quant", TYPES)
def test_its_types_are_names_that_only_transformers_lacks(quant: str) -> None:
    assert ENGINE.unknown_names(cell(quant=quant)) == []
    for engine in ("llama_cpp", "transformers"):
        assert unknown_names(cell(engine, quant=quant)) == []
    outcome = why_not(fakes.resolved(quant=quant), fakes.host(), None)
    assert outcome is not None
    assert outcome.status == "skipped"
    assert str(outcome.reason).startswith("quant.scheme=gguf: no such scheme; engine=transformers")


@built
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda model: dataclasses.replace(model, name="new"), "python -m bench fetch new` once"),
    ],
)
def test_a_model_whose_files_it_cannot_make_says_what_to_do(
    change: Callable[[Any], Any], advice: str, tmp_path: Path
) -> None:
    of = cell()
    with pytest.raises(CellFailure, match=advice) as caught:
        run("bench.meter.cell:try_cell", tmp_path, dataclasses.replace(of, model=change(of.model)))
    assert caught.value.status == "failed"


@built
def test_a_timed_process_without_torch(tmp_path: Path) -> None:
    task = "tests.engine.foreign:measure_and_list_modules"
    found, modules = run(task, tmp_path, cell())
    assert "llama_cpp" in modules
    assert "torch" not in modules
    assert found.revision == "0.1.2"
    attested, measured = found.attestation, found.measurement
    assert attested.mismatches == ()
    embedding = 49152 * 576
    layer = 576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536
    vectors = 61 * 576
    assert attested.logical_weights == embedding + 30 * layer + vectors
    assert attested.weight_bytes == 2 * (embedding + 30 * layer) + 4 * vectors
    assert attested.matmul_weights == 30 * layer
    assert (attested.head_bytes, attested.gathered_bytes) == (2 * embedding, 0)
    assert attested.kv_bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert (attested.executed_dtype, attested.is_quantized) == ("fp16", False)
    assert attested.details["layers"] == {"F16": 211}
    assert measured is not None
    assert measured.prompt_tokens == 32
    assert len(measured.repeats[0].decode_step_s) == 15
    # Read and not mapped, the weights are in memory of the process's own
    assert measured.run_memory.rss_anon_bytes > attested.weight_bytes


@built
def test_each_row_of_a_batch_gets_the_tokens_that_transformers_chooses(tmp_path: Path) -> None:
    task = "tests.engine.foreign:greedy_tokens"
    of = {"quant": "fp32", "batch": 3}
    ours = run(task, tmp_path, cell("transformers", **of), python=sys.executable)
    assert run(task, tmp_path, cell(**of)) == ours
    assert len({tuple(row) for row in ours}) == 3


@built
@pytest.mark.parametrize(
    ("quant", "kv", "layers", "bits", "kv_bytes"),
    [
        ("fp32", "f16", {"F32": 211}, 32.0, 2),
        ("gguf_q8_0", "q8_0", {"Q8_0": 211}, 8.5, 34 / 32),
        # As published: the table that is both embedding and head has 8 bits
        ("gguf_native", "q4_0", {"Q4_1": 210, "Q8_0": 1}, 5.74, 18 / 32),
    ],
)
def test_types_of_weights_and_cache_are_what_they_say(
    quant: str, kv: str, layers: dict[str, int], bits: float, kv_bytes: float, tmp_path: Path
) -> None:
    options = fakes.group("engine", "llama_cpp", options={"kv": kv})
    of = cell(engine=options, quant=quant, batch=2)
    attested = run("tests.engine.foreign:attested", tmp_path, of)
    assert attested.mismatches == ()
    assert attested.details["layers"] == layers
    assert attested.weight_bytes * 8 / attested.logical_weights == pytest.approx(bits, abs=0.01)
    assert attested.is_quantized == quant.startswith("gguf")
    assert attested.executed_dtype == ("int8" if quant.startswith("gguf") else "fp32")
    assert attested.kv_bytes_per_token == 30 * 2 * 3 * 64 * kv_bytes
    assert attested.details["kv_cache_sequences"] == 2


@built
def test_a_type_that_the_models_rows_do_not_take_is_no_number(tmp_path: Path) -> None:
    of = cell(quant="gguf_q4_k_m")
    (mismatch,) = run("tests.engine.foreign:attested", tmp_path, of).mismatches
    assert mismatch.startswith("llama.cpp stored 13% of the layers' weights as Q4_K: 74% Q5_0")


@built
@pytest.mark.parametrize("quant", ["fp16", "gguf_q4_0"])
def test_a_file_is_the_same_whichever_file_it_is_made_of(quant: str, tmp_path: Path) -> None:
    task = "tests.engine.foreign:written_twice"
    once, again = run(task, tmp_path, cell(quant=quant), str(tmp_path))
    assert once == again


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in bf16 with the tokenizer of the default one: the converter knows tokenizers
    by what they make of a text. Its rows are multiples of 256, as K-quants want them."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("small") / "two-layers"
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=49152, **sizes, **heads, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(place)
    default = sources.fetch(fakes.cell().model)
    AutoTokenizer.from_pretrained(default).save_pretrained(place)
    return place


def of_folder(folder: Path, **changes: Any) -> Cell:
    given = own_model(str(folder))
    assert given is not None
    return cell(model=given, **changes)


@built
def test_a_folder_is_converted_once_and_predicts_what_transformers_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    tokens = [
        run("tests.engine.foreign:greedy_tokens", tmp_path, of, python=python)
        for of, python in (
            (of_folder(folder, quant="fp32"), None),
            (of_folder(folder, quant="fp32", engine="transformers"), sys.executable),
        )
    ]
    assert tokens[0] == tokens[1]
    files = sorted(file.name for file in (tmp_path / "cache" / "models").iterdir())
    (stem,) = {name.partition(".")[0].removesuffix("-f32") for name in files}
    assert files == [f"{stem}-f32.gguf", f"{stem}-f32.json", f"{stem}.gguf"]
    assert stem.startswith("two-layers-")
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors"}
    assert not list(folder.glob("*gguf*"))
    native = run("tests.engine.foreign:attested", tmp_path, of_folder(folder, quant="gguf_native"))
    assert native.details["layers"] == {"BF16": 15}
    assert f"{stem}.gguf" in ENGINE.lines(of_folder(folder, quant="gguf_native"))


@built
@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("raise NotImplementedError('BPE pre-tokenizer')", "skipped", "NotImplementedError: BPE"),
        ("raise MemoryError", "oom", "memory did not suffice"),
        ("import os; os.kill(os.getpid(), 9)", "oom", "memory did not suffice"),
        ("import nothing_like_it", "failed", "ModuleNotFoundError"),
        ("raise OSError(28, 'No space left on device')", "failed", "No space left on device"),
    ],
)
def test_how_the_converter_ends_is_a_sentence(
    script: str, status: str, reason: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CellFailure, match=reason) as caught:
        run("tests.engine.foreign:converted_by", tmp_path, cell(), script, str(folder))
    assert caught.value.status == status


@built
def test_no_code_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    script = (
        "from transformers import AutoTokenizer; import sys\n"
        "AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    settings = json.loads((bad / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["planted.Planted", None]}
    settings["tokenizer_class"] = "Planted"
    (bad / "tokenizer_config.json").write_text(json.dumps(settings))
    marker = tmp_path / "marker"
    (bad / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Planted: pass\n")
    with contextlib.suppress(CellFailure):  # whether it does without is the converter's affair
        run("tests.engine.foreign:converted_by", tmp_path, cell(), script, str(bad))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("dtypes", "kind"),
    [
        (["BF16", "BF16"], "bf16"),
        (["F16", "F16"], "f16"),
        (["F32", "F32"], "f32"),
        (["BF16", "F32"], "f32"),
        (["I32", "F16"], "auto"),
    ],
)
@built
def test_the_files_say_what_dtype_weights_have(
    dtypes: list[str], kind: str, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    known = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I32": "int32"}
    tensors = {str(i): torch.zeros(2, 2).to(getattr(torch, known[d])) for i, d in enumerate(dtypes)}
    save_file(tensors | {"norm": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert run("tests.engine.foreign:type_of", tmp_path, cell(), str(tmp_path)) == kind


@built
def test_k_quants_of_rows_that_they_take_are_what_they_say(folder: Path, tmp_path: Path) -> None:
    attested = run(
        "tests.engine.foreign:attested", tmp_path, of_folder(folder, quant="gguf_q4_k_m")
    )
    assert attested.mismatches == ()
    assert set(attested.details["layers"]) == {"Q4_K", "Q6_K"}
    assert attested.is_quantized


@built
def test_a_folder_that_the_converter_does_not_know_is_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    config["architectures"] = ["NobodysForCausalLM"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CellFailure, match=r"llama\.cpp's converter, of .*Nobodys") as caught:
        run("bench.meter.cell:try_cell", tmp_path, of_folder(other, quant="fp32"))
    assert caught.value.status == "skipped"


@built
def test_a_context_that_memory_has_no_room_for_is_oom(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="no room for 8 x 100,000 tokens in f16") as caught:
        run("tests.engine.foreign:context_in_little_memory", tmp_path, cell(), 8, 100_000)
    assert caught.value.status == "oom"


@built
def test_more_sequences_than_it_has_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="at most 256 sequences, not 257") as caught:
        run("bench.meter.cell:try_cell", tmp_path, cell(batch=257))
    assert caught.value.status == "oom"


@built
@pytest.mark.parametrize("weights", ["pretrained", "dithered"])
def test_its_predictions_are_those_of_transformers(weights: str, tmp_path: Path) -> None:
    quality = fakes.group("quality", "samples", text_tokens=256, window_tokens=128, prompts=None)
    model = fakes.group("model", "smollm2-135m", weights=weights)
    reference, file = (
        cell("transformers", quality=quality, model=model),
        str(tmp_path / "reference"),
    )
    fp32 = dataclasses.replace(reference, quant=fakes.cell(quant="fp32").quant)
    task = "bench.meter.reference:keep_reference"
    # No noise floor is asked for: the same dtype again is the cheapest
    run(task, tmp_path, fp32, fp32.quant, file, python=sys.executable)
    asks = weights == "pretrained"  # answers of the other are no other kind
    quality["prompts"] = "basic" if asks else None
    asked = cell(quality=quality, model=model, quant="fp32")
    answers = run("bench.meter.answers:answer_cell", tmp_path, asked, file)
    assert [window.tokens for window in answers.divergence.windows] == [127, 127]
    for window in answers.divergence.windows:
        assert window.kl_nats < 1e-4  # 2.8e-6 on 2,040 tokens as published, 2026-11-26
        assert window.top1_agreement > 0.97
    assert len(answers.samples) == (8 if asks else 0)
    assert any(sample.ended for sample in answers.samples) is asks


@built
def test_its_lines_load_the_very_file(tmp_path: Path) -> None:
    of = cell()
    run("tests.engine.foreign:greedy_tokens", tmp_path, of)  # which makes the file
    code = ENGINE.lines(of)
    assert "\n# a server: llama-server -m " in code
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True)
    assert "'finish_reason': 'length'" in done.stdout
    published = sources.original(of.model)
    assert published.is_file()
    assert f"Modelfile with the line FROM {published}\n" in ENGINE.lines(cell(quant="gguf_native"))


@built
def test_logits_of_several_rows_and_of_the_other_attention(tmp_path: Path) -> None:
    same, positions, apart = run("tests.engine.foreign:logits_twice", tmp_path, cell())
    assert same
    assert positions == 32
    assert 0 < apart < 0.5
