"""Advice on constructed sweeps whose answer is known, and on noise, where there is none."""

import json
import random
from dataclasses import replace

import pytest

from bench.analysis.advice import DRAWS, Advice, Goal, Limits, advise, has_energy
from bench.analysis.comparison import compare
from bench.analysis.crossover import sentence
from bench.config.cell import Workload, cell_id
from bench.config.parse import parse
from bench.config.settings import Baseline, Tracking
from bench.paths import DATA
from bench.record.measurement import Energy, Repeat, Telemetry
from bench.record.result import Outcome, Result
from bench.record.sweep import Spread, Sweep
from bench.report.advice import (
    Answer,
    answer,
    as_json,
    command,
    to_run,
    turning_points,
    use_cases,
)
from tests import fakes

MIB = 2**20
STEPS = 3  # of four new tokens


def measured(
    quant: str,
    batch: int,
    *,
    tpot_s: float,
    ttft_s: float = 0.1,
    mib: float = 100,
    kl: float | None = None,
    noise: float = 0.0,
    joules: float | None = None,
) -> Result:
    """Three processes, each off by its share of ``noise``; ``joules``: of one output token, beyond
    10 W of the idle process."""
    generator = random.Random(f"{quant}/{batch}")
    passes = []
    for _ in range(3):
        factor = 1 + noise * generator.uniform(-1, 1)
        steps = (tpot_s * factor,) * STEPS
        repeat = Repeat(ttft_s * factor, steps, ttft_s * factor + sum(steps))
        memory = fakes.memory(rss_peak_bytes=round(mib * MIB))
        energy = None if joules is None else energy_of(joules * factor * batch)
        passes.append(fakes.process(repeats=(repeat,), run_memory=memory, energy=energy))
    windows = (
        [fakes.window(kl_nats=kl * (1 + 0.1 * i)) for i in (-1, 0, 1)] if kl is not None else []
    )
    divergence = fakes.divergence(*windows) if windows else None
    cell = fakes.resolved(quant=quant, batch=batch)
    return fakes.result(cell=cell, replicates=tuple(passes), divergence=divergence)


def energy_of(step_j: float) -> Energy:
    """Twelve seconds at 10 W; requests draw ``step_j`` more for each token after the first."""
    prefill = Telemetry(12.0, 10, (), 120.0 + 10 * 5.0, None, None)
    request = Telemetry(12.0, 10, (), 120.0 + 10 * (5.0 + STEPS * step_j), None, None)
    return Energy(prefill, request, 10.0)


# int8 is dominated everywhere; nf4 decodes faster than bf16 up to batch 8 and slower from 32 on,
# and diverges
KNOWN = [
    measured("bf16", 1, tpot_s=0.040, ttft_s=0.05, mib=600, kl=0.001),
    measured("bf16", 8, tpot_s=0.060, ttft_s=0.25, mib=700, kl=0.001),
    measured("bf16", 32, tpot_s=0.100, ttft_s=0.90, mib=1000, kl=0.001),
    measured("int8", 1, tpot_s=0.080, ttft_s=0.10, mib=650, kl=0.02),
    measured("int8", 8, tpot_s=0.120, ttft_s=0.50, mib=750, kl=0.02),
    measured("int8", 32, tpot_s=0.200, ttft_s=1.80, mib=1050, kl=0.02),
    measured("nf4", 1, tpot_s=0.020, ttft_s=0.06, mib=300, kl=0.3),
    measured("nf4", 8, tpot_s=0.045, ttft_s=0.30, mib=400, kl=0.3),
    measured("nf4", 32, tpot_s=0.150, ttft_s=1.20, mib=700, kl=0.3),
]
SWEEP = Sweep(
    sweep_id="now",
    started_at=1_750_000_000.0,
    overrides=("-m", "quant=bf16,int8,nf4", "batch=1,8,32", "workload=chat"),
    tracking=Tracking("none", False, "tests"),
    baseline=Baseline(),
    margin=0.03,
    calibration={},
    cells=tuple(result.cell_id for result in KNOWN),
    provenance=fakes.provenance(commit=None, changed=()),
)


