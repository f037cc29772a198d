"""Results on disk: the truth that MLflow mirrors.

A sweep is a folder with ``sweep.json`` and, for each cell, a folder with ``result.json`` and the
process's ``log.txt``. Files are written aside, flushed to the disk and renamed, so that a killed
process or a full disk never leaves half of one. The spread between processes of one cell on this
host lies in the cache folder.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.config.cell import digest
from bench.config.parse import parse
from bench.errors import ConfigError, StoreError
from bench.paths import cache_folder, from_here, whole_path
from bench.record.choice import ChoicePrediction
from bench.record.depth import Growth
from bench.record.redact import redacted
from bench.record.result import Answers, Host, Outcome, Result, from_json
from bench.record.sensitivity import Prediction
from bench.record.sweep import Spread, Sweep

TRACE = "trace.json.gz"  # of a cell's profiled request
INPUTS = "inputs"  # folder with the texts and prompts that the cells were given
REPRODUCTION = "reproduction.json"  # the verdict on what this sweep repeats
GROWTH = "growth.json"  # how its configurations grow with the context, for sweeps to come
CHOICE = "choice.txt"  # the answer of ``bench choose``, of a sweep that it ran
PREDICTION = "choice.json"  # the same for sweeps to come, which score it
DIFF = "changes.patch"  # what was not committed, if that was asked for


def new_folder(outputs: Path, of: str = "sweeps") -> Path:
    """A fresh folder for a sweep, or for something else, named by the time; its name is the
    sweep's id."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = outputs / of / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise StoreError(f"{outputs}: 100 {of} in one second")


def sweep_folder(given: str | None, outputs: Path) -> Path:
    """The folder of a sweep by its path, or by its name among the sweeps of an output_dir; None:
    the newest there.

    Raises:
        ConfigError: when there is none.
    """
    place = outputs / "sweeps"
    if given is None:
        sweeps = sorted(place.glob("*/sweep.json"))
        if not sweeps:
            raise ConfigError(
                [
                    f"no sweep in {from_here(place)}; want the folder of one, or"
                    " --output-dir DIR to look in DIR/sweeps"
                ]
            )
        return sweeps[-1].parent
    folder = find(given, outputs)
    if folder is None:
        raise ConfigError(
            [
                f"{given}: no such folder, and no such sweep in {from_here(place)};"
                " --output-dir DIR looks in DIR/sweeps"
            ]
        )
    return folder


def find(given: str, outputs: Path) -> Path | None:
    """A folder by its path, or by its name among the sweeps of an output_dir."""
    places = (Path(whole_path(given)), outputs / "sweeps" / given)
    return next((place for place in places if place.exists()), None)


def cell_folder(folder: Path, cell_id: str) -> Path:
    """Where one cell's files lie, made if need be."""
    place = folder / cell_id
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{place}: cannot be made ({error.strerror})") from error
    return place


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Raises: StoreError when the disk is full or forbids it."""
    _write(folder / "sweep.json", json.dumps(redacted(dataclasses.asdict(sweep)), indent=1))


def write_inputs(folder: Path, files: Mapping[str, bytes]) -> None:
    """Keep a copy of what models read (UTF-8, by name), without what looks like a secret: these
    files may be others tomorrow. Raises: StoreError when the disk is full."""
    (folder / INPUTS).mkdir()
    for name, content in files.items():
        _write(folder / INPUTS / name, redacted(content.decode()))


def write_reproduction(folder: Path, record: Mapping[str, Any]) -> None:
    """Keep a verdict, for people and for MLflow. Raises: StoreError when the disk is full or
    forbids it."""
    _write(folder / REPRODUCTION, json.dumps(redacted(record), indent=1))
    _write(folder / "reproduction.md", str(redacted(record["text"])))


def write_result(folder: Path, result: Result) -> None:
    """Raises: StoreError when the disk is full or forbids it."""
    _write(cell_folder(folder, result.cell_id) / "result.json", result.to_json())


def read_sweep(folder: Path) -> Sweep:
    """Raises: StoreError when the folder is not a sweep's."""
    file = folder / "sweep.json"
    if not file.is_file():
        what = "no sweep.json in it" if folder.is_dir() else "no such folder"
        raise StoreError(
            f"{folder}: {what}; want the folder of a sweep, like outputs/sweeps/2026-01-31_12-00-00"
        )
    return sweep_from_json(_read(file), str(file))


