"""Which process next: a policy is a generator of jobs that looks at what is known so far.

``grid`` runs every cell in a fresh process, pass by pass, each pass in an order of its own, so that
a drift of the machine falls on all cells alike. A cell with ``batch=max`` or
``workload.prompt_tokens=max`` is preceded by the tries that find the number. The first process
that gives a cell its times is followed by what is asked of it besides: a profile, and a quality
job if no cell with the same sample key has been asked yet. What ends a job ends no other.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bench.analysis.footprint import longest_prompt, max_size
from bench.config.cell import (
    Attn,
    Cell,
    Decode,
    DtypeName,
    EngineChoice,
    Quant,
    digest,
    sample_key,
)
from bench.config.prompt_file import digest_of
from bench.driver.plan import USUAL_ENGINE, available_bytes, why_not, with_attention
from bench.driver.resume import measuring_digest, weights_of
from bench.paths import TEXTS, cache_folder
from bench.record.description import Description
from bench.record.result import Answers, Host, Outcome, Result, is_timed

# From the first try of a max to the second: where the model's needs are known, and where not
_FACTOR, _BLIND_FACTOR = 1.25, 4.0

Kind = Literal["time", "profile", "quality", "reference", "try"]


@dataclass(frozen=True, slots=True)
class Job:
    """One process: what it does, with which resolved cell, for which record."""

    kind: Kind
    cell_id: str
    cell: Cell
    reference: str | None = None  # file of the quality reference: made, or compared with
    no_reference: str | None = None  # why there is none, where one was wanted


@dataclass(slots=True)
class Records:
    """What is known so far. The driver writes it, policies read it."""

    results: dict[str, Result]  # by cell_id
    hosts: Mapping[str, Host]  # by engine
    descriptions: Mapping[str, Description | None]  # by ``described_as``
    answers: dict[str, Answers] = field(default_factory=dict)  # by sample key
    # By file of a reference that could not be made
    no_reference: dict[str, Outcome] = field(default_factory=dict)
    fits: dict[tuple[str, int], bool] = field(default_factory=dict)  # by cell_id and batch

    def description(self, cell: Cell) -> Description | None:
        """Of a resolved cell's model."""
        return self.descriptions.get(described_as(cell))


def described_as(cell: Cell) -> str:
    """Which resolved cells have one description."""
    return digest([cell.model, cell.engine, cell.quant, cell.device])


def grid(records: Records, wants_profiles: bool) -> Iterator[Job]:
    """Every job of a sweep."""
    for cell_id, result in list(records.results.items()):
        if result.cell.is_to_be_sized and result.outcome.status == "ok":
            yield from largest(records, cell_id)
    for cell_id in list(records.results):  # those that an earlier sweep has timed
        if is_timed(records.results[cell_id]):
            yield from besides(records, cell_id, wants_profiles)
    for index in range(max(r.cell.measure.passes for r in records.results.values())):
        for cell_id in due(list(records.results.values()), index):
            if not is_timed(records.results[cell_id]):  # an earlier pass of it may have failed
                yield Job("time", cell_id, records.results[cell_id].cell)
                yield from besides(records, cell_id, wants_profiles)


def due(results: Sequence[Result], index: int) -> list[str]:
    """The cells of one pass, in an order of its own that is the same for the same seed."""
    cells = [
        r.cell_id
        for r in results
        if not is_timed(r) and len(r.replicates) <= index < r.cell.measure.passes
    ]
    shuffle(cells, results[0].cell.seed, index)
    return cells


def shuffle(cells: list[str], seed: int, index: int) -> None:
    """Put the cells of a pass in an order of its own, the same for the same seed."""
    random.Random(f"{seed}/{index}").shuffle(cells)


def besides(records: Records, cell_id: str, wants_profiles: bool) -> Iterator[Job]:
    """What a cell with a number is asked for besides being timed, as far as it is not known."""
    result = records.results[cell_id]
    if not result.measurements:
        return
    if wants_profiles and result.profile is None:
        yield Job("profile", cell_id, result.cell)
    if result.answers is not None or not wants_answers(result.cell):
        return
    file = without = None
    for reference in reference_cells(records, result.cell):
        if isinstance(reference, Outcome):
            without = reference.reason
            continue
        candidate = str(reference_file(reference, records.hosts[USUAL_ENGINE]))
        if not Path(candidate).is_file() and candidate not in records.no_reference:
            yield Job("reference", cell_id, reference, candidate)
        if Path(candidate).is_file():
            file, without = candidate, None
            break
        failure = records.no_reference[candidate]
        without = failure.reason
        if failure.status != "oom":
            break
    if sample_key(result.cell) not in records.answers:
        yield Job("quality", cell_id, replace(result.cell, batch=1), file, without)