def advised(results: list[Result], limits: Limits, goal: Goal, margin: float = 0.03) -> Advice:
    return advise(compare(results, SWEEP).plausible, limits, goal, margin)


def answered(results: list[Result], limits: Limits, goal: Goal, of: Sweep = SWEEP) -> Answer:
    return answer(compare(results, of), advised(results, limits, goal), limits)


@pytest.mark.parametrize(
    ("goal", "limits", "wanted"),
    [
        # 128 tokens / (0.9 + 3 x 0.1) s; nf4 / (1.2 + 3 x 0.15)
        ("throughput", Limits(), ("bf16", 32)),
        ("tpot", Limits(), ("nf4", 1)),
        ("tpot", Limits(max_kl_nats=0.05), ("bf16", 1)),
        ("ttft", Limits(), ("bf16", 1)),
        ("memory", Limits(), ("nf4", 1)),
        ("memory", Limits(min_output_tok_s=60), ("nf4", 8)),  # 32 / (0.3 + 3 x 0.045)
        ("throughput", Limits(max_memory_bytes=500 * MIB), ("nf4", 8)),
        ("throughput", Limits(max_ttft_s=0.2, max_kl_nats=0.1), ("bf16", 1)),
        ("throughput", Limits(max_tpot_s=0.03), ("nf4", 1)),
        # 32 / 0.1 tokens/s of an hour; within 50 ms nf4's 8 / 0.045
        ("cost", Limits(), ("bf16", 32)),
        ("cost", Limits(max_tpot_s=0.05), ("nf4", 8)),
    ],
)
def test_the_planted_answer_is_found(goal: Goal, limits: Limits, wanted: tuple[str, int]) -> None:
    found = advised(KNOWN, limits, goal)
    assert found.word == "recommended"
    (best,) = [result.cell for result in KNOWN if result.cell_id == found.best]
    assert (best.quant.name, best.batch) == wanted


def test_a_limit_that_nothing_keeps_is_said() -> None:
    found = advised(KNOWN, Limits(max_ttft_s=0.001), "throughput")
    assert (found.word, found.best) == ("nothing fits", None)
    said = answered(KNOWN, Limits(max_ttft_s=0.001), "throughput")
    assert said.headline == "no measured cell keeps these limits"
    assert (
        said.why[0] == "would be first, but: quant=bf16 batch=32: TTFT at most 1 ms, it has 900 ms"
    )


def test_noise_gets_no_advice_but_a_command() -> None:
    alike = [
        measured(quant, 1, tpot_s=0.04, noise=0.3)
        for quant in ("fp16", "bf16", "nf4", "fp4", "int8")
    ]
    sweep = replace(
        SWEEP, overrides=("-m", "quant=fp16,bf16,nf4,fp4,int8", "batch=1", "workload=chat")
    )
    found = advised(alike, Limits(), "tpot")
    assert found.word == "not enough data"
    assert len(found.in_question) > 1
    said = answered(alike, Limits(), "tpot", sweep)
    assert said.headline.startswith("not enough data; best guess quant=")
    asked = [line for line in said.why if line.startswith("run this to tell: ")]
    assert len(asked) == 1
    assert "batch=1 workload=chat measure=rigorous" in asked[0]


def test_what_would_be_better_and_breaks_a_limit_binds() -> None:
    limits = Limits(max_kl_nats=0.05, max_memory_bytes=900 * MIB)
    found = advised(KNOWN, limits, "throughput")
    names = {result.cell_id: (result.cell.quant.name, result.cell.batch) for result in KNOWN}
    assert found.best is not None
    assert names[found.best] == ("bf16", 8)
    assert [(names[each.cell_id], each.breaks) for each in found.better_but_excluded] == [
        (("bf16", 32), ("max_memory_bytes",)),
        (("nf4", 32), ("max_kl_nats",)),
    ]


def test_quality_that_was_not_evaluated_keeps_no_limit_of_it() -> None:
    unknown = [measured("bf16", 1, tpot_s=0.04), measured("nf4", 1, tpot_s=0.02)]
    assert advised(unknown, Limits(max_kl_nats=0.1), "tpot").word == "nothing fits"


