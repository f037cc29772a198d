"""Where the shipped files lie, in a checkout and in an installed wheel, and where downloads are
kept.

In a checkout ``conf`` and ``sweeps`` are beside the package; a wheel holds them inside it, since
they must not become top-level packages of somebody's environment.
"""

import os
from pathlib import Path

import platformdirs

from bench.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = ROOT / "conf"
DATA = PACKAGE / "data"
PUBLISHED = sorted((ROOT / "sweeps" / "published").glob("*.csv"))  # what others measured
CALIBRATION_TEXT = DATA / "calibration.txt"  # of quantizers; not among the texts below
TEXTS = {file.stem: file for file in sorted(DATA.glob("text/*.txt"))}  # workload.text
PROMPT_SETS = {file.stem: file for file in sorted(DATA.glob("prompts/*.yaml"))}  # quality.prompts
CHOICE_SETS = {file.stem: file for file in sorted(DATA.glob("choices/*.jsonl"))}  # quality.choices


def written_conf(outputs: Path) -> Path:
    """Where commands write values of groups and sweeps, in folders named like these."""
    return outputs / "conf"


def searched_folders() -> list[Path]:
    """Where values of groups lie besides ``conf``, and sweeps: the checkout, and what was written
    in the working folder, where something was."""
    written = written_conf(Path("outputs").absolute())
    return [ROOT, written] if written.is_dir() else [ROOT]


def whole_path(typed: str) -> str:
    """A path as it is meant where it was typed: ``~`` is a home, a relative one begins here."""
    # Of os.path: pathlib follows links in resolve(), and raises where there is no home
    return os.path.abspath(os.path.expanduser(typed))  # noqa: PTH100, PTH111


def from_here(path: Path) -> str:
    """The path as one would type it in the working folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def interpreter(python: str | None) -> str | None:
    """The Python that ``engine.python`` means: a relative path is below the checkout; None: this
    one.

    Links are not followed: a virtual environment knows itself by the link's place.
    """
    return None if python is None else str(ROOT / os.path.expanduser(python))  # noqa: PTH111


def cache_folder() -> Path:
    """Converted models, references, descriptions, peaks; BENCH_CACHE moves it.

    Raises:
        ConfigError: where nothing says where this user's files belong.
    """
    if given := os.environ.get("BENCH_CACHE"):
        return Path(whole_path(given))
    try:
        return platformdirs.user_cache_path("llm-bench")
    except RuntimeError as error:
        raise ConfigError(
            ["HOME: not set, and this user has no home folder; set BENCH_CACHE to a folder"]
        ) from error
