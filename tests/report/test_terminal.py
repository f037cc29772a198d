"""The table at the end of a sweep, as text."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.analysis.comparison import compare
from bench.config.cell import Cell, cell_id
from bench.config.settings import Baseline
from bench.record.measurement import Canary, Energy, GpuState, Interference, TaskScore, Telemetry
from bench.record.result import Outcome, Peaks, Result
from bench.record.sweep import Sweep
from bench.report import grid as grids
from bench.report import terminal as table
from bench.report.advice import in_short
from bench.store.files import read_results, write_result, write_sweep
from tests import fakes

NO_BASELINE = Baseline()
FP16_1, FP16_8, NF4_1, NF4_8 = (
    fakes.resolved(quant=quant, batch=batch) for quant in ("fp16", "nf4") for batch in (1, 8)
)
OOM = Outcome("oom", "no memory")


STEADY = fakes.measurement().before


def paced(of: Cell, step_s: float, weight_mib: int) -> Result:
    steady = {"after": STEADY, "run_memory": fakes.memory(rss_peak_bytes=300 * 2**20)}
    repeats = fakes.paced(of, step_s).measurements[0].repeats
    measurement = fakes.measurement(repeats=repeats, **steady)
    attestation = fakes.attestation(weight_bytes=weight_mib * 2**20)
    peaks = Peaks(2e9, {"bf16": 1e12}, "measured here: by a toy", measured=True)
    return fakes.result(cell=of, attestation=attestation, measurement=measurement, peaks=peaks)


def sweep(baseline: Baseline = NO_BASELINE, *cells: str) -> Sweep:
    return fakes.sweep(*cells, baseline=baseline)


def as_text(results: list[Result], baseline: Baseline) -> str:
    return table.as_text(compare(results, sweep(baseline)))


RESULTS = [
    paced(FP16_1, 0.5, 256),
    paced(FP16_8, 1.0, 256),
    paced(NF4_1, 0.25, 64),
    fakes.result(cell=NF4_8, outcome=OOM),
]

TEXT = """\
smollm2-135m, workload few: 8 prompt + 4 new tokens, Some CPU, 2 threads, torch 2.9.0, transformers 5.0.0

 quant   batch   TTFT ms    TPOT ms   decode tok/s   weights MiB   memory MiB   decode speedup   prefill speedup   bound by              outcome
 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 fp16    1       1,000.0     500.00            2.0         256.0          300   -                -                 matrix products 60%
 fp16    8       1,000.0   1,000.00            8.0         256.0          300   -                -                 interpreter 60%
 nf4     1       1,000.0     250.00            4.0          64.0          300   2.00x ?          1.00x ?           matrix products 75%
 nf4     8             -          -              -             -            -   -                -                 -                     oom

