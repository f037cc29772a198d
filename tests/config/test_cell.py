"""The identity of a cell, and the configuration as a whole."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench.config.cell import (
    Attn,
    Cell,
    LayerQuant,
    Measure,
    Model,
    Package,
    Requires,
    Workload,
    cell_id,
    digest,
    identity,
    sample_key,
)
from bench.config.parse import parse
from bench.config.settings import Baseline, Settings, Tracking, parse_config
from bench.driver import plan
from bench.driver.worker import begin
from bench.errors import ConfigError
from bench.paths import ROOT
from tests import fakes

BASE = fakes.cell(
    quant=fakes.group("quant", "nf4", dtype="bf16"),
    quality="samples",
)

OTHER_VALUES: dict[str, Any] = {
    "model.name": "other",
    "model.architecture": {"model_type": "other"},
    "model.weights": "random",
    "model.tokenizer": "bytes",
    "model.repo": "some/repo",
    "model.revision": "main",
    "model.package": Package("other", "1", "file", "0"),
    "model.path": "/models/other",
    "quant.name": "other",
    "quant.scheme": "none",
    "quant.dtype": "fp16",
    "quant.parameters": {"quant_type": "fp4"},
    "quant.layers": {"model.layers.0.**": LayerQuant("none", "none")},
    "engine.name": "other",
    "engine.options": {"script": "ttft 1"},
    "attn.name": "other",
    "attn.implementation": "eager",
    "attn.backend": "math",
    "attn.packs_queries": True,
    "decode.name": "other",
    "decode.strategy": "generate",
    "workload.name": "other",
    "workload.new_tokens": 5,
    "workload.prompt_tokens": 9,
    "workload.text": "other",
    "measure.name": "other",
    "measure.warmups": 2,
    "measure.window": 2,
    "measure.repeats": 6,
    "measure.target": 0.5,
    "measure.budget_s": 1.0,
    "measure.passes": 2,
    "measure.telemetry_s": 5.0,
    "quality.name": "other",
    "quality.prompts": "other",
    "quality.max_new_tokens": 49,
    "quality.prompt_limit": 49,
    "quality.digests": ("0",),
    "quality.texts": ("prose",),
    "quality.text_tokens": 49,
    "quality.window_tokens": 49,
    "quality.choices": "other",
    "quality.strided_perplexity": True,
    "quality.tasks": ("other",),
    "quality.task_folder": "other",
    "quality.task_limit": 49,
    "batch": 2,
    "device": "cuda",
    "seed": 1,
    "threads": 1,
    "cpus": (0, 1),
}
WITHOUT_IDENTITY: dict[str, Any] = {
    "model.published_in": "Q8_0",
    "quant.requires": Requires(device="cuda"),
    "attn.requires": Requires(capability=9.0),
    "decode.requires": Requires(compiler=True),
    "engine.python": "/another/python",
    "quality.store_prompts": False,
    "measure.limits_s": {"load": 1.0},
    "measure.resume": True,
}


def _care(**changes: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in fakes.group("measure", "quick", **changes).items()
        if name != "name"
    }


def changed(cell: Cell, path: str, value: Any) -> Cell:
    group, _, name = path.rpartition(".")
    return replace(
        cell, **{group: replace(getattr(cell, group), **{name: value})} if group else {name: value}
    )


def paths(cell: Cell) -> Iterator[str]:
    for field in dataclasses.fields(cell):
        value = getattr(cell, field.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{below.name}" for below in dataclasses.fields(value))
        else:
            yield field.name


def test_the_tests_below_know_every_field_of_a_cell() -> None:
    of_prompts = {f"workload.{name}" for name in ("prompt", "path", "sha256", "bucket")}
    instead_of_others = {*of_prompts, "model.config"}
    assert {*OTHER_VALUES, *WITHOUT_IDENTITY, *instead_of_others} == set(paths(BASE))


def test_cell_id_changes_with_every_field_that_can_change_a_number() -> None:
    ids = {path: cell_id(changed(BASE, path, value)) for path, value in OTHER_VALUES.items()}
    assert cell_id(BASE) not in ids.values()
    assert len(set(ids.values())) == len(ids)


def test_a_field_that_came_later_renames_no_cell_that_does_not_use_it() -> None:
    assert "choices" not in identity(BASE.quality)
    assert "choices" in identity(changed(BASE, "quality.choices", "shipped").quality)


def test_cell_id_changes_with_the_prompt() -> None:
    one, other = (
        fakes.cell(workload={"name": "w", "new_tokens": 2, "prompt": prompt})
        for prompt in ("a", "b")
    )
    assert cell_id(one) != cell_id(other)


def test_cell_id_changes_with_the_configuration_of_random_weights() -> None:
    random = changed(BASE, "model.weights", "random")
    assert cell_id(random) != cell_id(changed(random, "model.config", "/models/config.json"))


def test_cell_id_is_of_what_is_in_a_file_of_prompts_and_not_of_where_it_lies() -> None:
    own = {"name": "w", "new_tokens": 2, "path": "/a/b.jsonl", "sha256": "0", "bucket": "to8"}
    one = fakes.cell(workload=own)
    assert cell_id(fakes.cell(workload=own | {"path": "/c/b.jsonl"})) == cell_id(one)
    others = [fakes.cell(workload=own | {key: "1"}) for key in ("sha256", "bucket")]
    assert len({cell_id(one), *map(cell_id, others)}) == 3
    assert sample_key(others[0]) != sample_key(one) == sample_key(others[1])


def test_a_prompt_that_is_typed_cannot_be_kept_out_of_what_is_tracked() -> None:
    quality = fakes.group("quality", "samples", store_prompts=False)
    workload = {"name": "w", "new_tokens": 2, "prompt": "a"}
    with pytest.raises(ConfigError, match=r"put it in a file: workload=prompts workload.path=FILE"):
        fakes.cell(quality=quality, workload=workload)


def test_cell_id_stays_when_only_requirements_or_limits_change() -> None:
    for path, value in WITHOUT_IDENTITY.items():
        other = changed(BASE, path, value)
        assert other != BASE, path
        assert cell_id(other) == cell_id(BASE), path


def test_cell_id_is_of_the_asked_cell_and_so_the_same_on_every_machine() -> None:
    asked = fakes.cell(device="auto", threads="auto", quant="nf4", batch="max")
    here, there = (plan.resolve(asked, host) for host in (fakes.host(), fakes.gpu_host(cpus=64)))
    assert cell_id(here) != cell_id(there)
    begun = [begin(asked, cell, fakes.host()) for cell in (here, there)]
    assert {result.cell_id for result in begun} == {cell_id(asked)}
    assert cell_id(replace(asked, batch=7)) != cell_id(asked)  # max is a value of its own


def test_cell_id_is_twelve_hexadecimal_digits() -> None:
    assert len(cell_id(BASE)) == 12
    assert int(cell_id(BASE), 16) >= 0


def test_cell_id_is_the_same_in_another_process() -> None:
    code = (
        "from tests import fakes; from bench.config.cell import cell_id;"
        " print(cell_id(fakes.cell(quant='nf4', batch=8)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == cell_id(fakes.cell(quant="nf4", batch=8))


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": (2, None)}) == digest({"b": [2, None], "a": 1})


def test_a_digest_is_the_same_everywhere() -> None:
    # printf '{"a":[1,null,"x"]}' | sha256sum | cut -c 1-12
    assert digest({"a": (1, None, "x")}) == "09eb9d670454"


def test_sample_key_is_shared_by_cells_that_give_the_same_answers() -> None:
    others = OTHER_VALUES | WITHOUT_IDENTITY
    for path in ("batch", "workload.new_tokens", "measure.repeats", "decode.name", "attn.requires"):
        other = changed(BASE, path, others[path])
        assert other != BASE, path
        assert sample_key(other) == sample_key(BASE), path


ANSWERED = (
    "model.revision",
    "engine.options",
    "quant.parameters",
    "attn.backend",
    "quality.max_new_tokens",
    "quality.texts",
    "device",
    "seed",
    "threads",
)


def test_sample_key_changes_with_what_can_change_an_answer() -> None:
    keys = {path: sample_key(changed(BASE, path, OTHER_VALUES[path])) for path in ANSWERED}
    assert len({*keys.values(), sample_key(BASE)}) == len(ANSWERED) + 1


def test_a_configuration_is_a_cell_and_its_settings() -> None:
    config = parse_config(fakes.config_mapping(baseline={"quant": "fp16"}))
    assert config.cell == fakes.cell()
    assert config.settings == Settings(
        Tracking("none", False, "tests"),
        Baseline(quant="fp16"),
        "outputs",
        margin=0.03,
        price_per_hour=None,
        resume=None,
        profile=False,
        dry_run=False,
    )


def test_settings_are_no_part_of_the_cell() -> None:
    usual = parse_config(fakes.config_mapping())
    for changes in ({"output_dir": "elsewhere"}, {"price_per_hour": 2.5}):
        other = parse_config(fakes.config_mapping(**changes))
        assert usual != other
        assert cell_id(usual.cell) == cell_id(other.cell)


@pytest.mark.parametrize("cpus", [[], [0, 0], [-1]])
def test_cpus_are_different_numbers(cpus: list[int]) -> None:
    with pytest.raises(ConfigError, match="want all, or different CPU numbers"):
        fakes.cell(cpus=cpus)


def test_a_limit_is_above_zero() -> None:
    with pytest.raises(ConfigError, match=r"measure.limits_s.load=0: want seconds, above 0"):
        fakes.cell(measure=fakes.group("measure", "quick", limits_s={"load": 0}))


def config_problems(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(mapping)
    return caught.value.problems


def test_an_unknown_key_at_the_top_is_refused() -> None:
    assert config_problems(fakes.config_mapping(bach=4)) == [
        "bach=4: unknown key; did you mean batch?"
    ]


def test_mistakes_in_the_cell_and_in_the_settings_are_told_together() -> None:
    mapping = fakes.config_mapping(
        quant=fakes.group("quant", "bf16", dtype="fp8"),
        batch=0,
        baseline={"quants": "fp16"},
        ouput_dir="x",
    )
    del mapping["seed"]
    assert config_problems(mapping) == [
        "ouput_dir=x: unknown key; did you mean output_dir?",
        "quant.dtype=fp8: want one of fp32, fp16, bf16 or auto or saved",
        "batch=0: want an integer or max, at least 1",
        f"seed: missing; want an integer, at least 0, at most {2**64 - 1}",
        "baseline.quants=fp16: unknown key; did you mean baseline.quant?",
    ]


@pytest.mark.parametrize(
    ("part", "mapping", "sentence"),
    [
        (
            Model,
            {"architecture": {}},
            "architecture.model_type is missing; want transformers' name of it, like llama",
        ),
        (
            Model,
            {"architecture": {"model_type": "llama"}},
            "weights=pretrained needs one of repo, package, path; or take weights=random",
        ),
        (
            Attn,
            {"implementation": "eager", "backend": "math"},
            "backend=math goes with implementation=sdpa, not eager",
        ),
        *(
            (
                Workload,
                {"new_tokens": 2, "prompt_tokens": 2, **path},
                f"path={value}: want a file of prompts, a JSON object a line like"
                ' {"prompt": "..."}; or give text or prompt',
            )
            for path, value in (({}, "null"), ({"path": ""}, ""))
        ),
        *(
            (
                Workload,
                {"new_tokens": 2, **dict.fromkeys(both, "a")},
                "want exactly one of text, prompt and path",
            )
            for both in (("text", "prompt"), ("text", "path"), ("prompt", "path"))
        ),
        (
            Workload,
            {"new_tokens": 2, "text": "a"},
            "prompt_tokens=null goes with prompt or path, whose length it then is",
        ),
        (
            Workload,
            {"new_tokens": 2, "prompt": "a", "bucket": "to8"},
            "sha256 and bucket go with path",
        ),
        (Workload, {"new_tokens": 1, "prompt": "b"}, "new_tokens=1: want an integer, at least 2"),
        (
            Measure,
            _care(limits_s={"lode": 1}),
            "limits_s.lode=1: unknown key; did you mean limits_s.load?",
        ),
        (Measure, _care(target=2), "target=2: want a share like 0.02 for 2%, or null"),
        (Measure, _care(passes=0), "passes=0: want an integer, at least 1"),
    ],
)
def test_a_part_that_contradicts_itself_is_refused(
    part: type, mapping: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(part, {"name": "x", **mapping})
    assert caught.value.problems == [sentence]


def test_a_cell_is_labelled_by_what_a_sweep_usually_varies() -> None:
    usual = {"quant": "nf4", "attn": "eager", "batch": 8, "workload": "quick"}
    assert fakes.cell(**usual).label == "smollm2-135m/nf4/eager/b8"
    unusual = usual | {"decode": "generate", "workload": "chat"}
    assert fakes.cell(**unusual).label == "smollm2-135m/nf4/eager/generate/chat/b8"
    scripted = fakes.cell(engine="scripted", workload="quick", batch="max")
    assert scripted.label == "smollm2-135m/bf16/sdpa/scripted/bmax"


def test_a_margin_is_a_share() -> None:
    assert config_problems(fakes.config_mapping(margin=3)) == [
        "margin=3: want a share like 0.03 for 3%"
    ]
