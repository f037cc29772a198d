"""``python -m bench choose``: the configuration to use, found with as few processes as it takes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.analysis.advice import USE_CASES, USUAL_KL_NATS, UseName
from bench.analysis.choice_score import configuration
from bench.analysis.comparison import Comparison
from bench.analysis.racing import Course, Question, missed, ranges, simplest
from bench.analysis.verdict import COMPARED
from bench.commands.parsers import limits_of, plain_parser, take_limits
from bench.commands.quantities import duration_s, share
from bench.config.cell import EngineChoice
from bench.config.compose import collect, parsed
from bench.config.settings import Config
from bench.driver.policy import wants_divergence
from bench.driver.process import run_isolated
from bench.driver.race import arm_of, course_of, race, twin_of
from bench.driver.sweep import common_settings, measure, on_this_machine, say_what_next
from bench.driver.worker import Worker
from bench.errors import ConfigError
from bench.meter.host import has_compiler
from bench.meter.nvml import driver_version
from bench.paths import interpreter
from bench.record.choice import ChoicePrediction, ConfigurationPrediction
from bench.report.choice import DROPPED_IN_TERMINAL, Choice, as_mapping, lines, name_of
from bench.report.page import try_report
from bench.report.terminal import say
from bench.store.files import write_choice

_USES = {name: case for name, case in USE_CASES.items() if name != "battery"}  # it reads no energy
_ALTERNATIVES = ("quant", "attn", "decode", "engine")  # axes that one chooses from
_USUAL_QUANTS = {  # by engine
    "transformers": "quant=bf16,fp16,int8_nodecomp,int8_channel,nf4,int4_g64",
    "llama_cpp": "quant=fp16,gguf_q8_0,gguf_q4_k_m",
    "vllm": "quant=bf16",
}
# On a CPU torch's sdpa is slow with one query a head, and Inductor calls it as it is. Packing
# queries, where heads share keys, wins with a long context, eager attention with many short prompts
# (sweeps/LOG.md).
_USUAL_ON_CPU = (
    *("engine=transformers", "attn=sdpa_packed,eager"),
    "quant=bf16,int8_channel,int4_g64",
)
_USUAL_BATCHES = {"batch": "batch=1,8,32", "cost": "batch=1,8,32"}  # of those that ask for many


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    overrides: tuple[str, ...]
    question: Question
    budget_s: float
    is_json: bool


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = plain_parser(
        "choose", "Which configuration to use, and how sure that is: measures what it takes."
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUES",
        help="what to choose from, as for a sweep: model=gpt2 quant=bf16,nf4 batch=1,8; without"
        " any, usual quantizations of the default model on each engine that is installed",
    )
    parser.add_argument(
        "--goal",
        choices=_USES,
        default="chat",
        help="; ".join(f"{name}: {case.what}" for name, case in _USES.items()) + " (default chat)",
    )
    take_limits(parser)
    parser.add_argument(
        "--budget", type=duration_s, default=1200.0, metavar="TIME", help="like 20min (default)"
    )
    parser.add_argument(
        "--confidence",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="the chance to be right that it stops at (default 0.95)",
    )
    parser.add_argument(
        "--json", action="store_true", help="for programs, as bench/data/choice.schema.json has it"
    )
    given = parser.parse_intermixed_args(arguments)
    configs = space(given.overrides, given.goal)
    limits = limits_of(given)
    has_divergence = all(wants_divergence(config.cell) for config in configs)
    if limits.max_kl_nats is not None and not has_divergence:
        raise ConfigError(["--max-kl: wants weights that are not random, and quality.texts"])
    if limits.max_kl_nats is None and has_divergence:
        limits = replace(limits, max_kl_nats=USUAL_KL_NATS)
    margin = configs[0].settings.margin
    question = Question(_USES[given.goal].goal, limits, margin, given.confidence)
    asked = Asked(tuple(given.overrides), question, given.budget, given.json)
    return choose(asked, configs, run_isolated)


def space(overrides: Sequence[str], goal: UseName) -> list[Config]:
    """What is chosen from: the axes of the command line, or usual ones of this machine.

    Raises:
        ConfigError: a mistake in the overrides, or fewer than two configurations.
    """
    keys = {override.partition("=")[0] for override in overrides}
    batch = [] if "batch" in keys or goal not in _USUAL_BATCHES else [_USUAL_BATCHES[goal]]
    if keys & {*_ALTERNATIVES, "sweeps"}:
        configs = parsed(collect(["-m", *batch, *overrides]))
    else:
        usual = [[f"engine={name}", quants, *batch] for name, quants in _USUAL_QUANTS.items()]
        is_on_cpu = "device=cpu" in overrides or not driver_version()
        if goal == "chat":  # a step at batch 1 is mostly the interpreter, or launches
            usual += _compiled(is_on_cpu)
        elif goal in _USUAL_BATCHES and is_on_cpu:
            many = ["batch=8,32"] if batch else []
            usual += [[*axes, *many] for axes in _compiled(is_on_cpu) or [[*_USUAL_ON_CPU]]]
        every = [config for axes in usual for config in parsed(collect(["-m", *axes, *overrides]))]
        configs = [config for config in every if _is_installed(config.cell.engine)]
    if any(config.cell.is_to_be_sized for config in configs):
        raise ConfigError(["max: choose wants numbers, like batch=1,8,32"])
    if len(configs) < 2:
        raise ConfigError(["nothing to choose from; want several values, like quant=bf16,nf4"])
    return configs


def _compiled(is_on_cpu: bool) -> list[list[str]]:
    """The axes of what is compiled on this machine."""
    if not is_on_cpu:
        return [["engine=transformers", _USUAL_QUANTS["transformers"], "decode=compiled"]]
    return [[*_USUAL_ON_CPU, "decode=compiled"]] if has_compiler() else []


def _is_installed(engine: EngineChoice) -> bool:
    python = interpreter(engine.python)
    return python is None or Path(python).is_file()


def choose(asked: Asked, configs: Sequence[Config], worker: Worker) -> int:
    """Search, confirm, print the answer; returns the exit code: 0 for an answer, 1 where nothing
    keeps the limits, 4 where the budget does not suffice to tell.

    Raises:
        ConfigError: before anything runs.
    """
    settings = common_settings(configs)
    if settings.dry_run:
        raise ConfigError(
            ["dry_run: choose decides on the way what runs; without the word choose it shows cells"]
        )
    cells = [config.cell for config in configs]
    course = course_of(cells, asked.question, asked.budget_s)
    arms = [arm_of(cell) for cell in cells]
    typed = ("choose", *asked.overrides)
    both, report = [*arms, *map(twin_of, arms)], partial(_report, course)
    try:
        with on_this_machine(settings, both, typed, worker, report) as here:
            policy = partial(race, course=course)
            ended = measure(here.records, here.request, here.runner, policy)
    except KeyboardInterrupt:
        say("interrupted before the first process")
        return 130
    if ended.interrupted:
        say_what_next(ended)
        return 130
    choice = chosen(course, ended.comparison)
    if asked.is_json:
        print(json.dumps(as_mapping(choice, course, ended.comparison), indent=2))
    else:
        print("\n".join(lines(choice, course, ended.comparison, DROPPED_IN_TERMINAL)))
        say_what_next(ended)
    return choice.exit_code or (3 if ended.recorder.untracked else 0)


def _report(course: Course, folder: Path, comparison: Comparison) -> list[Path]:
    """The sweep's report, with the answer in it; and what later sweeps can score."""
    choice = chosen(course, comparison)
    write_choice(folder, prediction(choice, course, comparison))
    answer = lines(choice, course, comparison)
    return try_report(folder, comparison, "\n".join(answer))


