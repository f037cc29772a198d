"""``python -m bench doctor --selftest``: does this tool measure truly on this machine?

Each check runs in a process of its own, by the worker of a sweep, so that fork server, phases and
the names of failures are tested with it. Where a check does not apply it says why. ``--bundle``
keeps everything in one file for an issue, which ``--read`` prints.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import bench
from bench.analysis import selftest as judge
from bench.config.cell import Cell
from bench.config.compose import collect, parsed
from bench.config.settings import Config
from bench.driver.lock import machine_lock, signals_as_interrupts
from bench.driver.places import try_places
from bench.driver.plan import resolve, why_not, with_attention
from bench.driver.probe import Probe, find_peaks, hosts_of, start_server
from bench.driver.process import OnPhase, Task, run_isolated
from bench.driver.provenance import provenance
from bench.driver.recording import Request
from bench.driver.sweep import Runner, common_settings, look_around, measure
from bench.driver.worker import Worker, outcome_of
from bench.engine import sources
from bench.engine.protocol import ENGINES
from bench.errors import CellFailure, ConfigError, StoreError
from bench.meter.nvml import used_bytes, wait_until_free
from bench.meter.selftest import BLOCK_BYTES
from bench.paths import CONF, from_here
from bench.record.result import Host, Outcome, Result
from bench.record.selftest import SCHEMA, Check, SelfTest, cell_timings, from_json
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store.files import hide_secrets, write_aside

_LIMITS_S = {"prepare": 60.0, "load": 60.0, "warm-up": 120.0, "measure": 60.0, "attest": 120.0}
_LOG_LINES = 20  # of each process, its last
_NO_GPU = "no CUDA device here"
_GIB = 2**30
_IMPOSSIBLE_BYTES = 2**48  # more than a process has addresses for
_FLEX_S = "compiling it takes about 25 s on a CPU; attn=flex in a sweep attests it"
# One thread: layers this small gain nothing by a second, which would wait for a CPU of others
_TINY = ("model=tiny", "threads=1")
_QUANTS = ("fp32", "fp16", "bf16", "int8", "int8_nodecomp", "nf4", "nf4_double", "fp4")
_ATTNS = tuple(file.stem for file in sorted((CONF / "attn").glob("*.yaml")) if file.stem != "auto")


@dataclass(frozen=True, slots=True)
class Here:
    """What a check runs with."""

    worker: Worker
    show: OnPhase
    host: Host
    folder: Path  # of logs and sweeps, gone afterwards
    place: str = ENGINES["transformers"]
    results: list[Result] = field(default_factory=list)  # of the sweeps, as they come

    def cell(self, *overrides: str) -> Cell:
        """A resolved cell of the tiny model."""
        (config,) = _configs(*_TINY, f"device={self.host.device}", *overrides)
        return with_attention(resolve(config.cell, self.host), None)

    def ask(self, name: str, *arguments: Any, **limits_s: float) -> Any:
        """What a task returns from a process of its own; else how that ended."""
        task = Task(name, (self.place, *arguments), {**_LIMITS_S, **limits_s})
        log = self.folder / f"{time.monotonic_ns()}.txt"
        try:
            return self.worker(task, self.show, log)
        except CellFailure as failure:
            return outcome_of(failure)
        finally:
            hide_secrets(log)

    def judged(self, name: str, of: Callable[..., Check], task: str, *arguments: Any) -> Check:
        """The check whose readings ``task`` of ``bench.meter.selftest`` takes."""
        value = self.ask(f"bench.meter.selftest:{task}", *arguments)
        if not isinstance(value, Outcome):
            return of(value)
        # The library says that it cannot: a cell would have no number here, and no wrong one
        if value.status in ("skipped", "not_engaged"):
            return judge.not_run(name, f"{value.status}: {value.reason}")
        return judge.failed(name, value)


def _configs(*overrides: str) -> list[Config]:
    return parsed(collect(["quality=none", "tracking=none", "measure=quick", *overrides]))


# The checks


def clocks(here: Here) -> Check:
    cell = here.cell("workload.new_tokens=64")
    return here.judged("clocks", lambda read: judge.clocks(*read[:2]), "time_by_two_clocks", cell)


def events(here: Here) -> Check:
    if here.host.device != "cuda":
        return judge.not_run("events", _NO_GPU)
    cell = here.cell("workload.new_tokens=64")
    return here.judged("events", lambda read: judge.events(read[2]), "time_by_two_clocks", cell)


def slowdown(here: Here) -> Check:
    return here.judged(
        "slowdown", lambda read: judge.slowdown(*read), "plant_a_slowdown", here.cell()
    )


def oom(here: Here) -> Check:
    memory_bytes, cell = here.host.device_memory_bytes, here.cell()
    blocks = (_IMPOSSIBLE_BYTES, 1)
    if cell.device == "cuda" and memory_bytes is not None:
        blocks = (_GIB, 2 * memory_bytes // _GIB)
    return _ending(here, "oom", "oom", "", "fill_memory", cell, *blocks)


def killed(here: Here) -> Check:
    return _ending(here, "killed", "failed", "SIGKILL", "die_by_signal", here.cell())


def _ending(
    here: Here, name: str, status: str, phrase: str, task: str, cell: Cell, *arguments: Any
) -> Check:
    ended = here.ask(f"bench.meter.selftest:{task}", cell, *arguments)
    after = here.ask("bench.meter.cell:try_cell", cell)
    ended, after = (each if isinstance(each, Outcome) else Outcome("ok") for each in (ended, after))
    return judge.ending(name, status, phrase, ended, after)


def memory(here: Here) -> Check:
    def judged(read: Any) -> Check:
        resident, allocated, peak = read
        if here.host.device == "cuda":
            return judge.device_memory(BLOCK_BYTES, allocated, peak)
        return judge.memory(BLOCK_BYTES, resident, peak)

    return here.judged("memory", judged, "allocate", here.cell())


def bandwidth(here: Here) -> Check:
    if here.host.device != "cuda":
        return judge.not_run("bandwidth", f"{_NO_GPU}, and no data sheet of this CPU's memory")
    cell = here.cell()
    peaks = find_peaks(
        cell.engine,
        here.host,
        cell.device,
        int(cell.threads),
        Probe(here.worker, lambda what: here.show(what, "")),
    )
    if peaks is None or peaks.measured:
        return judge.not_run("bandwidth", f"no data sheet of {here.host.device_name}")
    return here.judged("bandwidth", lambda rates: judge.bandwidth(rates, peaks), "copy_rates", cell)


def attention(here: Here, attn: str) -> Check:
    name = f"attention {attn}"
    cells = [here.cell(f"attn={attn}", f"quant={dtype}") for dtype in ("fp32", "fp16")]
    obstacles = [why_not(cell, here.host, None) for cell in cells]
    cell = next((c for c, o in zip(cells, obstacles, strict=True) if o is None), None)
    if cell is None:
        return judge.not_run(name, str(obstacles[-1].reason if obstacles[-1] else None))
    if attn == "flex" and cell.device == "cpu":
        return judge.not_run(name, _FLEX_S)
    plain = here.cell("attn=eager", f"quant={cell.quant.name}")
    of = partial(judge.attention, attn, cell.quant.dtype)
    return here.judged(name, lambda read: of(*read), "compare_logits", cell, plain)


def quantization(here: Here, quant: str) -> Check:
    name, cell = f"quantization {quant}", here.cell(f"quant={quant}")
    obstacle = why_not(cell, here.host, None)
    if obstacle is not None:
        return judge.not_run(name, str(obstacle.reason))
    return here.judged(name, lambda read: judge.weights(quant, *read), "count_weights", cell)


def energy(here: Here) -> Check:
    if here.host.device != "cuda":
        return judge.not_run("energy", _NO_GPU)
    return here.judged("energy", judge.energy, "watch_idling", here.cell())


def grid(here: Here) -> Check:
    """int8 with its threshold has nothing to split off in random weights, and would not run."""
    axes = ("quant=fp16,int8_nodecomp,nf4", "batch=1,8,32")
    return judge.grid(_sweep(here, _configs("-m", *_TINY, *axes)))


def default_model(here: Here) -> Check:
    plain = "fp16" if here.host.device == "cuda" else "bf16"
    configs = _configs("-m", f"quant={plain},nf4")
    model = configs[0].cell.model
    if sources.cached(model) is None:
        ended = here.ask("bench.meter.selftest:provide", configs[0].cell)
        if isinstance(ended, Outcome):
            reason = f"{model.name} is not here and cannot be had within a minute: {ended.reason}"
            return judge.not_run("default model", reason)
    return judge.default_model(_sweep(here, configs))


def _sweep(here: Here, configs: Sequence[Config]) -> list[Result]:
    """These cells through a real sweep, whose folder goes with ours."""
    outputs = Path(tempfile.mkdtemp(dir=here.folder))
    settings = replace(common_settings(configs), output_dir=str(outputs))
    asked = [config.cell for config in configs]
    request = Request(settings, outputs, (), provenance(asked))
    # Its end has signals ignored until this is left
    with signals_as_interrupts(), ProgressLine() as progress:
        runner = Runner(here.worker, progress, report=lambda folder, comparison: [])
        machine = look_around(asked, settings, runner.probe, with_mlflow=False)
        ended = measure(machine.records(asked, settings, outputs), request, runner)
    if ended.interrupted:
        raise KeyboardInterrupt
    results = list(ended.recorder.results)
    here.results.extend(results)
    return results


CHECKS: tuple[Callable[[Here], Check], ...] = (
    clocks,
    events,
    slowdown,
    oom,
    killed,
    memory,
    bandwidth,
    *(partial(attention, attn=attn) for attn in _ATTNS),
    *(partial(quantization, quant=quant) for quant in _QUANTS),
    energy,
    grid,
    default_model,
)


# The command


def selftest(bundle: Path | None) -> int:
    """Run every check and print it as it ends; returns the exit code.

    Args:
        bundle: file that gets everything.
    Raises:
        ConfigError: when there is such a file, or it cannot be written.
    """
    if bundle is not None:
        _check_place(bundle)
    try_places(None)
    with signals_as_interrupts(), tempfile.TemporaryDirectory(prefix="bench-selftest-") as folder:
        try:
            with machine_lock(say):
                done = _run(Path(folder))
        except KeyboardInterrupt:
            say("interrupted: no verdict" + ("" if bundle is None else ", and no bundle"))
            return 130
    print(conclusion(done.checks), flush=True)
    if bundle is not None:
        write_aside(bundle, done.to_json().encode())
        say(
            f"bundle: {from_here(bundle)}; attach it to an issue, it names neither you nor the host"
        )
    return exit_code(done.checks)


def _check_place(bundle: Path) -> None:
    if bundle.exists():
        raise ConfigError([f"--bundle {from_here(bundle)}: is there already; name another file"])
    if not bundle.parent.is_dir():
        raise ConfigError(
            [f"--bundle {from_here(bundle)}: no such folder; make it, or name another"]
        )


def _run(folder: Path) -> SelfTest:
    (default,) = _configs("model=tiny")
    engine = default.cell.engine
    with ProgressLine() as progress:
        probe = Probe(run_isolated, progress.show)
        start_server([engine], progress.show, with_mlflow=False)
        host = hosts_of([engine], probe)[engine.name]
    code = provenance([default.cell])
    results: list[Result] = []
    done = SelfTest(
        schema=SCHEMA,
        version=bench.__version__,
        commit=code.commit,
        changed_files=len(code.changed),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        host=host,
        checks=(),
        cells=(),
        warnings=(),
    )
    print(heading(done), flush=True)
    checks = []
    for check in run_checks(Here(run_isolated, lambda *_: None, host, folder, results=results)):
        print(line(check), flush=True)
        checks.append(check)
    return replace(
        done,
        checks=tuple(checks),
        cells=tuple(map(cell_timings, results)),
        warnings=tuple(_last_lines(folder)),
    )


def run_checks(here: Here, checks: Sequence[Callable[[Here], Check]] = CHECKS) -> Iterator[Check]:
    """One after the other, each on a device that the last one has left."""
    held_before = used_bytes(here.host.device_uuid)
    for index, check in enumerate(checks, 1):
        started_s = time.monotonic()
        with ProgressLine() as progress:
            name = getattr(check, "func", check).__name__.replace("_", " ")
            label = " ".join((name, *getattr(check, "keywords", {}).values()))

            def show(
                phase: str, detail: str = "", label: str = f"{index}/{len(checks)} {label}"
            ) -> None:
                progress.show(f"check {label} · {phase}", detail)

            ended = check(replace(here, show=show))
        wait_until_free(here.host.device_uuid, held_before)
        yield replace(ended, seconds=time.monotonic() - started_s)


def _last_lines(folder: Path) -> Iterator[str]:
    """What the processes printed at their end, each line once."""
    seen: dict[str, None] = {}
    for log in sorted(folder.rglob("*.txt")):
        if log.parent.name != "inputs":
            written = log.read_text(encoding="utf-8", errors="replace").splitlines()
            seen |= dict.fromkeys(text for text in written[-_LOG_LINES:] if text.strip())
    yield from seen


def read(file: Path) -> int:
    """Print a bundle as the run did; returns the exit code that it had.

    Raises:
        ConfigError: when it is none.
    """
    try:
        done = from_json(file.read_bytes(), from_here(file))
    except OSError as error:
        raise ConfigError([f"{from_here(file)}: cannot be read ({error.strerror})"]) from error
    except StoreError as error:
        raise ConfigError([str(error)]) from error  # exit code 1 is for what is not ok
    print(heading(done), *map(line, done.checks), conclusion(done.checks), sep="\n")
    return exit_code(done.checks)


def exit_code(checks: Sequence[Check]) -> int:
    """1 when something is not ok."""
    return int(any(check.verdict == "NOT OK" for check in checks))


def heading(done: SelfTest) -> str:
    """What was tested, where and when."""
    host = done.host
    commit = "" if done.commit is None else f", commit {done.commit[:12]}"
    changed = f" and {done.changed_files} changed files" if done.changed_files else ""
    names = ("torch", "transformers", "bitsandbytes", "cuda")
    versions = [f"{name} {host.versions[name]}" for name in names if name in host.versions]
    driver = [] if host.driver is None else [f"driver {host.driver}"]
    return (
        f"self-test of version {done.version}{commit}{changed}, {done.date}\n"
        f"{host.device_name}, {host.cpus} CPUs, {', '.join((*versions, *driver))}"
    )


def line(check: Check) -> str:
    """A check as one line."""
    text = f"{check.name:<27} want {check.expected}"
    if check.verdict == "not run":
        return f"{text}: not run, {check.found}"
    return f"{text}; found {check.found}: {check.verdict}"


def conclusion(checks: Sequence[Check]) -> str:
    """How many of each verdict, and how long it took."""
    counts = Counter(check.verdict for check in checks)
    verdicts = ", ".join(f"{counts[each]} {each}" for each in ("ok", "NOT OK", "not run"))
    minutes, seconds = divmod(round(sum(check.seconds for check in checks)), 60)
    return f"{verdicts}, in {minutes} min {seconds} s"