quant=nf4 batch=8: oom: no memory
speedup: how many times as fast as quant=fp16, by minimum times
?: one process per cell, so the noise between processes is unknown; use measure=standard, or run `python -m bench doctor --calibrate` once"""


def header(results: list[Result], baseline: Baseline = NO_BASELINE) -> str:
    return " ".join(as_text(results, baseline).splitlines()[2].split())


def test_the_table_holds_what_varies_the_numbers_and_the_reasons() -> None:
    assert as_text(RESULTS, NO_BASELINE) == TEXT


def test_recorded_results_give_the_same_table(tmp_path: Path) -> None:
    cells = tuple(result.cell_id for result in RESULTS)
    write_sweep(tmp_path, sweep(NO_BASELINE, *cells))
    for result in RESULTS:
        write_result(tmp_path, result)
    assert as_text(list(read_results(tmp_path)), NO_BASELINE) == TEXT


def test_a_single_cell_is_named_by_model_quant_and_batch() -> None:
    columns = "model quant batch TTFT ms TPOT ms decode tok/s weights MiB memory MiB bound by"
    assert header([RESULTS[0]]) == columns


def test_without_a_pair_to_compare_there_is_no_speedup() -> None:
    assert "speedup" in as_text(RESULTS, NO_BASELINE)
    assert "speedup" not in as_text(RESULTS[:2], NO_BASELINE)
    assert "speedup" not in as_text(RESULTS, Baseline(quant="int8"))


def test_when_every_cell_is_ok_there_is_no_outcome() -> None:
    assert header(RESULTS).endswith("outcome")
    assert header(RESULTS[:3]).endswith("prefill speedup bound by")


def test_a_baseline_that_was_asked_for_is_the_one() -> None:
    text = as_text(RESULTS, Baseline(quant="nf4"))
    assert "how many times as fast as quant=nf4" in text
    assert "0.50x ?" in text.splitlines()[4]


def test_cells_that_share_a_reason_share_a_line() -> None:
    cells = [NF4_1, NF4_8, FP16_8]
    reasons = ["no memory", "no memory", "really none"]
    results = [
        fakes.result(cell=cell, outcome=Outcome("oom", reason))
        for cell, reason in zip(cells, reasons, strict=True)
    ]
    text = as_text([RESULTS[0], *results], NO_BASELINE)
    assert "\nquant=nf4 batch=1; quant=nf4 batch=8: oom: no memory\n" in text
    assert "\nquant=fp16 batch=8: oom: really none" in text


@pytest.mark.parametrize("status", ["skipped", "oom", "timeout", "not_engaged", "failed", "killed"])
def test_every_outcome_but_ok_is_shown_with_its_reason(status: str) -> None:
    results = [RESULTS[0], fakes.result(cell=NF4_1, outcome=Outcome(status, "because"))]  # type: ignore[arg-type]
    text = as_text(results, NO_BASELINE)
    assert text.splitlines()[5].split() == ["nf4", *"-" * 6, status]
    assert text.splitlines()[-1] == f"quant=nf4: {status}: because"


def test_a_sweep_in_which_nothing_was_measured_shows_its_outcomes() -> None:
    results = [fakes.result(cell=cell, outcome=OOM) for cell in (FP16_1, NF4_1)]
    assert header(results) == "quant outcome"
    assert as_text(results, NO_BASELINE).splitlines()[-1] == "every cell: oom: no memory"


def test_a_reading_that_no_cell_has_is_no_column() -> None:
    on_gpu = fakes.result(
        cell=fakes.cell(device="cuda"),
        host=fakes.gpu_host(),
        measurement=fakes.measurement(run_memory=fakes.memory(reserved_peak_bytes=2**20)),
    )
    assert "VRAM" not in header(RESULTS)
    assert "VRAM peak MiB" in header([on_gpu])
    assert "RSS" not in header([on_gpu])


def test_a_price_has_columns_and_says_what_it_assumes() -> None:
    priced = replace(sweep(), price_per_hour=2.5)
    text = table.as_text(compare(RESULTS, priced))
    assert (
        "cost per million tokens, in the currency of price_per_hour=2.5, of a machine always busy"
        " with that phase at that batch"
    ) in text
    assert "cost/Mtok in" in text
    assert "cost/Mtok out" in text
    assert "cost" not in as_text(RESULTS, NO_BASELINE)


def test_the_first_line_says_where_it_was_measured() -> None:
    on_gpu = fakes.result(
        cell=fakes.cell(device="cuda"), host=fakes.gpu_host(versions={"torch": "2.9.0"})
    )
    assert as_text([on_gpu], NO_BASELINE).splitlines()[0] == (
        "smollm2-135m, workload few: 8 prompt + 4 new tokens, Some GPU, torch 2.9.0"
    )


def test_the_first_line_says_only_what_holds_for_every_cell() -> None:
    cells = [fakes.cell(), fakes.cell(model="tiny", quant="fp32", threads=1)]
    first = as_text([fakes.result(cell=cell) for cell in cells], NO_BASELINE).splitlines()[0]
    assert (
        first == "workload few: 8 prompt + 4 new tokens, Some CPU, torch 2.9.0, transformers 5.0.0"
    )


def test_a_number_without_its_samples_says_so() -> None:
    lacking = fakes.result(outcome=Outcome("ok", "no samples: failed: no memory"))
    assert "no samples: failed: no memory" in as_text([lacking], NO_BASELINE)


def test_equal_names_that_hide_a_difference_get_the_differing_field() -> None:
    quants = [
        fakes.group("quant", "int8", parameters={"threshold": threshold})
        for threshold in (6.0, 3.0)
    ]
    cells = [fakes.resolved(quant=quant) for quant in quants]
    assert cell_id(cells[0]) != cell_id(cells[1])
    text = as_text([paced(cell, 0.5, 64) for cell in cells], NO_BASELINE)
    assert [line.split()[0] for line in text.splitlines()[2:6:1] if "─" not in line] == [
        "quant.parameters.threshold",
        "6.0",
        "3.0",
    ]


def test_no_results_are_said_to_be_none() -> None:
    assert as_text([], NO_BASELINE) == "no cell has ended"


def test_text_for_files_has_no_escape_codes_even_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in as_text([fakes.result()], Baseline())


def test_brackets_in_a_value_are_text_and_not_markup() -> None:
    prompts = ("[bold] a [/INST]", "b")
    cells = [
        fakes.cell(workload={"name": "w", "new_tokens": 4, "prompt": prompt}) for prompt in prompts
    ]
    assert "[bold] a [/INST]" in as_text([fakes.result(cell=cell) for cell in cells], Baseline())


def test_what_a_reader_should_doubt_is_said() -> None:
    doubtful = fakes.result(
        measurement=fakes.measurement(clock_mismatch=0.023),
        attestation=fakes.attestation(
            prefill_syncs={"transformers/flash.py:580": 30},
            decode_syncs={"bitsandbytes/ops.py:7": 3, "torch/x.py:1": 1},
            remarks=("sdpa took its math kernel",),
        ),
    )
    text = as_text([doubtful], Baseline())
    assert "(2.3%): host and device clocks differ" in text
    waited = "operations waited for the device"
    assert f"(4 times): {waited} while decoding: bitsandbytes/ops.py:7 and 1 other places" in text
    prefill = f"(30 times): {waited} in prefill, which is part of TTFT: transformers/flash.py:580"
    assert prefill in text
    assert "sdpa took its math kernel" in text


def test_more_than_a_data_sheet_allows_is_doubted() -> None:
    impossible = fakes.result(
        peaks=Peaks(100.0, {"bf16": 1e12}, "data sheet: of a toy", measured=False)
    )
    assert "more than the data sheet allows" in as_text([impossible], Baseline())
    assert "more than the data sheet allows" not in as_text([fakes.result()], Baseline())


def test_a_gpu_that_was_held_down_is_said() -> None:
    hot = Energy(None, Telemetry(10.0, 5, (), None, None, ("hw_thermal", "sw_power_cap")), None)
    text = as_text([fakes.result(measurement=fakes.measurement(energy=hot))], Baseline())
    assert "(hw_thermal, sw_power_cap): the GPU's clocks were held down" in text


def gpu_state(power_s: float, clock_mhz: int = 1980, limit_w: float = 350.0) -> GpuState:
    return GpuState(clock_mhz * 1_000_000, 2_619_000_000, limit_w, {"power": power_s, "heat": 7.0})


def test_what_held_the_clocks_down_while_requests_were_timed_is_said_by_the_drivers_counters() -> (
    None
):
    calm = fakes.measurement(gpu_before=gpu_state(2.0), gpu_after=gpu_state(2.0))
    seconds = calm.interference.wall_s
    hot = fakes.measurement(
        gpu_before=gpu_state(2.0),
        gpu_after=gpu_state(2.0 + 0.25 * seconds, clock_mhz=1485, limit_w=300.0),
        # Seen in other requests, which the counters know better
        energy=Energy(None, Telemetry(10.0, 5, (), None, None, ("hw_thermal",)), None),
    )
    text = as_text([fakes.result(measurement=hot)], Baseline())
    assert "(power 25%): the GPU's clocks were held down" in text
    assert "(25%): the GPU's clock was another one after the timed requests" in text
    assert "(14%): the GPU's power limit was another one after the timed requests" in text
    quiet = as_text([fakes.result(measurement=calm)], Baseline())
    assert "held down" not in quiet
    assert "another one" not in quiet


def test_memory_that_the_system_lends_to_a_gpu_is_said() -> None:
    host = fakes.gpu_host(device_memory_bytes=80)
    for reserved, is_said in ((100, True), (80, False)):
        memory = fakes.memory(reserved_peak_bytes=reserved)
        result = fakes.result(measurement=fakes.measurement(run_memory=memory), host=host)
        text = as_text([result], Baseline())
        assert ("(1.25): more memory was reserved than the GPU has" in text) is is_said


def test_what_disturbed_a_cell_is_said_with_how_much() -> None:
    stolen = Interference(
        wall_s=10.0, throttled_s=0.5, steal_s=1.0, involuntary_switches=None, pressure_s=None
    )
    slowed = Canary(read_s=0.012, matmul_s=0.0024, steps_s=0.005)  # the middle one by a fifth
    disturbed = fakes.measurement(interference=stolen, after=slowed)
    text = as_text([fakes.result(measurement=disturbed)], Baseline())
    assert "(5%): the cgroup's CPU quota was used up for a share of the time" in text
    assert "(10%): other virtual machines took a share of the CPUs" in text
    assert "(+20%): the machine's speed changed during this cell, by its reference kernels" in text


def test_what_others_did_to_a_cell_comes_before_what_it_did_itself() -> None:
    hasty = fakes.result(measurement=fakes.measurement(settled=False))
    stolen = Interference(
        wall_s=10.0, throttled_s=None, steal_s=1.0, involuntary_switches=None, pressure_s=None
    )
    disturbed = fakes.result(
        cell=fakes.resolved(quant="nf4"), measurement=fakes.measurement(interference=stolen)
    )
    text = as_text([hasty, disturbed], Baseline())
    assert text.index("other virtual machines took") < text.index("the warm-ups never settled")


def test_advice_warns_where_every_process_of_a_cell_had_to_wait() -> None:
    def waited(*shares: float) -> list[str]:
        processes = [
            replace(
                fakes.process(),
                measurement=fakes.measurement(
                    interference=Interference(
                        wall_s=10.0,
                        throttled_s=None,
                        steal_s=None,
                        involuntary_switches=None,
                        pressure_s=10.0 * share,
                    )
                ),
            )
            for share in shares
        ]
        packed = fakes.result(cell=fakes.resolved(quant="nf4"), replicates=tuple(processes))
        return in_short(compare([fakes.result(), packed], sweep()))

    warning = "  others had the CPUs while quant=nf4 ran: measure again before you rely on this"
    assert waited(0.98, 0.6)[1] == warning
    assert warning not in waited(0.98, 0.2)


def test_a_cell_that_is_not_known_well_enough_is_said() -> None:
    hasty = fakes.result(measurement=fakes.measurement(stopped="budget", settled=False))
    text = as_text([hasty], Baseline())
    assert "stopped at its request or time limit before TTFT and TPOT were known to +-5%" in text
    assert "the warm-ups never settled" in text


def printed(results: list[Result]) -> list[str]:
    console = Console(width=400, color_system=None)
    with console.capture() as capture:
        console.print(table.summary(compare(results, sweep())))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_terminal_shows_three_kinds_of_findings_and_counts_the_others() -> None:
    doubtful = fakes.measurement(clock_mismatch=0.023, stopped="budget", settled=False)
    results = [
        fakes.result(cell=FP16_1, measurement=doubtful),
        fakes.result(cell=NF4_1, outcome=OOM),
        fakes.result(cell=NF4_8, outcome=Outcome("failed", "it broke")),
    ]
    results.append(fakes.result(cell=FP16_8, measurement=doubtful))
    assert printed(results)[-5:] == [
        "quant=nf4 batch=1: oom: no memory",
        "quant=nf4 batch=8: failed: it broke",
        "quant=fp16 batch=1; quant=fp16 batch=8: the warm-ups never settled",
        "quant=fp16 batch=1; quant=fp16 batch=8: stopped at its request or time limit before TTFT"
        " and TPOT were known to +-5%",
        "2 more notes: see the report",  # clocks, and more than the data sheet allows
    ]
    text = as_text(results, NO_BASELINE)
    assert "host and device clocks differ" in text
    assert "more note" not in text


def test_the_meaning_of_a_question_mark_comes_before_the_doubts() -> None:
    lines = printed(RESULTS)
    assert lines[-2].startswith("speedup: ")
    assert lines[-1].startswith("?: one process per cell")


def test_a_speedup_has_its_word_and_its_interval() -> None:
    fast, slow = fakes.paced(NF4_1, 0.25, 0.255, 0.26), fakes.paced(FP16_1, 0.50, 0.51, 0.52)
    assert "2.00x faster (2.00-2.00)" in as_text([slow, fast], NO_BASELINE)


def test_a_score_of_a_task_has_its_error_on_the_page_only() -> None:
    scored = compare([fakes.result(tasks=(TaskScore("arc", "acc", 0.41, 0.03),))], sweep())
    grid = grids.cells(scored)
    (column,) = [column for column in grid.columns if column.heading == "arc acc"]
    entry = grid.rows[0][grid.columns.index(column)]
    assert (entry.text, entry.interval, column.is_brief) == (
        "0.41",
        "\N{PLUS-MINUS SIGN} 0.03",
        False,
    )


def test_a_dry_run_says_what_each_cell_needs_how_long_it_takes_and_what_becomes_of_it() -> None:
    thrice = fakes.group("measure", "quick", passes=3)
    cells = [fakes.cell(batch=batch, measure=thrice) for batch in (1, 2, 4, 8)]
    fresh, skipped, partly, done = (fakes.result(cell=cell, replicates=()) for cell in cells)
    skipped = replace(skipped, outcome=Outcome("skipped", "because"))
    partly = replace(partly, replicates=(fakes.process(),), reused_from="an earlier sweep")
    done = replace(done, replicates=(fakes.process(),) * 3, reused_from="an earlier sweep")
    records = compare([fresh, skipped, partly, done], sweep())
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        needs = {fresh.cell_id: (514 * 2**20, 600 * 2**20)}
        console.print(table.dry_run(records, needs, {partly.cell_id: 12.5}))
    text = capture.get()
    rows = {
        line.split()[0]: " ".join(line.split()[1:])
        for line in text.partition("4 cells")[0].splitlines()
        if line.strip()
    }
    assert rows["1"] == "514 600 ? 3 processes"
    assert rows["2"] == "? ? 0 skipped: because"
    assert rows["4"] == "? ? 25 2 processes more, 1 taken from an earlier sweep"  # twice 12.5 s
    assert rows["8"].endswith("0 taken from an earlier sweep (ok)")
    assert "4 cells; about 25 s, by earlier runs of these cells" in text
    assert "1 cell never ran on this machine" in text
