"""A model that has no YAML: a folder, a GGUF file, a configuration, or a repository on the hub.

Hydra reads ``model=a/b`` as a file of its own, so before it sees a value that is none of
``conf/model``, that value becomes a YAML file in a temporary folder, with every key that the
shipped ones have. The name is the last part of what was typed; two models of one name are told
apart by their path or repository.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from bench.errors import ConfigError
from bench.paths import CONF, whole_path

# Of the hub, huggingface_hub.utils.validate_repo_id
_REPOSITORY = re.compile(r"[\w.-]{1,95}/[\w.-]{1,95}")
_FILES = (".gguf", ".json")
_KEYS = ("repo", "revision", "package", "path", "config", "architecture")


def own_model(typed: str) -> dict[str, Any] | None:
    """The model that ``typed`` names, with the keys of a YAML in conf/model; None for a plain word.

    Raises:
        ConfigError: for a path with no model at its end.
    """
    path = Path(whole_path(typed))
    model: dict[str, Any] = dict.fromkeys(_KEYS) | {
        "weights": "pretrained",
        "tokenizer": "pretrained",
    }
    if path.is_dir():
        return model | {"name": path.name, "path": str(path)}
    if path.suffix in _FILES and path.is_file():
        if path.suffix == ".gguf":
            return model | {"name": path.stem, "path": str(path)}
        name = path.parent.name if path.stem == "config" else path.stem
        return model | {"name": name, "config": str(path), "weights": "random"}
    if typed.startswith((".", "~", "/")) or path.suffix in _FILES:
        raise ConfigError(
            [
                f"model={typed}: no such folder or file; want a folder that save_pretrained wrote,"
                " a .gguf, or a config.json for random weights"
            ]
        )
    if _REPOSITORY.fullmatch(typed):
        return model | {"name": typed.partition("/")[2], "repo": typed}
    return None


def stand_in(typed: str, folder: Path) -> str:
    """The name of a YAML for the model that ``typed`` names, written to ``folder``; ``typed``
    itself where it is a shipped one, or nothing known.

    Raises:
        ConfigError: as ``own_model``.
    """
    is_shipped = "/" not in typed and (CONF / "model" / f"{typed}.yaml").is_file()
    model = None if is_shipped else own_model(typed)
    if model is None:
        return typed
    (folder / "model").mkdir(exist_ok=True)
    name = f"own{len(list((folder / 'model').iterdir()))}-{model['name']}"
    (folder / "model" / f"{name}.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    return name
