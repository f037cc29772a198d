"""Files of other tools: which format a text is in, what is read of it, and what is said of a file
that is none or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.foreign import read
from bench.analysis.foreign.llama_bench import model_name
from bench.analysis.foreign.llm_d_report import as_report
from bench.analysis.foreign.lm_eval import flips
from bench.analysis.metrics import METRIC, derive
from bench.errors import ConfigError, StoreError
from bench.record.foreign import Foreign, from_json, to_json
from tests import fakes
from tests.analysis.test_advice import KNOWN

DATA = Path(__file__).parent.parent / "data" / "foreign"
LLAMA = (DATA / "llama_bench.json").read_text(encoding="utf-8")
RESULTS = "results_2025-06-01T10-00-00.000000.json"
SERVICE = "benchmark_report_v0.2.yaml"
STUDY = """\
# Source: someone
# Protocol: once
#   on Sunday
hardware,model,quant,attn,batch,prompt_tokens,new_tokens,tpot_s,e2e_s
A card,gpt2,nf4,,8,,4,0.5,
"""


def of(name: str) -> Foreign:
    (only,) = read((DATA / name).read_text(encoding="utf-8"), f"data/{name}")
    return only


def sample(doc: int, **scores: Any) -> dict[str, Any]:
    """A line of lm-eval's samples, with the fields that it has."""
    return {
        "doc_id": doc,
        "doc": {"question": "what?"},
        "target": "a",
        "arguments": {"gen_args_0": {"arg_0": "what?", "arg_1": " a"}},
        "resps": [[["-1.0", "True"]]],
        "filtered_resps": [["-1.0", "True"]],
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": f"hash{doc}",
        "prompt_hash": "p",
        "target_hash": "t",
        **scores,
    }


def samples(name: str, *right: float) -> Foreign:
    lines = [json.dumps(sample(doc, acc=value, acc_norm=0.0)) for doc, value in enumerate(right)]
    (only,) = read("\n".join(lines) + "\n", name)
    return only


def test_a_test_of_llama_bench_is_a_configuration() -> None:
    prefill, decode, quantized = read(LLAMA, "data/llama_bench.json")
    assert (prefill.tool, prefill.version) == ("llama-bench", "5163 8cf427ff")
    assert prefill.hardware == "AMD EPYC 7763 64-Core Processor"
    assert {each.model for each in (prefill, decode, quantized)} == {"SmolLM2-135M-Instruct"}
    assert [each.quant for each in (prefill, decode, quantized)] == ["fp16", "fp16", "gguf_q4_k_m"]
    assert (prefill.batch, prefill.prompt_tokens, prefill.new_tokens) == (1, 512, 0)
    assert (decode.batch, decode.prompt_tokens, decode.new_tokens) == (1, 0, 128)
    assert prefill.settings["n_threads"] == "2"
    assert prefill.values == {"prefill_tok_s": 256.0, "weight_bytes": 269060352.0}
    assert decode.values == {"tpot_s": 0.025, "decode_tok_s": 40.0, "weight_bytes": 269060352.0}
    assert prefill.samples["prefill_tok_s"] == pytest.approx((253.968, 256.0, 258.065), rel=1e-5)
    assert decode.samples["tpot_s"] == pytest.approx((3.21 / 128, 3.20 / 128, 3.19 / 128))
    assert decode.attn is None


def test_a_prefill_without_a_token_has_no_time_to_first_token() -> None:
    prefill, decode, _ = read(LLAMA, "llama_bench.json")
    assert "ttft_s" not in prefill.values
    assert "time to first token" in prefill.unknown
    assert "time to first token" not in decode.unknown
    assert {"warm-up", "dtype of products"} <= set(decode.unknown)
    assert "no token chosen; mean of 3 repetitions in one process" in prefill.protocol


