"""Every derived number against one computed by hand from the readings in fakes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.analysis.metrics import METRIC, METRICS, derive, peak_memory_bytes
from bench.analysis.readings import (
    fewest_requests,
    has_drifted,
    least_times_s,
    median_step_s,
    outlying,
    steady_drift,
    tpot_s,
)
from bench.record.measurement import (
    Canary,
    Choice,
    Energy,
    Measurement,
    Repeat,
    Strided,
    TaskScore,
    Telemetry,
)
from bench.record.result import Outcome, Result
from tests import fakes

ENERGY = Energy(
    prefill=Telemetry(10.0, 20, (), 160.0, 16.0, ()),
    request=Telemetry(10.0, 10, (), 200.0, 20.0, ()),
    idle_power_w=5.0,
)
ON_GPU = fakes.result(
    samples=(fakes.sample(1, 2, 3, 4), fakes.sample(5, 6, prompt="how?")),
    divergence=fakes.divergence(
        answers=(fakes.sample(1, 2, 9, 4), fakes.sample(5, 6, prompt="how?")),
        choices=(Choice(0, (-1.0, -2.0)), Choice(0, (-1.0, -2.0))),
    ),
    strided=(
        Strided("alice", 1024, 512, 100, math.log(2)),
        Strided("code", 1024, 512, 200, 2.5 * math.log(2)),
    ),
    choices=(Choice(0, (-2.0, -1.0)), Choice(0, (-1.0, -2.0))),
    cell=fakes.cell(batch=2, device="cuda"),
    attestation=fakes.attestation(outlier_share=0.125),
    measurement=fakes.measurement(
        repeats=tuple(replace(each, enqueue_s=0.125) for each in fakes.measurement().repeats),
        energy=ENERGY,
        load_memory=fakes.memory(rss_peak_bytes=7000, allocated_peak_bytes=9000),
        run_memory=fakes.memory(
            rss_peak_bytes=5000,
            allocated_peak_bytes=2000,
            reserved_peak_bytes=3000,
            device_used_bytes=4000,
        ),
    ),
)
ON_CPU = fakes.result(cell=fakes.cell(batch=2))

BY_HAND = {
    "ttft_s": 1.0,
    "tpot_s": 0.5,
    "e2e_s": 4.0,
    "prefill_tok_s": 16.0,  # 2 x 8 / 1
    "decode_tok_s": 4.0,  # 2 / 0.5
    "output_tok_s": 2.0,  # 2 x 4 / 4
    "cost/input_mtok": 62.5,  # 3.6 / 3600 / 16 x 1e6
    "cost/output_mtok": 250.0,  # 3.6 / 3600 / 4 x 1e6
    "tokens_per_forward": None,  # each brought one
    "emission_gap_s": None,
    "accepted_share": None,
    "ready_s": 0.0,
    "load_s": 3.0,
    "first_ttft_s": 6.0,
    "weight_bytes": 1000.0,
    "bits_per_weight": 16.0,  # 1000 x 8 / 500
    "step_bytes": 960.0,  # 1000 - 200 + 2 x 8 x (8 + 4 / 2)
    "head_share": 0.5,  # 400 / (1000 - 200)
    "kv_bytes": 176.0,  # 2 x 8 x (8 + 4 - 1)
    "predicted_bytes": 900.0,
    "vram_peak_bytes": 3000.0,
    "vram_allocated_peak_bytes": 2000.0,
    "device_used_bytes": 4000.0,
    "rss_peak_bytes": 5000.0,
    "rss_growth_bytes": 4000.0,  # 5000 - 1000
    "enqueue_share": 0.25,  # 0.125 / 0.5
    "load_peak_bytes": 9000.0,
    "outlier_share": 0.125,
    "mbu": 0.48,  # 960 / 0.5 / 4000
    "bw_attained": None,  # that is for peaks that were measured
    # 2 x (2 x 300 x 8 + 2 x 4 x 100 + 4 x 4 x 1 x 2 x 36) / 1 / 40,000; 36 pairs in a causal
    # triangle of 8
    "mfu": 0.3376,
    "ceiling_tok_s": 8.333333,  # 2 / (960 / 4000)
    "j_per_prompt_tok": 0.5,  # 160 J / 20 rounds / (2 x 8)
    "j_per_output_tok": 2.0,  # (200 J / 10 - 160 / 20) / (2 x 3)
    "j_per_output_tok_net": 9.5 / 6,  # ((200 - 5 x 10) / 10 - (160 - 5 x 10) / 20) / (2 x 3)
    "idle_power_w": 5.0,
    "decode_step_p50_s": 0.5,
    "decode_step_p95_s": None,  # nine steps are not enough
    "decode_step_p99_s": None,
    "n": 3.0,
    "outliers": 0.0,
    "drift": 0.0,  # of 0.011 / 0.01, 0.002 / 0.002 and 0.003 / 0.004 the middle one
    "throttled_share": 0.0,
    "steal_share": 0.005,
    "pressure_share": 0.005,
    "switches_per_s": 2.0,
    "kl_nats": 0.5,
    "kl_median_nats": 0.25,
    "kl_p99_nats": 2.0,
    "kl_floor_nats": 0.125,
    "top1_agreement": 0.75,
    "perplexity": 8.0,
    "reference_perplexity": 4.0,
    "perplexity_ratio": 2.0,
    "perplexity_stride512": 4.0,  # 100 tokens of ln 2 and 200 of 2.5 ln 2: 600 ln 2 / 300
    "bits_per_byte": 0.75,  # 3 bits x 255 / 1020
    "choice_accuracy": 0.5,  # the second of two
    "reference_choice_accuracy": 1.0,
    "choice_flips": 0.5,
    "choice_flips_worse": 1.0,
    "choice_flips_better": 0.0,
    "choice_p": 1.0,
    "choice_smallest_difference": 1.0,  # two items show nothing
    "equal_tokens": 0.875,  # 3 of 4 and 2 of 2
    "first_difference": None,  # 2, and never
    "answers_looping": 0.0,
    "answers_empty": 0.0,
}


def test_every_metric_is_computed_by_hand_here() -> None:
    assert [row.key for row in METRICS] == list(BY_HAND)


@pytest.mark.parametrize(("key", "value"), BY_HAND.items())
def test_a_metric_is_what_the_readings_say(key: str, value: float | None) -> None:
    found = derive(ON_GPU, price_per_hour=3.6)
    assert found.get(key) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "key",
    [
        "vram_peak_bytes",
        "vram_allocated_peak_bytes",
        "device_used_bytes",
        "enqueue_share",
        "outlier_share",
        "idle_power_w",
        "j_per_prompt_tok",
        "j_per_output_tok",
        "j_per_output_tok_net",
    ],
)
def test_a_metric_without_its_reading_is_absent_and_not_zero(key: str) -> None:
    assert key in derive(ON_GPU)
    assert key not in derive(ON_CPU)


def test_a_reading_of_zero_is_a_reading() -> None:
    result = fakes.result(attestation=fakes.attestation(outlier_share=0.0))
    assert derive(result)["outlier_share"] == 0.0


def test_tokens_that_came_together_are_counted() -> None:
    repeat = Repeat(0.5, (0.25, 0.5), 1.25, step_tokens=(4, 1))
    plain = Repeat(0.5, (0.25, 0.5), 1.25)
    attestation = fakes.attestation(details={"decode": {"accepted_share": 0.75}})
    measurement = fakes.measurement(repeats=(repeat, repeat, plain), ready_s=12.0)
    values = derive(fakes.result(measurement=measurement, attestation=attestation))
    assert values["tokens_per_forward"] == pytest.approx(12 / 6)
    assert values["emission_gap_s"] == pytest.approx(0.375)
    assert (values["accepted_share"], values["ready_s"]) == (0.75, 12.0)


@pytest.mark.parametrize(("used", "found"), [(2999, None), (-1, None), (3000, 3000.0)])
def test_memory_that_another_process_gave_back_is_no_reading(used: int, found: object) -> None:
    memory = fakes.memory(reserved_peak_bytes=3000, device_used_bytes=used)
    values = derive(fakes.result(measurement=fakes.measurement(run_memory=memory)))
    assert values.get("device_used_bytes") == found


def test_the_peak_of_loading_is_the_resident_set_where_there_is_no_allocator() -> None:
    assert derive(ON_CPU)["load_peak_bytes"] == 7000.0


def test_no_peak_of_loading_without_any_reading() -> None:
    assert "load_peak_bytes" not in derive(
        fakes.result(measurement=fakes.measurement(load_memory=fakes.memory()))
    )


def test_sliding_windows_bound_the_cache_and_with_it_the_bytes_of_a_step() -> None:
    shape = replace(fakes.attestation().shape, sliding_windows=(None, 6))
    metrics = derive(replace(ON_CPU, attestation=fakes.attestation(shape=shape)))
    assert metrics["kv_bytes"] == 136.0  # 2 x 4 x (11 + 6)
    assert metrics["step_bytes"] == 928.0  # 800 + 2 x 4 x (10 + 6)


@pytest.mark.parametrize(
    "result",
    [
        fakes.result(outcome=Outcome("oom", "no memory")),
        fakes.result(outcome=Outcome("skipped", "no GPU")),
        fakes.result(measurement=None),
        fakes.result(attestation=None),
    ],
)
def test_a_cell_without_a_measurement_has_no_numbers(result: Result) -> None:
    assert derive(result) == {}


def test_tpot_is_the_time_after_the_first_token_by_the_number_of_gaps() -> None:
    assert tpot_s(Repeat(ttft_s=1.0, decode_step_s=(0.5, 0.5, 2.0), e2e_s=7.0)) == 2.0


def test_the_step_curve_is_the_median_at_each_position() -> None:
    assert median_step_s([fakes.measurement()]) == [0.5, 0.5, 0.5]
    two = (Repeat(1.0, (1.0, 4.0), 6.0), Repeat(1.0, (3.0, 2.0), 6.0))
    assert median_step_s([fakes.measurement(repeats=two)]) == [2.0, 3.0]


def test_units_are_si_base_units() -> None:
    assert {row.unit for row in METRICS} == {
        "s",
        "tok/s",
        "token",
        "B",
        "bit",
        "nat",
        "1",
        "1/s",
        "J",
        "W",
        "price/Mtok",  # of what is no unit
    }
    assert [
        row.key
        for row in METRICS
        if row.key.endswith("_s") and row.unit not in ("s", "tok/s", "1/s")
    ] == []
    assert [row.key for row in METRICS if row.key.endswith("_bytes") and row.unit != "B"] == []


def test_every_metric_says_what_it_is() -> None:
    assert [row.key for row in METRICS if len(row.doc.split()) < 3] == []


def test_a_time_of_several_processes_is_their_geometric_mean_with_an_interval() -> None:
    result = fakes.paced(fakes.cell(), 0.25, 0.5, 1.0)
    metrics = derive(result)
    assert metrics["tpot_s"] == pytest.approx(0.5)
    assert metrics["decode_tok_s"] == pytest.approx(2.0)
    assert metrics["processes"] == 3
    # ln 2 apart: t(2) = 4.3027, standard error ln 2 / sqrt 3, so 0.5 x exp(-+1.7219)
    assert metrics["tpot_s_low"] == pytest.approx(
        0.5 * math.exp(-4.30265 * math.log(2) / math.sqrt(3)), rel=1e-5
    )
    assert metrics["tpot_s_high"] == pytest.approx(
        0.5 * math.exp(4.30265 * math.log(2) / math.sqrt(3)), rel=1e-5
    )
    assert "tpot_s_low" not in derive(ON_CPU)


def test_a_price_has_the_interval_of_its_time_and_none_is_shown_without_one() -> None:
    several = fakes.paced(fakes.cell(batch=2), 0.25, 0.5, 1.0)
    found = derive(several, price_per_hour=7.2)
    assert found["cost/output_mtok"] == pytest.approx(500.0)  # 7.2 / 3600 x 0.5 / 2 x 1e6
    for end in ("low", "high"):
        scale = found[f"cost/output_mtok_{end}"] / found[f"tpot_s_{end}"]
        assert scale == pytest.approx(7.2 / 3600 / 2 * 1e6)
    assert found["cost/output_mtok_low"] < 500.0 < found["cost/output_mtok_high"]
    # The other way around than of the throughput: what is cheap is fast
    twice = derive(fakes.paced(fakes.cell(batch=2), 0.125, 0.25, 0.5), price_per_hour=7.2)
    assert twice["cost/output_mtok"] == pytest.approx(250.0)
    assert twice["decode_tok_s"] == pytest.approx(2 * found["decode_tok_s"])
    single = derive(ON_CPU, price_per_hour=3.6)
    assert single["cost/input_mtok_repeat_low"] == pytest.approx(31.25)  # 0.5 s of 1 s
    assert "cost/output_mtok_low" not in single
    assert not [key for key in derive(several) if key.startswith("cost/")]


def test_requests_of_a_single_process_have_an_interval_of_their_own_name() -> None:
    metrics = derive(ON_CPU)
    assert (metrics["ttft_s_repeat_low"], metrics["ttft_s_repeat_high"]) == (0.5, 2.5)
    assert "ttft_s_repeat_low" not in derive(fakes.paced(fakes.cell(), 0.25, 0.5))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_time_lies_within_its_own_interval(seed: int, processes: int) -> None:
    rng = np.random.default_rng(seed)

    def repeat() -> Repeat:
        ttft, *steps = rng.pareto(1.5, size=4) + 0.1
        return Repeat(ttft, tuple(steps), ttft + sum(steps))

    measured = [fakes.process(repeats=tuple(repeat() for _ in range(7))) for _ in range(processes)]
    metrics = derive(fakes.result(replicates=tuple(measured)))
    for key in ("ttft_s", "tpot_s"):
        kind = f"{key}_repeat" if processes == 1 else key
        assert metrics[f"{kind}_low"] <= metrics[key] <= metrics[f"{kind}_high"]


def test_minimum_times_are_over_equal_numbers_of_requests() -> None:
    many = fakes.measurement()  # three requests
    few = fakes.measurement(repeats=many.repeats[:2])
    assert fewest_requests([fakes.result(measurement=m) for m in (many, few)]) == 2
    # TTFT 0.5, 1, 2.5: of two of them 0.5 is the least in two choices of three
    assert least_times_s([many, few], 2)["ttft_s"] == pytest.approx([(0.5 * 2 + 1.0) / 3, 0.5])
    assert least_times_s([many], 3)["ttft_s"] == [0.5]
    # Each position by itself: 0.25, 0.25, 0.25 of the second request
    assert least_times_s([many], 3)["tpot_s"] == [0.25]


def test_a_planted_slowdown_of_the_machine_is_seen_where_its_kernels_are_steady() -> None:
    """Kernels as they moved in processes of a quiet machine (1 %) and of one with neighbours."""
    rng = np.random.default_rng(0)

    def moved(share: float, of: float = 1.0) -> Measurement:
        after = Canary(*(of * np.exp(rng.normal(0, share, 3))))
        return fakes.measurement(before=Canary(1.0, 1.0, 1.0), after=after)

    for share, is_seen in ((0.01, True), (0.15, False)):
        others = [moved(share) for _ in range(40)]
        slowed = moved(share / 10, 1.15)
        bound = steady_drift([*others, slowed])
        assert sum(has_drifted(m, bound) for m in others) <= 2  # one of twenty
        assert has_drifted(slowed, bound) == is_seen


def test_a_gap_with_several_tokens_is_shared_among_them() -> None:
    repeats = (Repeat(1.0, (0.5, 1.0), 2.5, step_tokens=(1, 2)),)
    assert least_times_s([fakes.measurement(repeats=repeats)], 1)["tpot_s"] == [0.5]


def test_one_kernel_alone_is_no_drift_of_the_machine() -> None:
    before = Canary(read_s=1.0, matmul_s=1.0, steps_s=1.0)

    def drifted(**after: float) -> bool:
        measured = fakes.measurement(before=before, after=replace(before, **after))
        return has_drifted(measured, steady_drift([measured]))

    assert not drifted(read_s=2.0)
    assert not drifted(read_s=2.0, steps_s=1.09)
    assert drifted(read_s=1.15, matmul_s=1.15, steps_s=1.15)
    assert drifted(matmul_s=0.8, steps_s=0.8)


def test_an_outlier_is_counted_and_kept() -> None:
    times = [1.0, 1.01, 0.99, 1.0, 1.02, 3.0]
    repeats = tuple(
        Repeat(1.0 + i / 1e4, (time, time, time), 1.0 + i / 1e4 + 3 * time)
        for i, time in enumerate(times)
    )
    assert outlying(fakes.measurement(repeats=repeats)) == [5]
    assert derive(fakes.result(measurement=fakes.measurement(repeats=repeats)))["n"] == 6


def test_what_a_cell_takes_is_the_gpu_s_memory_or_the_whole_process() -> None:
    assert peak_memory_bytes(ON_GPU, derive(ON_GPU)) == 3000
    assert peak_memory_bytes(ON_CPU, derive(ON_CPU)) == 4000
    assert peak_memory_bytes(ON_CPU, {"rss_peak_bytes": 5000}) == 5000
    assert math.isnan(peak_memory_bytes(ON_GPU, {"rss_peak_bytes": 5000}))


def test_a_score_has_an_interval_where_the_harness_gives_an_error() -> None:
    scores = (TaskScore("arc", "acc", 0.4, 0.1), TaskScore("arc", "acc_norm", 0.5, None))
    metrics = derive(fakes.result(tasks=scores))
    assert metrics["task_arc_acc_low"] == pytest.approx(0.4 - 1.95996 * 0.1, abs=1e-5)
    assert metrics["task_arc_acc_high"] == pytest.approx(0.4 + 1.95996 * 0.1, abs=1e-5)
    assert metrics["task_arc_acc_norm"] == 0.5
    assert "task_arc_acc_norm_low" not in metrics


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("ttft_s", 1.25, "1,250.0"),
        ("weight_bytes", 3 * 2**20, "3.0"),
        ("kl_nats", 0.00123, "0.0012"),
        ("top1_agreement", 0.9876, "98.8"),
    ],
)
def test_people_see_a_value_in_the_unit_of_its_heading(key: str, value: float, text: str) -> None:
    assert METRIC[key].text(value) == text


def test_bandwidth_use_is_called_after_its_peak() -> None:
    assert ON_GPU.peaks is not None
    measured = derive(replace(ON_GPU, peaks=replace(ON_GPU.peaks, measured=True)))
    assert measured["bw_attained"] == pytest.approx(0.48)
    assert "mbu" not in measured