def sweep_from_json(text: str | bytes, where: str) -> Sweep:
    """The sweep in ``text``; ``where`` names it in messages. Raises: StoreError when it is none."""
    try:
        mapping: Any = json.loads(text)
        return parse(Sweep, mapping)
    except (ValueError, ConfigError) as error:
        raise StoreError(f"{where}: {error}") from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A sweep's folder, or one cell's of it, as far as it can be read."""

    sweep: Sweep
    results: list[Result]  # in the order of the grid
    damaged: Mapping[str, str]  # by cell_id, why its result cannot be read


def read_place(folder: Path) -> Stored:
    """A sweep with its results, or with one of them where the folder is a cell's.

    Raises:
        StoreError: when it is neither.
    """
    file = folder / "result.json"
    if file.is_file():
        return Stored(read_sweep(folder.parent), [from_json(_read(file), str(file))], {})
    sweep = read_sweep(folder)
    results, damaged = [], {}
    for cell_id, file in _result_files(folder, sweep):
        try:
            results.append(from_json(_read(file), str(file)))
        except StoreError as error:
            damaged[cell_id] = str(error)
    return Stored(sweep, results, damaged)


def read_results(folder: Path) -> Iterator[Result]:
    """The results in a sweep's folder, in the order of its grid. Raises: StoreError at one that
    cannot be read."""
    for _, file in _result_files(folder, read_sweep(folder)):
        yield from_json(_read(file), str(file))


def _result_files(folder: Path, sweep: Sweep) -> Iterator[tuple[str, Path]]:
    for cell_id in sweep.cells:
        file = folder / cell_id / "result.json"
        if file.is_file():
            yield cell_id, file


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StoreError(f"{file}: cannot be read ({error.strerror})") from error


def write_prediction(outputs: Path, name: str, prediction: Prediction) -> None:
    """Of a value of ``quant`` by its name, where sweeps in the same folder find it."""
    folder = outputs / "predicted"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.json", json.dumps(dataclasses.asdict(prediction), indent=1))


def read_predictions(folder: Path, results: Sequence[Result]) -> dict[str, Prediction]:
    """By the name of ``quant``, for the results in a sweep's folder that have one."""
    predicted = folder.resolve().parent.parent / "predicted"  # outputs/sweeps/ID
    found = {}
    for name in dict.fromkeys(result.cell.quant.name for result in results):
        file = predicted / f"{name}.json"
        if file.is_file():
            found[name] = parse(Prediction, json.loads(_read(file)))
    return found


def write_growths(folder: Path, growths: Sequence[Growth]) -> None:
    """What a sweep says of depths that nobody has measured yet; no file where it says nothing.
    Raises: StoreError when the disk is full or forbids it."""
    if growths:
        _write(folder / GROWTH, json.dumps([dataclasses.asdict(each) for each in growths]))


def read_growths(folder: Path) -> dict[str, Growth]:
    """By configuration, what the newest sweep before this one said that has it."""
    found: dict[str, Growth] = {}
    this = folder.resolve()  # outputs/sweeps/ID
    for file in sorted(this.parent.glob(f"*/{GROWTH}"), key=lambda file: file.parent.name):
        if file.parent.name < this.name:
            growths = (parse(Growth, each) for each in json.loads(_read(file)))
            found |= {each.configuration: each for each in growths}
    return found


def write_choice(folder: Path, prediction: ChoicePrediction) -> None:
    """What a choice says, for sweeps to come. Raises: StoreError when the disk is full or forbids
    it."""
    _write(folder / PREDICTION, json.dumps(dataclasses.asdict(prediction), indent=1))


def read_choice(folder: Path) -> ChoicePrediction | None:
    """What a choice said; None where the sweep was none. Raises: StoreError when it is damaged."""
    file = folder / PREDICTION
    if not file.is_file():
        return None
    try:
        return parse(ChoicePrediction, json.loads(_read(file)))
    except (ValueError, ConfigError) as error:
        raise StoreError(f"{file}: {error}") from error