def test_cells_within_the_margin_are_as_good_and_the_better_one_is_named() -> None:
    close = [
        measured("bf16", 1, tpot_s=0.0400, noise=0.001),
        measured("fp16", 1, tpot_s=0.0396, noise=0.001),
    ]
    found = advised(close, Limits(), "tpot")
    assert found.best == close[1].cell_id
    assert found.probability == 1.0
    assert set(found.in_question) == {each.cell_id for each in close}


def test_one_process_each_is_judged_by_the_calibration_or_by_an_assumption_that_is_said() -> None:
    single = [replace(each, replicates=each.replicates[:1]) for each in KNOWN]
    calibration = {"ttft_s": Spread(0.01, 7), "tpot_s": Spread(0.01, 7)}
    assert compare(single, SWEEP).plausible.is_assumed
    assert not compare(single, replace(SWEEP, calibration=calibration)).plausible.is_assumed
    said = answered(single, Limits(), "tpot")
    assert any("assuming that processes differ by 5%" in line for line in said.why)
    assert not any("assuming" in line for line in answered(KNOWN, Limits(), "tpot").why)


FRUGAL = [
    measured("bf16", 1, tpot_s=0.04, joules=0.9, noise=0.01),
    measured("bf16", 8, tpot_s=0.06, joules=0.3, noise=0.01),
    measured("nf4", 8, tpot_s=0.045, joules=0.2, kl=0.3, noise=0.01),
    measured("int8", 8, tpot_s=0.12),  # whose energy was not read
]


def test_the_least_energy_is_found_where_any_was_read() -> None:
    found = advised(FRUGAL, Limits(), "energy")
    assert (found.word, found.best) == ("recommended", FRUGAL[2].cell_id)
    assert not found.is_assumed  # three processes each
    said = answered(FRUGAL, Limits(), "energy")
    assert "0.199 J per output token without idle power" in said.why[0]
    kept = advised(FRUGAL, Limits(max_tpot_s=0.042), "energy")
    assert kept.best == FRUGAL[0].cell_id
    assert has_energy(compare(FRUGAL, SWEEP).plausible)
    assert not has_energy(compare(KNOWN, SWEEP).plausible)


def test_energy_of_one_process_is_judged_by_an_assumption_whatever_was_calibrated() -> None:
    single = [replace(each, replicates=each.replicates[:1]) for each in FRUGAL]
    calibration = {"ttft_s": Spread(0.01, 7), "tpot_s": Spread(0.01, 7)}
    calibrated = replace(SWEEP, calibration=calibration)
    found = advise(compare(single, calibrated).plausible, Limits(), "energy", 0.03)
    assert (found.best, found.is_assumed) == (FRUGAL[2].cell_id, True)
    said = answered(single, Limits(), "energy", calibrated)
    assert any("differ by 5% (measure=standard measures it)" in line for line in said.why)


def test_a_process_that_drew_less_than_when_idle_has_no_energy() -> None:
    measured_less = fakes.result(measurement=fakes.measurement(energy=energy_of(-1.0)))
    assert not has_energy(compare([measured_less], SWEEP).plausible)


def test_a_device_on_battery_is_asked_about_where_energy_was_read() -> None:
    name, given = use_cases(compare(FRUGAL[:2], SWEEP))[3]
    assert name == "battery (least energy per output token)"
    assert given.headline == "batch=8"


def test_a_price_stands_in_the_advice() -> None:
    said = answered(KNOWN, Limits(), "cost", replace(SWEEP, price_per_hour=2.5))
    assert said.headline == "quant=bf16 batch=32"
    assert "2.170 per million output tokens" in said.why[0]  # 2.5 / 3600 / 320 x 1e6


def test_draws_are_the_same_for_the_same_results() -> None:
    one, other = compare(KNOWN, SWEEP).plausible, compare(KNOWN, SWEEP).plausible
    assert one.ttft_s.shape == (9, DRAWS)
    assert (one.kl_nats == other.kl_nats).all()


def test_without_a_number_there_is_no_advice() -> None:
    failed = fakes.result(outcome=Outcome("failed", "it broke"))
    assert advised([failed], Limits(), "tpot").word == "nothing measured"
    assert answered([failed], Limits(), "tpot").headline == "no cell has a number"