def test_json_a_line_and_missing_fields_are_read_too() -> None:
    lines = "\n".join(json.dumps(test) for test in json.loads(LLAMA))
    listed, by_line = read(LLAMA, "a"), read(lines, "a")
    assert [each.values for each in by_line] == [each.values for each in listed]
    (bare,) = read('{"n_prompt": 0, "n_gen": 10, "avg_ns": 500000000, "new_field": [1]}\n', "a")
    assert bare.values == {"tpot_s": 0.05, "decode_tok_s": 20.0}
    assert (bare.model, bare.hardware, bare.quant, bare.version) == (None,) * 4
    assert (bare.settings, bare.samples) == ({}, {})


def test_a_prompt_and_an_answer_in_one_are_end_to_end() -> None:
    test = json.loads(LLAMA)[0] | {"n_prompt": 512, "n_gen": 128}
    (both,) = read(json.dumps([test]), "a")
    assert both.values == {"e2e_s": 2.0, "output_tok_s": 64.0, "weight_bytes": 269060352.0}
    assert both.samples == {"e2e_s": (2.016, 2.0, 1.984)}


@pytest.mark.parametrize(("layers", "hardware"), [(99, "A GPU"), (-1, "A GPU"), (0, "A CPU")])
def test_the_gpu_is_the_hardware_where_layers_are_on_it(layers: int, hardware: str) -> None:
    test = json.loads(LLAMA)[0] | {"gpu_info": "A GPU", "cpu_info": "A CPU"}
    assert read(json.dumps([test | {"n_gpu_layers": layers}]), "a")[0].hardware == hardware


@pytest.mark.parametrize(
    ("said", "quant"),
    [
        ("qwen2 7B BF16", "bf16"),
        ("llama 7B all F32", "fp32"),
        ("llama 7B mostly Q4_0", "gguf_q4_0"),
        ("qwen2 7B IQ4_XS - 4.25 bpw", "qwen2 7B IQ4_XS - 4.25 bpw"),
    ],
)
def test_a_type_that_we_do_not_have_stays_as_it_is_called(said: str, quant: str) -> None:
    test = json.loads(LLAMA)[0] | {"model_type": said}
    assert read(json.dumps([test]), "a")[0].quant == quant


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("models/7B/ggml-model-q4_0.gguf", "ggml-model"),
        (r"C:\models\Qwen2.5-7B-Instruct-Q4_K_M.gguf", "Qwen2.5-7B-Instruct"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("phi-4.gguf", "phi-4"),
    ],
)
def test_a_model_is_called_by_its_file_without_the_type(file: str, name: str) -> None:
    assert model_name(file) == name


def test_scores_of_lm_eval_have_our_keys_and_intervals() -> None:
    scores = of(RESULTS)
    assert (scores.tool, scores.version, scores.engine) == ("lm-eval", "0.4.9.2", "hf")
    assert scores.model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert scores.hardware == "NVIDIA H100 80GB HBM3"
    assert scores.values["task_arc_easy_acc"] == 0.6562
    assert scores.values["task_arc_easy_acc_low"] == pytest.approx(
        0.6562 - 1.96 * 0.00975, abs=1e-5
    )
    assert scores.values["task_gsm8k_exact_match_strict-match"] == 0.25
    assert "task_gsm8k_exact_match_strict-match_low" not in scores.values  # N/A
    assert scores.settings["dtype"] == "bfloat16"
    assert scores.settings["shots"] == "arc_easy 0, gsm8k 5"
    # A checkpoint in 4 bits computes in 16 as well
    assert scores.quant is None
    assert scores.unknown == ()


def test_an_evaluation_that_loads_in_4_bits_says_so() -> None:
    content = json.loads((DATA / RESULTS).read_text(encoding="utf-8"))
    content["config"]["model_args"] = {"pretrained": "gpt2", "load_in_4bit": True}
    del content["model_name"], content["pretty_env_info"]
    (found,) = read(json.dumps(content), "a")
    assert (found.quant, found.model, found.hardware) == ("load_in_4bit", "gpt2", None)
    assert found.unknown == ("dtype",)


