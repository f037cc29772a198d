"""Files of other tools, and tables of studies: which format a text is in, and what it says.

The content decides, never the name of the file. A format is a module with a function that
recognises it and one that reads it.
"""

import json
from typing import Any

import yaml

from bench.analysis.foreign import llama_bench, llm_d, lm_eval, study
from bench.analysis.foreign.file import File
from bench.record.foreign import Foreign

_KNOWN = (
    "llama-bench's json or jsonl, lm-eval's results or samples, llm-d's Benchmark Report 0.2, or a"
    " table like those of sweeps/published"
)


def read(text: str, name: str) -> list[Foreign]:
    """The configurations in a text. ``name``: of its file, for messages and for what it says of a
    task.

    Raises:
        ConfigError: when it is in none of the formats, or damaged.
    """
    file = File(name, text)
    if study.is_it(text):
        return study.read(file)
    content = _content(text)
    lines = content if isinstance(content, list) else [content]
    if lm_eval.is_results(content):
        return lm_eval.read_results(file, content)
    if llm_d.is_it(content):
        return llm_d.read(file, content)
    if llama_bench.is_it(lines):
        return llama_bench.read(file, lines)
    if lm_eval.is_samples(lines):
        return lm_eval.read_samples(file, lines)
    raise file.refused(f"{_what(text)}; want {_KNOWN}")


def _content(text: str) -> Any:
    """JSON, JSON a line, or YAML; None where it is none of them."""
    for parsed in (json.loads, _of_lines, yaml.safe_load):
        try:
            return parsed(text)
        except (ValueError, yaml.YAMLError):
            continue
    return None


def _of_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _what(text: str) -> str:
    """Why nothing was recognised: JSON that ends in the middle is no other format."""
    if not text.strip():
        return "empty"
    if text.lstrip()[:1] not in ("{", "["):
        return "of no format that is known here"
    for parsed in (json.loads, _of_lines):
        try:
            parsed(text)
        except ValueError:
            continue
        return "JSON of another kind"
    return "damaged JSON"
