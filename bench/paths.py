"""Where the shipped files lie, in a checkout and in an installed wheel, and where downloads are
kept.

In a checkout ``conf`` and ``sweeps`` are beside the package; a wheel holds them inside it, since
they must not become top-level packages of somebody's environment.
"""

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = ROOT / "conf"
DATA = PACKAGE / "data"
PUBLISHED = sorted((ROOT / "sweeps" / "published").glob("*.csv"))  # what others measured
TEXTS = {file.stem: file for file in sorted(DATA.glob("text/*.txt"))}  # workload.text
PROMPT_SETS = {file.stem: file for file in sorted(DATA.glob("prompts/*.yaml"))}  # quality.prompts


def interpreter(python: str | None) -> str | None:
    """The Python that ``engine.python`` means: a relative path is below the checkout; None: this
    one.

    Links are not followed: a virtual environment knows itself by the link's place.
    """
    return None if python is None else str(ROOT / Path(python).expanduser())


def cache_folder() -> Path:
    """Converted models, references, descriptions, peaks; BENCH_CACHE moves it."""
    return Path(os.environ.get("BENCH_CACHE") or platformdirs.user_cache_dir("llm-bench"))
