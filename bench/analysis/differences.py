"""What is different here from where a run was measured, in the order of what could change its
numbers.

The order is a judgement: another device explains anything, then come the files that measure, then
the libraries that compute, then what a process may use, then the rest. A difference in the commit
alone explains nothing when the measuring files are the same text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.record.result import Host, Result
from bench.record.sweep import Provenance

# fmt: off
_COMPUTING = (
    "torch", "bitsandbytes", "torchao", "transformers", "flash-attn", "flash-attn-3", "triton",
    "cuda", "cudnn", "kernels",
)
# fmt: on
_LIMITS = {
    "usable CPUs": "cpus",
    "memory, bytes": "memory_bytes",
    "device memory, bytes": "device_memory_bytes",
    "Python": "python",
    "system": "os",
}
_MOST_PACKAGES = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was. ``is_decisive``: it alone can explain any change of a
    number."""

    what: str
    then: str
    now: str
    is_decisive: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.then} then, {self.now} now"


def differences(
    then: Host, now: Host, code_then: Provenance, code_now: Provenance
) -> list[Difference]:
    """What could matter most comes first; empty when all that is recorded is the same."""
    measuring = "files that measure, with their texts (digest)"
    return [
        *_devices(then, now),
        *_compared(measuring, code_then.measuring, code_now.measuring, True),
        *_versions(then, now),
        *_limits(then, now),
        *_packages(code_then, code_now),
        *_compared("commit", code_then.commit, code_now.commit),
        *_compared("changed files on top of it", code_then.changed, code_now.changed),
    ]


def hosts(then: Host, now: Host) -> list[Difference]:
    """What differs between two machines and their software."""
    return [*_devices(then, now), *_versions(then, now), *_limits(then, now)]


def in_memory(then: Result, now: Result) -> list[Difference]:
    """What was really loaded, where it is not the same: known only after measuring."""
    if then.attestation is None or now.attestation is None:
        return []
    changed = [*_compared("model revision", then.revision, now.revision, True)]
    early, late = then.attestation, now.attestation
    names = sorted({*early.details, *late.details})
    loaded = [(name, early.details.get(name), late.details.get(name)) for name in names]
    loaded += [("executed_dtype", early.executed_dtype, late.executed_dtype)]
    loaded += [("weight_bytes", early.weight_bytes, late.weight_bytes)]
    for name, was, is_now in loaded:
        changed += _compared(f"in memory, {name.replace('_', ' ')}", was, is_now, True)
    return changed


def _compared(
    what: str, then: object, now: object, is_decisive: bool = False
) -> Iterator[Difference]:
    if then != now:
        yield Difference(what, _in_words(then), _in_words(now), is_decisive)


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _devices(then: Host, now: Host) -> Iterator[Difference]:
    yield from _compared("device", then.device_name, now.device_name, True)
    if then.device_name == now.device_name:
        yield from _compared("another device of the same kind", then.device_uuid, now.device_uuid)
    early, late = then.device_settings, now.device_settings
    for name in dict.fromkeys([*early, *late]):
        yield from _compared(f"GPU {name}", early.get(name), late.get(name), True)
    if then.cpu_name != then.device_name or now.cpu_name != now.device_name:
        yield from _compared("CPU", then.cpu_name, now.cpu_name, True)


def _versions(then: Host, now: Host) -> Iterator[Difference]:
    early, late = then.versions, now.versions
    for name in _COMPUTING:
        yield from _compared(name, early.get(name), late.get(name), True)
    yield from _compared("driver", then.driver, now.driver, True)
    for name in sorted((early.keys() | late.keys()) - set(_COMPUTING)):
        what = f"variable {name.removeprefix('env.')}" if name.startswith("env.") else name
        yield from _compared(what, early.get(name), late.get(name))


def _limits(then: Host, now: Host) -> Iterator[Difference]:
    for what, field in _LIMITS.items():
        yield from _compared(what, getattr(then, field), getattr(now, field))


def _packages(then: Provenance, now: Provenance) -> Iterator[Difference]:
    names = then.packages.keys() | now.packages.keys()
    moved = sorted(name for name in names if then.packages.get(name) != now.packages.get(name))
    for name in moved[:_MOST_PACKAGES]:
        yield from _compared(f"package {name}", then.packages.get(name), now.packages.get(name))
    if len(moved) > _MOST_PACKAGES:
        yield Difference(
            f"{len(moved) - _MOST_PACKAGES} packages more", "other versions", "see sweep.json"
        )
    yield from _compared("requirements.lock (digest)", then.lock, now.lock)