def test_usual_questions_are_answered_within_the_usual_divergence() -> None:
    found = {
        name.partition(" (")[0]: each.headline for name, each in use_cases(compare(KNOWN, SWEEP))
    }
    assert found == {
        "chat": "quant=bf16 batch=1",
        "batch": "quant=bf16 batch=32",
        # Int8 takes 8 % more, and is within the divergence too
        "edge": "quant=bf16 batch=1",
        "api": "quant=bf16 batch=1",
    }


def test_the_planted_crossover_is_found_between_the_batches_around_it() -> None:
    found = [
        each
        for each in compare(KNOWN, SWEEP).crossovers
        if each.metric == "tpot_s" and {each.first, each.second} == {"bf16", "nf4"}
    ]
    (each,) = found
    assert (each.first, each.second, each.between) == ("nf4", "bf16", (8, 32))
    assert each.probability == 1.0
    # ln(45/60) at 8 and ln(150/100) at 32: zero at 8 x 4^(0.2877 / (0.2877 + 0.4055))
    assert each.at == pytest.approx(14.22, rel=0.01)
    assert each.low <= each.at <= each.high
    assert each.next_point == 16
    assert any(
        sentence.startswith("quant=bf16 decodes faster than nf4 from batch 14.2 on (")
        for sentence in turning_points(compare(KNOWN, SWEEP))
    )


def test_a_crossover_in_noise_cannot_be_told() -> None:
    noisy = [
        measured(quant, batch, tpot_s=0.04, noise=0.3)
        for quant in ("bf16", "nf4")
        for batch in (1, 8, 32)
    ]
    assert all("cannot tell" in sentence(change) for change in compare(noisy, SWEEP).crossovers)


def test_dominated_cells_are_not_on_the_front() -> None:
    front = {result.cell.label for result in KNOWN if result.cell_id in compare(KNOWN, SWEEP).front}
    assert not any("int8" in label for label in front)
    assert {label.rpartition("/")[2] for label in front if "bf16" in label} == {"b1", "b8", "b32"}
    assert {label.rpartition("/")[2] for label in front if "nf4" in label} == {"b1", "b8", "b32"}


def test_equal_cells_are_both_on_the_front() -> None:
    twins = [measured("bf16", 1, tpot_s=0.04), measured("fp16", 1, tpot_s=0.04)]
    assert len(compare(twins, SWEEP).front) == 2


def test_the_command_names_what_is_in_question_and_keeps_the_rest() -> None:
    in_question = [KNOWN[1], KNOWN[7]]
    assert (
        command(compare(KNOWN, SWEEP), in_question)
        == "python -m bench -m quant=bf16,nf4 batch=8 workload=chat measure=rigorous"
    )
    of_a_file = replace(
        SWEEP, overrides=("sweeps=small_batch_quant", "measure.passes=1", "resume=true")
    )
    wanted = "python -m bench -m quant=bf16,nf4 batch=8 sweeps=small_batch_quant measure=rigorous"
    assert command(compare(KNOWN, of_a_file), in_question) == wanted


def test_the_command_gives_a_field_that_varies_once() -> None:
    cells = [
        fakes.resolved(quant=fakes.group("quant", "int8", parameters={"threshold": t}))
        for t in (6.0, 3.0)
    ]
    results = [fakes.paced(cell, 0.5) for cell in cells]
    of_a_field = replace(SWEEP, overrides=("quant=int8", "quant.parameters.threshold=6.0,3.0"))
    wanted = "python -m bench -m quant.parameters.threshold=6.0,3.0 quant=int8 measure=rigorous"
    assert command(compare(results, of_a_field), results) == wanted


