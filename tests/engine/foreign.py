"""Tasks that tests run in an engine's own interpreter, which has no pytest."""

import sys
from pathlib import Path

from bench.config.cell import Cell
from bench.engine.clock import Untimed
from bench.engine.protocol import Announce
from bench.meter.cell import begin, ids_of, measure_cell, opened
from bench.record.result import Attestation, Findings


def measure_and_list_modules(
    announce: Announce, place: str, cell: Cell
) -> tuple[Findings, list[str]]:
    """A timed process, and every module that it has imported by the end."""
    return measure_cell(announce, place, cell), sorted(sys.modules)


def attested(announce: Announce, place: str, cell: Cell) -> Attestation:
    """What is loaded and ran, of a cell that nobody times."""
    session = opened(announce, place, cell)
    return session.attest(ids_of(cell, session), cell.workload.new_tokens)


def greedy_tokens(announce: Announce, place: str, cell: Cell) -> list[list[int]]:
    """What one request of the cell chooses, for each row."""
    engine, files, _ = begin(announce, place, cell)
    session = engine.open(cell, files)
    ids = ids_of(cell, session)
    tokens: list[list[int]] = session.request(ids, cell.workload.new_tokens, Untimed()).tolist()
    return tokens


def written_twice(announce: Announce, place: str, cell: Cell, folder: str) -> tuple[str, str]:
    """Digests of a file of the cell's type, made of the published GGUF and of an F32 file of it."""
    import hashlib

    from bench.engine import sources
    from bench.engine.llama_cpp.files import quantize
    from bench.engine.llama_cpp.types import file_type

    begin(announce, place, cell)
    published, fp32, out = sources.original(cell.model), Path(folder, "f32"), Path(folder, "out")
    quantize(published, fp32, "f32", 2)
    digests = []
    for source in (published, fp32):
        quantize(source, out, file_type(cell.quant), 2)
        digests.append(hashlib.sha256(out.read_bytes()).hexdigest())
    return digests[0], digests[1]


def converted_by(announce: Announce, place: str, cell: Cell, script: str, folder: str) -> None:
    """Convert by another script than llama.cpp's."""
    import tempfile

    from bench.engine.llama_cpp.files import convert

    with tempfile.TemporaryDirectory() as prefix:
        source = Path(prefix, "source")
        source.mkdir()
        (source / "convert_hf_to_gguf.py").write_text(script)
        sys.prefix = prefix
        convert(Path(folder), Path(prefix, "out.gguf"))


def type_of(announce: Announce, place: str, cell: Cell, folder: str) -> str:
    """The converter's word for the dtype of a folder's weights."""
    from bench.engine.llama_cpp.files import saved_type

    return saved_type(Path(folder))


def context_in_little_memory(
    announce: Announce, place: str, cell: Cell, rows: int, tokens: int
) -> None:
    """Ask llama.cpp for room that this process may not have."""
    import resource

    from bench.engine.llama_cpp.native import Context, Model

    _, files, _ = begin(announce, place, cell)
    model = Model(Path(str(files.packed)))
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    Context(model, 1, rows, tokens, 32, everywhere=False, fused=True, kv="f16")


def logits_twice(announce: Announce, place: str, cell: Cell) -> tuple[bool, int, float]:
    """Whether rows read in turns give what each gives alone, how many positions they have, and the
    largest difference that the alternative kernel makes."""
    import numpy as np

    engine, files, _ = begin(announce, place, cell)
    session = engine.open(cell, files)
    rows = np.stack([ids_of(cell, session)[0]] * 2)
    rows[1] = rows[1, ::-1]
    alone = [np.concatenate(list((session.logits(row[None]) or [])[0])) for row in rows]
    together = session.logits(rows)
    assert together is not None
    in_turns = [np.concatenate(p) for p in zip(*zip(*together, strict=True), strict=True)]
    same = all(map(np.array_equal, alone, in_turns))
    session.alternative()
    other = np.concatenate(list((session.logits(rows[:1]) or [])[0]))
    return same, len(alone[0]), float(np.abs(other - alone[0]).max())