def find_earlier(outputs: Path, cell_id: str, resume_key: str) -> Result | None:
    """What the newest sweep has that measured this very cell, fit to go on from; None: begin anew.

    ``ok`` results are taken as they are, with the passes that they have; an ``oom`` would come
    again. A cell that failed, was killed or took too long gets another try, and so do answers, and
    a divergence for which there was no reference.
    """
    for earlier in _newest_first(outputs, cell_id):
        status = earlier.outcome.status
        if earlier.resume_key == resume_key and status in ("ok", "oom"):
            kept = tuple(
                replicate
                for replicate in earlier.replicates
                if replicate.measurement is not None or status == "oom"
            )
            is_whole = len(kept) == len(earlier.replicates)
            return replace(
                earlier,
                outcome=earlier.outcome if is_whole else Outcome("ok"),
                replicates=kept,
                answers=earlier.answers if _is_whole(earlier.answers) else None,
                reused_from=earlier.reused_from or earlier.sweep_id,
            )
    return None


def _is_whole(answers: Answers | None) -> bool:
    return (
        answers is not None
        and answers.outcome.status in ("ok", "oom")
        and answers.no_reference is None
    )


def last_wall_s(outputs: Path, cell_id: str, host: Host) -> float | None:
    """How long a process of this cell took when it last ran on this machine; None: it never did."""
    for earlier in _newest_first(outputs, cell_id):
        is_here = (earlier.host.device_name, earlier.host.cpus) == (host.device_name, host.cpus)
        if is_here and earlier.measurements:
            return median(replicate.wall_s for replicate in earlier.replicates)
    return None


def _newest_first(outputs: Path, cell_id: str) -> Iterator[Result]:
    """The results of a cell in all sweeps of a folder; one of an older version, or damaged, is
    passed over."""
    for file in sorted((outputs / "sweeps").glob(f"*/{cell_id}/result.json"), reverse=True):
        try:
            earlier = from_json(_read(file), str(file))
        except StoreError:
            continue
        yield earlier


def library_warnings(folder: Path, results: Sequence[Result]) -> list[str]:
    """What libraries wrote while cells ran that have a number, each line once; a failed cell has
    its reason instead."""
    lines: dict[str, None] = {}
    for result in results:
        log = folder / result.cell_id / "log.txt"
        if result.measurements and log.is_file():
            written = log.read_text(errors="replace").splitlines()
            lines |= dict.fromkeys(line for line in written if line.strip())
    return list(lines)


def hide_secrets(log: Path) -> None:
    """Rewrite a process's output where it holds some. Raises: StoreError when the disk is full or
    forbids it."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if (hidden := redacted(text)) != text:
        _write(log, hidden)


def read_calibration(host: Host) -> Mapping[str, Spread]:
    """By metric, how much processes of one cell differ on this host; empty where `doctor
    --calibrate` never ran. Raises: StoreError when the file is damaged."""
    file = _calibration(host)
    if not file.is_file():
        return {}
    try:
        spreads = json.loads(file.read_text(encoding="utf-8"))
        return {metric: parse(Spread, spread) for metric, spread in spreads.items()}
    except (ValueError, ConfigError) as error:
        raise StoreError(
            f"{file}: not a calibration ({error}); delete it and run doctor --calibrate again"
        ) from error


def write_calibration(host: Host, spreads: Mapping[str, Spread]) -> Path:
    """Keep it; returns where. Raises: StoreError when the disk is full or forbids it."""
    file = _calibration(host)
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {metric: dataclasses.asdict(spread) for metric, spread in spreads.items()}
    _write(file, json.dumps(plain, indent=1))
    return file


def _calibration(host: Host) -> Path:
    torch = host.versions.get("torch")
    machine = [host.device_name, host.device_uuid, host.cpu_name, host.cpus, torch]
    return cache_folder() / "calibration" / f"{digest(machine)}.json"


def _write(file: Path, text: str) -> None:
    write_aside(file, text.encode())


def write_aside(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoreError: when the disk is full or forbids it.
    """
    aside = file.with_suffix(".partial")
    try:
        with open(aside, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, file)
    except OSError as error:
        raise StoreError(f"{file}: cannot be written ({error.strerror})") from error