def prediction(choice: Choice, course: Course, comparison: Comparison) -> ChoicePrediction:
    """What the answer says of sweeps to come."""
    results = {result.cell_id: result for result in comparison.results}
    configurations = {}
    for arm, twin in course.twins.items():
        result = results.get(arm) or results.get(twin)
        if result is None:
            continue
        ranges_s = {
            metric: (found.low, found.high)
            for metric, found in choice.ranges.get(twin, {}).items()
            if metric in COMPARED
        }
        configurations[configuration(result.asked)] = ConfigurationPrediction(
            name_of(course, result), course.floors_s.get(arm), result.predicted_bytes, ranges_s
        )
    return ChoicePrediction(
        sweep_id=comparison.sweep.sweep_id,
        goal=course.question.goal,
        limits=course.question.limits.set_ones(),
        margin=course.question.margin,
        best=None if choice.best is None else configuration(choice.best.asked),
        chance=choice.chance,
        configurations=configurations,
    )


def chosen(course: Course, comparison: Comparison) -> Choice:
    """The answer that the confirmation gives."""
    results = {result.cell_id: result for result in comparison.results}
    measured = {cell: r for cell, r in results.items() if r.measurements}
    if course.search is None or course.search.leader is None:
        return Choice(None, None, (), (), {}, 1)
    searched = [measured[cell] for cell in course.search.chances]
    values, question = comparison.values, course.question
    final = course.final
    if final is None:
        return Choice(measured[course.search.leader], None, (), (), {}, 4)
    confirmed = [measured[cell] for cell in final.chances]
    if final.leader is None:
        return Choice(None, None, (), tuple(confirmed), ranges(confirmed, values), 1)
    typed = list(course.twins.values())
    confirmed.sort(key=lambda result: typed.index(result.cell_id))
    equal = [r for r in confirmed if final.chances[r.cell_id] >= question.confidence]
    best = simplest(equal) if equal else results[final.leader]
    inside = frozenset(arm for arm, twin in course.twins.items() if twin in final.chances)
    chance = final.chances[best.cell_id] * (1 - missed(searched, values, question, inside))
    return Choice(
        best,
        None if course.is_cut_short else chance,
        tuple(result for result in equal if result is not best),
        tuple(confirmed),
        ranges(confirmed, values),
        0 if chance >= question.confidence and not course.is_cut_short else 4,
    )