def test_samples_are_a_mean_with_its_error_and_no_prompts() -> None:
    found = samples("gpt2/samples_arc_easy_2025-06-01T10-00-00.000000.jsonl", 1, 1, 0, 1)
    assert found.values["task_arc_easy_acc"] == 0.75
    assert found.values["task_arc_easy_acc_norm"] == 0.0
    # lm-eval's: the sample's deviation / sqrt(n)
    assert found.values["task_arc_easy_acc_high"] == pytest.approx(0.75 + 1.96 * 0.25, abs=1e-4)
    assert list(found.right.values()) == [True, True, False, True]
    assert "what?" not in to_json([found])
    assert samples("renamed.jsonl", 1, 0).unknown[-1] == "name of the task"


def test_two_files_of_samples_are_paired_by_item() -> None:
    task = "samples_arc_2025-06-01T10-00-00.0.jsonl"
    first, other = samples(f"a/{task}", 1, 1, 0, 1, 0), samples(f"b/{task}", 1, 0, 1, 0)
    found = flips(first, other)
    assert found is not None
    assert (found.items, found.worse, found.better) == (4, 2, 1)
    another = samples("b/samples_piqa_2025-06-01T10-00-00.0.jsonl", 1, 0, 1, 0)
    assert flips(first, another) is None


def test_a_service_is_read_in_medians_and_seconds() -> None:
    found = of(SERVICE)
    assert (found.tool, found.version, found.engine) == ("inference-perf", "0.3.0", "vllm 0.11.0")
    assert (found.model, found.hardware) == ("Qwen/Qwen3-0.6B", "2 x NVIDIA-H100-80GB-HBM3")
    assert found.values == {
        "ttft_s": pytest.approx(0.050),
        "tpot_s": pytest.approx(0.008),  # its mean: it has no median
        "e2e_s": 8.0,
        "output_tok_s": 9987.0,
    }
    assert (found.batch, found.prompt_tokens, found.new_tokens) == (None, 2262, 999)
    assert found.settings == {"dtype": "bfloat16", "rate_qps": "10"}
    assert found.quant is None
    assert found.unknown == ("warm-up", "definition of time to first token")


def test_a_cell_as_a_report_gives_the_same_figures_again() -> None:
    for result in KNOWN[-2:]:
        values = derive(result)
        text = json.dumps(as_report(result, values, fakes.provenance()))
        (again,) = read(text, "a.json")
        assert again.values == values
        assert (again.model, again.quant, again.attn, again.batch) == (
            result.cell.model.name,
            result.cell.quant.name,
            result.cell.attn.name,
            result.cell.batch,
        )
        assert again.unknown == ()


def test_the_standard_part_of_a_report_tells_the_same_of_a_single_process() -> None:
    result = fakes.result()  # a process of three requests
    values = derive(result)
    report = as_report(result, values, fakes.provenance())
    del report["results"]["observability"]
    (others,) = read(json.dumps(report), "a.json")
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        assert others.values[key] == pytest.approx(values[key])
    assert (others.prompt_tokens, others.new_tokens) == (8, 4)


@pytest.mark.parametrize("result", [fakes.result(), KNOWN[-1]], ids=["one process", "several"])
def test_a_report_is_what_the_models_of_llm_d_take(result: Any) -> None:
    from llmd_benchmark_report import load_benchmark_report

    report = as_report(result, derive(result), fakes.provenance())
    taken = load_benchmark_report(report).dump()
    latency = taken["results"]["request_performance"]["aggregate"]["latency"]
    assert latency["time_to_first_token"]["units"] == "s"
    assert taken["scenario"]["load"]["standardized"]["concurrency"] == result.cell.batch
    assert taken["results"]["observability"]["bench"]["metrics"] == derive(result)


def test_a_report_names_the_device_that_the_cell_ran_on() -> None:
    for device, model, count in (("cuda", "Some GPU", 1), ("cpu", "Some CPU", 0)):
        result = fakes.result(cell=fakes.cell(device=device), host=fakes.gpu_host())
        (part,) = as_report(result, {}, fakes.provenance())["scenario"]["stack"]
        accelerator = part["standardized"]["accelerator"]
        assert (accelerator["model"], accelerator["count"]) == (model, count)


