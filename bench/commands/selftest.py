"""``python -m bench doctor --selftest``: does this tool measure truly on this machine?

Each check prints a line as it ends. ``--bundle`` keeps everything in one file for an issue, which
``--read`` prints.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import bench
from bench.commands.checks import CHECKS, TINY, Here, configs
from bench.driver.lock import machine_lock, signals_as_interrupts
from bench.driver.places import try_places
from bench.driver.probe import Probe, hosts_of, start_server
from bench.driver.process import run_isolated
from bench.driver.provenance import provenance
from bench.errors import ConfigError, StoreError
from bench.meter.nvml import used_bytes, wait_until_free
from bench.paths import from_here
from bench.record.result import Result
from bench.record.selftest import SCHEMA, Check, SelfTest, cell_timings, from_json
from bench.report.progress import ProgressLine
from bench.report.terminal import say
from bench.store.files import write_aside

_LOG_LINES = 20  # of each process, its last


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
    (default,) = configs(*TINY)
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


def run_checks(
    here: Here, checks: Mapping[str, Callable[[Here], Check]] = CHECKS
) -> Iterator[Check]:
    """One after the other, each on a device that the last one has left."""
    held_before = used_bytes(here.host.device_uuid)
    for number, (name, check) in enumerate(checks.items(), 1):
        started_s = time.monotonic()
        with ProgressLine() as progress:
            show = partial(_show, progress, f"check {number}/{len(checks)} {name}")
            ended = check(replace(here, show=show))
        held = wait_until_free(here.host.device_uuid, held_before)
        held_before = None if held_before is None else held_before + held  # no check waits again
        yield replace(ended, seconds=time.monotonic() - started_s)


def _show(progress: ProgressLine, label: str, phase: str, detail: str = "") -> None:
    progress.show(f"{label} · {phase}", detail)


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