def wants_answers(cell: Cell) -> bool:
    """Whether a resolved cell is asked anything; random weights have nothing to say."""
    quality = cell.quality
    asks = bool(quality.prompts or quality.choices or quality.texts or quality.tasks)
    return asks and cell.model.weights != "random"


def wants_divergence(cell: Cell) -> bool:
    """Whether a cell's predictions are compared with the unquantized model's."""
    return bool(cell.quality.texts) and cell.model.weights != "random"


def reference_cells(records: Records, cell: Cell) -> Iterator[Cell | Outcome]:
    """The cells whose model may be the quality reference of this one, the best first: fp32, so that
    it is no less precise than what it judges, and 16 bits where that does not fit. Why not, for one
    that cannot run."""
    if not wants_divergence(cell):
        return
    host = records.hosts[USUAL_ENGINE]
    for dtype in reference_dtypes(cell, host):
        plain = unquantized(cell, dtype)
        description = records.description(plain)
        plain = with_attention(plain, description)
        yield why_not(plain, host, description) or plain


def reference_dtypes(cell: Cell, host: Host) -> tuple[DtypeName, ...]:
    """In which dtypes a reference may be, the best first."""
    return "fp32", sixteen_bits(cell, host)


def unquantized(cell: Cell, dtype: DtypeName) -> Cell:
    """The cell's model without quantization, in this dtype, one row at a time."""
    return replace(
        cell,
        engine=EngineChoice(USUAL_ENGINE),
        quant=Quant(dtype, "none", dtype),
        attn=Attn("auto", "auto"),
        decode=Decode("loop", "loop"),
        batch=1,
    )


def sixteen_bits(cell: Cell, host: Host) -> DtypeName:
    """The better of the dtypes with 16 bits that the device computes in."""
    return "bf16" if host.computes_bf16(cell.device) else "fp16"


def reference_file(reference: Cell, host: Host) -> Path:
    """Where a reference is kept: its name says everything that it depends on."""
    shipped = [TEXTS[text] for text in reference.quality.texts if text in TEXTS]
    texts = [digest_of(file.read_bytes()) for file in shipped] + [reference.workload.sha256]
    versions = {name: host.versions.get(name) for name in ("torch", "transformers")}
    measuring = measuring_digest(reference.engine.name)
    what = [reference.model, reference.quant, reference.quality, reference.device, host.device_name]
    key = digest([*what, texts, versions, measuring, weights_of(reference)])
    name = f"{reference.model.name}-{reference.quant.name}-{key}.safetensors"
    return cache_folder() / "references" / name


def largest(records: Records, cell_id: str) -> Iterator[Job]:
    """Tries until the largest batch, or the longest prompt, is known to within a fiftieth; the
    record then has it.

    The prediction is where the search begins; then real processes decide, each with one whole
    request, because kernels and allocators differ from any arithmetic. The number grows, or
    shrinks, by factors that double, until one fits and another does not; then the bracket is halved
    on a logarithmic scale. What is too large for the memory or for the time limits is an answer; a
    try that fails otherwise is the end of the cell. A prompt ends at the model's context. A cell of
    which not even one row or token fits gets 1, so that this is recorded.
    """
    result = records.results[cell_id]
    most = longest_prompt(result.cell, records.description(result.cell))
    fits, too_many = 0, None if most is None else most + 1
    size = predicted_size(records, result.cell, result.host)
    factor = _FACTOR if records.description(result.cell) is not None else _BLIND_FACTOR
    while too_many is None or too_many - fits > max(1, fits // 50):
        yield Job("try", cell_id, result.cell.sized(size))
        if records.results[cell_id].outcome.status != "ok":  # a try failed otherwise
            return
        if records.fits[cell_id, size]:
            fits = size
        else:
            too_many = size
        if fits and too_many is not None:
            size = round(math.sqrt(fits * too_many))
            size = min(max(size, fits + 1), too_many - 1)
            continue
        size = max(1, int(size / factor)) if too_many else math.ceil(size * factor)
        factor *= 2
    settle(records, cell_id, max(1, fits))


def predicted_size(records: Records, cell: Cell, host: Host) -> int:
    """The largest batch, or longest prompt, that should fit, by description; 1 for a model that is
    not known."""
    description = records.description(cell)
    if description is None:
        return 1
    return max(1, max_size(cell, description, available_bytes(cell, host) or 0))


def settle(records: Records, cell_id: str, size: int) -> None:
    """The cell's ``max`` is this number, or why it cannot run with it after all."""
    result = records.results[cell_id]
    cell = result.cell.sized(size)
    outcome = why_not(cell, result.host, None) or Outcome("ok")
    records.results[cell_id] = replace(result, cell=cell, outcome=outcome)