def test_an_empty_field_of_a_study_is_unknown() -> None:
    (row,) = read(STUDY, "studies/a.csv")
    assert (row.source, row.protocol, row.values) == ("someone", "once", {"tpot_s": 0.5})
    assert (row.model, row.quant, row.batch, row.new_tokens) == ("gpt2", "nf4", 8, 4)
    assert (row.attn, row.prompt_tokens) == (None, None)


def test_every_value_has_a_key_of_ours() -> None:
    everything = [*read(LLAMA, "a"), of(SERVICE), *read(STUDY, "a")]
    assert {key for each in everything for key in each.values} <= METRIC.keys()


ANOTHER = "want llama-bench's json or jsonl, lm-eval's results or samples, llm-d's Benchmark Report"
TEST = '{"n_prompt": 0, "n_gen": 10, "avg_ns": 5'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", f"a.json: empty; {ANOTHER}"),
        ("# a readme\n", f"a.json: of no format that is known here; {ANOTHER}"),
        ("quant,batch\nnf4,1\n", f"a.json: of no format that is known here; {ANOTHER}"),
        ('{"results": {}}', f"a.json: JSON of another kind; {ANOTHER}"),
        ("[]", f"a.json: JSON of another kind; {ANOTHER}"),
        ("[1, 2]", f"a.json: JSON of another kind; {ANOTHER}"),
        (LLAMA[:-200], f"a.json: damaged JSON; {ANOTHER}"),
        (f"{TEST}}}\n{TEST}", f"a.json: damaged JSON; {ANOTHER}"),
        (f'{TEST}, "model_type": 4}}', "a.json: not as llama-bench writes it (model_type=4: want"),
        (f'{TEST}, "samples_ns": [0]}}', "a.json: not as llama-bench writes it (samples_ns[0]=0: "),
        ('[{"n_prompt": 1, "n_gen": 0, "avg_ns": 0}]', "a.json: not as llama-bench writes it (avg"),
        ('{"version": "0.1", "run": {}, "results": {}}', "a.json: a Benchmark Report of version 0"),
        ('{"version": "0.2", "run": {}, "results": {}}', "a.json: no figure in it that is read"),
        ('{"versions": {}, "results": {"a": {"acc,none": "N/A"}}}', "a.json: no score in it"),
        ('{"doc_id": 1, "resps": []}', "a.json: no score in its lines"),
        (STUDY.replace("# Protocol", "# Method"), "a.json: no line that begins with # Protocol:"),
        (STUDY.replace("tpot_s", "latency"), "a.json: latency: no metric of ours; want hardware"),
        (STUDY.replace(",batch", ""), "a.json: no column batch; want hardware"),
        (STUDY.replace("0.5", "fast"), "a.json: not as a table of figures writes it (values.tpot"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, "a.json")
    (problem,) = caught.value.problems
    assert problem.startswith(said)


def test_units_that_nobody_knows_are_refused() -> None:
    text = (DATA / SERVICE).read_text(encoding="utf-8").replace("units: ms,", "units: us,")
    with pytest.raises(ConfigError, match=r"^a: units=us: want one of s, ms, s/token"):
        read(text, "a")


def test_a_record_comes_back_as_it_was_and_a_damaged_one_is_named() -> None:
    everything = (*read(LLAMA, "a"), of(RESULTS), of(SERVICE), *read(STUDY, "a"))
    assert from_json(to_json(everything), "foreign.json") == everything
    for text in ("{}", "[", '[{"file": "a"}]', '[{"file": 1}]'):
        with pytest.raises(StoreError, match=r"^foreign\.json: "):
            from_json(text, "foreign.json")


def test_what_looks_like_a_secret_is_hidden() -> None:
    content = json.loads((DATA / RESULTS).read_text(encoding="utf-8"))
    content["model_name"] = "hf_" + "a" * 30
    assert "hf_aaa" not in to_json(read(json.dumps(content), "a"))
