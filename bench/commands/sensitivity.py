"""``python -m bench sensitivity``: which layers suffer from quantization, and how much.

One process times every layer under every scheme and estimates what each costs; its readings and
what they say are kept in a folder of their own under ``outputs/sensitivity``. With a budget the
schemes are allocated to the layers, and what comes of it is written where a sweep finds it.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.analysis.mixed import Budget, Mixed, mixed, prediction, to_try
from bench.commands.parsers import plain_parser
from bench.commands.quantities import bits_or_bytes, names, positive
from bench.config.cell import Cell, Quant
from bench.config.compose import collect, parsed
from bench.config.settings import Config, Tracking
from bench.driver.lock import machine_lock, signals_as_interrupts
from bench.driver.machine import look_around
from bench.driver.plan import resolve, unknown_names, why_not, with_attention
from bench.driver.policy import described_as
from bench.driver.probe import Probe
from bench.driver.process import Task, run_isolated
from bench.driver.provenance import provenance
from bench.driver.sweep import check_places, only_here
from bench.engine.protocol import ENGINES
from bench.errors import BenchError, CellFailure, ConfigError, TrackingError
from bench.meter.sensitivity import PLAIN, Plan
from bench.paths import CALIBRATION_TEXT, from_here, searched_folders, written_conf
from bench.record.sensitivity import SCHEMA, Readings, Study
from bench.report import mixed as allocations
from bench.report.progress import ProgressLine
from bench.report.sensitivity import findings, heading
from bench.report.sensitivity_page import write_page
from bench.report.terminal import say
from bench.store.files import hide_secrets, new_folder, write_aside, write_prediction

_WINDOWS, _WINDOW_TOKENS = 4, 256
_READ = 3  # findings that a person reads; the page has all
_NO_CHOICE = "--schemes: want more schemes to allocate, like --schemes int4_g32,int8_channel,none"
_LIMITS_S = {"prepare": 3600.0, "load": 1800.0, "measure": 7200.0, "quality": 86400.0}


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    overrides: tuple[str, ...]
    schemes: tuple[str, ...]  # besides the cell's own quant
    is_exact: bool
    budget: Budget | None  # of an allocation of these schemes

    def __str__(self) -> str:
        more = [f"--schemes={','.join(self.schemes)}"] if self.schemes else []
        more += ["--exact"] * self.is_exact
        if self.budget is not None and self.budget.unit == "nats":
            more += ["--objective=time", f"--max-kl={self.budget.amount:g}"]
        elif self.budget is not None:
            more += [f"--budget={self.budget.typed}"]
        return shlex.join([*self.overrides, *more])


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = plain_parser(
        "sensitivity",
        "Which layers suffer from quantization, and which bits each should get.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="a cell as for a sweep, like model=gpt2 quant=nf4 batch=8: its quant is looked at"
        " closely, its batch and workload are timed",
    )
    parser.add_argument(
        "--schemes",
        type=names,
        default=(),
        metavar="NAMES",
        help="more values of conf/quant, and none: what an allocation may choose from",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="measure the divergence of each layer, not only estimate it (many minutes)",
    )
    parser.add_argument(
        "--budget",
        type=bits_or_bytes,
        metavar="SIZE",
        help="allocate the schemes to the layers with the least divergence: 4.5bits a weight of the"
        " layers, or 120MB of weights in the whole model",
    )
    parser.add_argument(
        "--objective", choices=("kl", "time"), default="kl", help="what is minimized (default kl)"
    )
    parser.add_argument(
        "--max-kl",
        type=positive,
        metavar="NATS",
        help="with --objective time: the divergence to accept, like 0.1",
    )
    given = parser.parse_intermixed_args(arguments)
    if given.objective == "time" and (given.max_kl is None or given.budget is not None):
        raise ConfigError(["--objective time: want --max-kl, and no --budget"])
    if given.objective == "kl" and given.max_kl is not None:
        raise ConfigError(["--max-kl: goes with --objective time"])
    budget = None
    if given.max_kl is not None:
        budget = Budget(given.max_kl, "nats", f"{given.max_kl:g}nats")
    elif given.budget is not None:
        budget = Budget(*given.budget)
    return sensitivity(Asked(tuple(given.overrides), given.schemes, given.exact, budget))


def sensitivity(asked: Asked) -> int:
    """Run a study, print, keep and track it; returns the exit code.

    Raises:
        ConfigError: for what cannot be studied, before anything runs.
        CellFailure: when its process gives no readings.
    """
    configs = _configs(asked)
    settings = configs[0].settings
    outputs = Path(settings.output_dir)
    check_places(settings, outputs)
    with signals_as_interrupts(), machine_lock(say), ProgressLine() as progress:
        try:
            study, folder = _studied(asked, configs, outputs, progress)
        except KeyboardInterrupt:
            say("interrupted: no study")
            return 130
    write_aside(folder / "sensitivity.json", study.to_json().encode())
    first = list(heading(study))
    told = [*first, *findings(study.readings, study.cell.quant.name)]
    print("\n".join(told[: len(first) + _READ]))
    page = write_page(folder, study, told, (), {})[0]  # now, since no choice may keep the budget
    found: list[Mixed] = []
    if asked.budget is not None:
        found = _allocated(asked, study, asked.budget)
        table = list(allocations.lines(study, found))
        print("\n".join(table))
        write_page(folder, study, told, table, found[0].schemes)
        _keep(asked, study, found, outputs)
        told += table
    say(f"study: {from_here(folder)}")
    say(f"pictures: {from_here(page)}")
    return _tracked(settings.tracking, folder, study, asked.budget, found, told)


def _tracked(
    tracking: Tracking,
    folder: Path,
    study: Study,
    budget: Budget | None,
    found: Sequence[Mixed],
    told: Sequence[str],
) -> int:
    """Log the study to MLflow, where that is wanted; the exit code."""
    if not tracking.enabled:
        return 0
    from bench.store.mlflow_study import log_study  # mlflow takes over a second

    try:
        note = "\n".join(["```", *told, "```"])
        say(f"look further: {log_study(tracking, folder, study, budget, found, note)}")
    except TrackingError as error:
        say(f"{error}; the study is kept in {from_here(folder)}")
        return 3
    return 0


def _allocated(asked: Asked, study: Study, budget: Budget) -> list[Mixed]:
    choices = tuple(dict.fromkeys((study.cell.quant.name, *asked.schemes)))
    return mixed(study.readings, choices, budget, study.cell.seed)


def _keep(asked: Asked, study: Study, found: Sequence[Mixed], outputs: Path) -> None:
    """Write allocations, the sweep of them and what is predicted of each."""
    kept, name = to_try(found), found[0].name
    conf = written_conf(outputs)
    files = {
        conf / "quant" / f"{each.name}.yaml": allocations.quant_file(study, each) for each in kept
    }
    sweep = conf / "sweeps" / f"{name}.yaml"
    files[sweep] = allocations.sweep_file(study, asked.overrides, kept)
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(file, text.encode())
    for each in kept:
        expected = prediction(study, each)
        if expected is not None:
            write_prediction(outputs, each.name, expected)
    is_searched = conf in searched_folders()
    flag = "" if is_searched else f"--config-dir {shlex.quote(from_here(conf))} "
    say(f"allocation: {from_here(conf / 'quant' / name)}.yaml; to measure it beside its controls:")
    say(f"python -m bench {flag}sweeps={name}")


def _configs(asked: Asked) -> list[Config]:
    """A cell for each scheme, the one that is looked at closely first."""
    first = parsed(collect(asked.overrides))[:1]
    only_here(first[0].settings)
    close = first[0].cell.quant
    if close.scheme == PLAIN:
        raise ConfigError(
            [f"quant={close.name}: nothing is quantized in it; want a scheme, like quant=nf4"]
        )
    others = [name for name in asked.schemes if name not in (PLAIN, close.name)]
    overrides = [each for each in asked.overrides if not each.startswith("quant=")]
    more = [parsed(collect([*overrides, f"quant={name}"]))[0] for name in others]
    problems = [problem for config in (*first, *more) for problem in unknown_names(config.cell)]
    plain = [config.cell.quant.name for config in more if config.cell.quant.scheme == PLAIN]
    problems += [f"--schemes {name}: want none for unquantized layers" for name in plain]
    if asked.budget is not None:
        several = [config.cell.quant for config in (*first, *more) if config.cell.quant.layers]
        problems += [
            f"quant={quant.name}: has layers of other schemes; want one scheme" for quant in several
        ]
        problems += [] if {*asked.schemes} - {close.name} else [_NO_CHOICE]
    if problems:
        raise ConfigError(problems)
    return [*first, *more]


def _studied(
    asked: Asked, configs: Sequence[Config], outputs: Path, progress: ProgressLine
) -> tuple[Study, Path]:
    started_at, began = time.time(), time.monotonic()
    cells = [config.cell for config in configs]
    machine = look_around(cells, Probe(run_isolated, progress.show), with_mlflow=False)
    host = machine.hosts[cells[0].engine.name]
    resolved = []
    for cell in cells:
        here = resolve(cell, host)
        description = machine.descriptions.get(described_as(here))
        here = with_attention(here, description)
        obstacle = why_not(here, host, description)
        if obstacle is not None:
            raise ConfigError([f"{obstacle.reason}"])
        resolved.append(here)
    folder = new_folder(outputs, "sensitivity")
    log, cell = folder / "log.txt", resolved[0]
    plan = plan_of(asked, cells, resolved)
    place = ENGINES[cell.engine.name]
    task = Task(
        "bench.meter.sensitivity:study", (place, plain(cell), plan), _LIMITS_S, cell.engine.python
    )
    try:
        readings: Readings = run_isolated(task, progress.show, log)
    except CellFailure as failure:
        raise BenchError(f"{failure.status}: {failure.reason}; log: {from_here(log)}") from failure
    finally:
        hide_secrets(log)
    study = Study(
        schema=SCHEMA,
        asked=str(asked),
        cell=cell,
        schemes={each.quant.name: each.quant for each in cells},
        text=CALIBRATION_TEXT.name,
        window_tokens=_WINDOW_TOKENS,
        host=host,
        commit=provenance(cells).commit,
        started_at=started_at,
        took_s=time.monotonic() - began,
        readings=readings,
    )
    return study, folder


def plan_of(asked: Asked, cells: Sequence[Cell], resolved: Sequence[Cell]) -> Plan:
    """What the process studies, of cells as asked and as they run here."""
    in_fp32 = [_in_fp32(cell.quant) for cell in cells]
    return Plan(
        schemes={cell.quant.name: cell.quant for cell in resolved},
        in_fp32={quant.name: quant for quant in in_fp32},
        closely=resolved[0].quant.name,
        text=str(CALIBRATION_TEXT),
        windows=_WINDOWS,
        window_tokens=_WINDOW_TOKENS,
        is_exact=asked.is_exact,
    )


def plain(cell: Cell) -> Cell:
    """The unquantized model in the dtype of what a resolved cell leaves unquantized."""
    dtype = cell.quant.dtype
    return replace(cell, quant=Quant(dtype, PLAIN, dtype))


def _in_fp32(quant: Quant) -> Quant:
    """A quantization as asked for, with everything that it leaves open in fp32."""
    parameters = {
        name: "fp32" if value == "auto" else value for name, value in quant.parameters.items()
    }
    return replace(quant, dtype="fp32", parameters=parameters)
