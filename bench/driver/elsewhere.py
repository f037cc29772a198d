"""A sweep whose processes run on the nodes of a cluster; the records stay here.

The driver composes, validates and plans as for this machine, for the kind of machine that one node
of the cluster says it is. Then it hands out blocks: one pass of the cells that are compared with
each other, one after another on one node. That is the block of the verdict's design
(``analysis.verdict``): what a node has of its own falls on all cells of a comparison alike. Blocks
and passes run side by side on as many nodes as there are. What comes back of each process goes into
the same records, by the same functions, as a process of this machine; so resume, report, push and
MLflow do not know where a cell ran.

A node that is lost costs what it had not sent: those cells are handed out again, a few times, then
they are ``lost``. A node of another kind refuses. One job at a time uses a node, by the same lock
as here. Ctrl-C keeps what has come and ends the rest.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.analysis.columns import baseline_axes
from bench.config.cell import cell_id
from bench.config.settings import Config, Where
from bench.driver.cluster import Cluster, Lost, cluster_of
from bench.driver.handing_out import HandingOut, compared_cells
from bench.driver.lock import outputs_lock, signals_as_interrupts
from bench.driver.machine import Machine
from bench.driver.orders import (
    Answer,
    Done,
    Look,
    Looked,
    Refused,
    Sized,
    Step,
    packed,
)
from bench.driver.policy import Records
from bench.driver.provenance import provenance
from bench.driver.recording import Recording, Report, Request, open_sweep, recording_of
from bench.driver.sweep import (
    Ended,
    check_places,
    common_settings,
    exit_code,
    show,
    show_plan,
)
from bench.errors import BenchError
from bench.report import page
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store import files

_WAIT_S = 1.0  # for answers, between two looks at the progress line

Join = Callable[[Where, Path], Cluster]


def run_elsewhere(
    configs: Sequence[Config],
    overrides: Sequence[str],
    join: Join = cluster_of,
    report: Report = page.try_report,
) -> int:
    """Measure every cell on a cluster; returns the exit code.

    Raises:
        ConfigError: before anything runs.
        BenchError: when no node can be used.
    """
    settings = common_settings(configs)
    asked = list({cell_id(config.cell): config.cell for config in configs}.values())
    outputs = Path(settings.output_dir)
    check_places(settings, outputs)
    request = Request(settings, outputs, tuple(overrides), provenance(asked))
    try:
        with (
            outputs_lock(outputs, say),
            contextlib.closing(join(settings.where, outputs)) as cluster,
            signals_as_interrupts(),  # after Ray, which has handlers of its own
            ProgressLine() as progress,
        ):
            look = Look(tuple(asked), not settings.dry_run)
            looked, avoided = _look(look, cluster, progress, settings.where.retries)
            machine = Machine(looked.hosts, looked.descriptions)
            records = machine.records(asked, settings, outputs)
            for key, result in records.results.items():
                peaks = result.peaks or looked.peaks.get(key)
                records.results[key] = replace(result, peaks=peaks)
            if settings.dry_run:
                show_plan(records, request)
                return 0
            ended = _measure(records, request, cluster, avoided, progress, report)
    except KeyboardInterrupt:
        say("interrupted before the first cell")
        return 130
    show(ended)
    return 130 if ended.interrupted else exit_code(ended)


def _look(
    order: Look, cluster: Cluster, progress: ProgressLine, retries: int
) -> tuple[Looked, list[str]]:
    """What one node says that it and the models are, and which nodes have refused to say.

    Raises:
        BenchError: when none answers.
    """
    avoid: list[str] = []
    reason = ""
    for attempt in range(retries + 1):
        cluster.submit({f"look-{attempt}": packed(order)}, avoid)
        looked: Looked | None = None
        ending: Answer | Lost | None = None
        while ending is None:
            progress.show("looking at a node")
            for _, answer in cluster.answers(_WAIT_S):
                if isinstance(answer, Looked):
                    looked = answer
                elif isinstance(answer, (Done, Refused, Lost)):
                    ending = answer
        if looked is not None:
            return looked, avoid
        if isinstance(ending, (Refused, Lost)):
            reason = ending.reason
        avoid += [ending.node] if isinstance(ending, Refused) else []
    raise BenchError(f"no node can be used: {reason}")


def _measure(
    records: Records,
    request: Request,
    cluster: Cluster,
    avoided: Sequence[str],
    progress: ProgressLine,
    report: Report,
) -> Ended:
    recorder, folder = open_sweep(records, request)
    with recording_of(records, recorder, folder, report) as recording:
        recording.begin()
        results = list(records.results.values())
        against = baseline_axes([result.cell for result in results], request.settings.baseline)
        groups = compared_cells(results, () if against is None else tuple(against.values))
        retries = request.settings.where.retries
        handing_out = HandingOut(records, groups, cluster, retries, avoided)
        progress.plan(handing_out.processes_left())
        came: deque[tuple[str, Answer | Lost]] = deque()
        try:
            handing_out.begin()
            while handing_out.is_open():
                progress.show(handing_out.state())
                came.extend(cluster.answers(_WAIT_S))
                while came:
                    _take(handing_out, *came[0], recording, progress)
                    came.popleft()
        except KeyboardInterrupt:
            # What a node has sent is kept, whether it was read already or not
            for name, answer in (*came, *cluster.answers(0)):
                if isinstance(answer, Step) and not handing_out.has(name, answer):
                    _take(handing_out, name, answer, recording, progress)
            raise
        for key in handing_out.give_up():
            recording.changed(key)
    return Ended(recorder, folder, recording.comparison, recording.interrupted)


def _take(
    handing_out: HandingOut,
    name: str,
    answer: Answer | Lost,
    recording: Recording,
    progress: ProgressLine,
) -> None:
    if isinstance(answer, Step):
        handing_out.came(name, answer)
        log = files.cell_folder(recording.folder, answer.job.cell_id) / "log.txt"
        with open(log, "a", encoding="utf-8") as out:
            out.write(answer.log)
        recording.keep(answer.job, answer.value, answer.timing, log)
        if answer.job.kind == "time":
            progress.cell(answer.job.cell.label)
            progress.finished()
    elif isinstance(answer, Sized):
        handing_out.size(answer)
        recording.changed(answer.cell_id)
    elif isinstance(answer, Done):
        handing_out.done(name)
    elif isinstance(answer, Refused):
        handing_out.refuse(name, answer)
    elif isinstance(answer, Lost):
        handing_out.lose(name, answer.reason)
