"""How much processes of one cell differ on this host: found once by ``doctor --calibrate``, for
sweeps of a single pass."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.analysis.verdict import Spread
from bench.config.cell import digest
from bench.config.parse import parse
from bench.errors import ConfigError, StoreError
from bench.paths import cache_folder
from bench.record.result import Host
from bench.store.files import write_aside


def read(host: Host) -> Mapping[str, Spread]:
    """By metric; empty where this host was never calibrated."""
    file = _file(host)
    if not file.is_file():
        return {}
    try:
        return {
            metric: parse(Spread, mapping)
            for metric, mapping in json.loads(file.read_text(encoding="utf-8")).items()
        }
    except (ValueError, ConfigError) as error:
        raise StoreError(
            f"{file}: not a calibration ({error}); delete it and run doctor --calibrate again"
        ) from error


def write(host: Host, spreads: Mapping[str, Spread]) -> Path:
    """Keep it; returns where."""
    file = _file(host)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({metric: asdict(spread) for metric, spread in spreads.items()}, indent=1)
    write_aside(file, text.encode())
    return file


def _file(host: Host) -> Path:
    machine: Sequence[object] = [
        host.device_name,
        host.device_uuid,
        host.cpu_name,
        host.cpus,
        host.versions.get("torch"),
    ]
    return cache_folder() / "calibration" / f"{digest(machine)}.json"
