"""What was imported beside a sweep's cells, in its folder."""

from collections.abc import Sequence
from pathlib import Path

from bench.errors import StoreError
from bench.record.foreign import Foreign, from_json, to_json
from bench.store.files import write_aside

NAME = "foreign.json"


def read(folder: Path) -> tuple[Foreign, ...]:
    """The imported configurations of a sweep; none where nothing was imported.

    Raises:
        StoreError: when the file cannot be read.
    """
    file = folder / NAME
    if not file.is_file():
        return ()
    try:
        return from_json(file.read_bytes(), str(file))
    except OSError as error:
        raise StoreError(f"{file}: cannot be read ({error.strerror})") from error


def add(folder: Path, new: Sequence[Foreign]) -> tuple[Foreign, ...]:
    """Keep configurations in the place of those that came from the same files; returns all.

    A file is the same by its name or by its content.

    Raises:
        StoreError: when what is there cannot be read, or nothing can be written.
    """
    names, digests = {each.file for each in new}, {each.digest for each in new}
    kept = [e for e in read(folder) if e.file not in names and e.digest not in digests]
    everything = (*kept, *new)
    write_aside(folder / NAME, to_json(everything).encode())
    return everything