def test_the_command_names_a_bucket_of_prompts_in_the_file_that_it_is_of() -> None:
    def of(stem: str, bucket: str) -> Result:
        own = {"name": f"{stem}-{bucket}", "path": f"/x/{stem}.jsonl", "sha256": stem}
        cell = fakes.resolved(workload=own | {"new_tokens": 4, "bucket": bucket})
        return fakes.paced(cell, 0.5)

    buckets = [of("a", "to4"), of("a", "to8")]
    asked = replace(SWEEP, overrides=("workload=prompts", "workload.path=a.jsonl"))
    start = "python -m bench -m workload"
    assert command(compare(buckets, asked), buckets[1:]) == (
        f"{start}.bucket=to8 workload=prompts workload.path=a.jsonl measure=rigorous"
    )
    several = compare([*buckets, of("b", "to8")], replace(asked, overrides=asked.overrides[:1]))
    assert command(several, several.results[2:]) == (
        f"{start}.path=/x/b.jsonl workload.bucket=to8 workload=prompts measure=rigorous"
    )


def test_workloads_are_no_choice_and_models_have_references_of_their_own() -> None:
    chat = fakes.group("workload", "chat")
    other = [
        replace(each, cell=replace(each.cell, workload=parse(Workload, chat))) for each in KNOWN[:1]
    ]
    other = [replace(each, cell_id=cell_id(each.cell)) for each in other]
    both = compare([*KNOWN, *other], SWEEP)
    names = [name for name, _ in use_cases(both)]
    assert names[0].startswith("few: chat")
    assert names[4].startswith("chat: chat")
    assert set(compare(KNOWN, SWEEP).front) | {other[0].cell_id} == set(both.front)


def test_many_cells_alike_are_no_reason_to_say_that_nothing_fits() -> None:
    alike = [measured("bf16", batch, tpot_s=0.04, noise=0.2) for batch in range(1, 101)]
    calibrated = replace(SWEEP, calibration={"tpot_s": Spread(0.05, 30)})
    found = advise(compare(alike, calibrated).plausible, Limits(), "tpot", 0.001)
    assert found.word == "not enough data"
    assert found.best in found.in_question


def test_what_is_recommended_can_be_loaded_and_measured_again() -> None:
    known = [replace(result, lines=f"load {result.cell.quant.name}") for result in KNOWN]
    comparison = compare(known, SWEEP)
    given = [answer for _, answer in use_cases(comparison)]
    places = dict.fromkeys(
        each.headline.removeprefix("not enough data; best guess ") for each in given
    )
    found = to_run(comparison, given)
    assert [place for place, _, _ in found] == list(places)
    assert found[0][1:] == (
        "python -m bench quant=bf16 batch=1 workload=chat resume=false",
        "load bf16",
    )


def test_for_programs_it_is_json() -> None:
    comparison = compare(KNOWN, SWEEP)
    found = json.loads(as_json(comparison, Limits(), None))
    assert [each["use_case"] for each in found["answers"]] == [
        "chat",
        "batch",
        "edge",
        "api",
    ]
    assert found["cells"].keys() == {result.cell_id for result in KNOWN}
    best = found["answers"][0]["best"]
    assert found["cells"][best]["axes"] == {"quant": "bf16", "batch": "1"}
    asked = json.loads(as_json(comparison, Limits(max_kl_nats=1.0), "chat"))
    (only,) = asked["answers"]
    assert (only["use_case"], only["goal"], only["limits"]) == (
        "chat",
        "tpot",
        {"max_kl_nats": 1.0},
    )
    assert found["cells"][only["best"]]["axes"] == {"quant": "nf4", "batch": "1"}


def test_what_is_printed_for_programs_is_what_its_schema_says() -> None:
    schema = json.loads((DATA / "advice.schema.json").read_text(encoding="utf-8"))
    found = json.loads(as_json(compare(KNOWN, SWEEP), Limits(), None))
    inner = schema["properties"]
    assert [*found] == schema["required"] == [*inner]
    assert found["schema"] == inner["schema"]["const"]
    answers, cells = inner["answers"]["items"], inner["cells"]["additionalProperties"]
    for given in found["answers"]:
        assert [*given] == answers["required"] == [*answers["properties"]]
        assert given["goal"] in answers["properties"]["goal"]["enum"]
        assert given["answer"] in answers["properties"]["answer"]["enum"]
    for cell in found["cells"].values():
        assert [*cell] == cells["required"] == [*cells["properties"]]
        assert all(isinstance(value, int | float) for value in cell["metrics"].values())
