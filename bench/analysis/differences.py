"""What is different here from where a run was measured, in the order of what could change its
numbers.

The order is a judgement: another device explains anything, then come the files that measure, then
the libraries that compute, then what a process may use, then the rest. A difference in the commit
alone explains nothing when the measuring files are the same text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.record.result import Host, Provenance, Result

_COMPUTING = (
    "torch",
    "bitsandbytes",
    "transformers",
    "flash-attn",
    "flash-attn-3",
    "triton",
    "cuda",
    "cudnn",
    "kernels",
)
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
    return [
        *_devices(then, now),
        *_measuring(code_then, code_now),
        *_versions(then, now),
        *_limits(then, now),
        *_packages(code_then, code_now),
        *_commit(code_then, code_now),
    ]


def in_memory(then: Result, now: Result) -> list[Difference]:
    """What was really loaded, where it is not the same: known only after measuring."""
    if then.attestation is None or now.attestation is None:
        return []
    found = [*_compared("model revision", then.revision, now.revision, True)]
    for name in ("attention", "attention_operators", "layers", "compute_dtypes", "weight_bytes"):
        early, late = getattr(then.attestation, name), getattr(now.attestation, name)
        found += _compared(f"in memory, {name.replace('_', ' ')}", early, late, True)
    return found


def _compared(
    what: str, then: object, now: object, is_decisive: bool = False
) -> Iterator[Difference]:
    if then != now:
        early, late = ("none" if each is None else str(each) for each in (then, now))
        yield Difference(what, early, late, is_decisive)


def _devices(then: Host, now: Host) -> Iterator[Difference]:
    yield from _compared("device", then.device_name, now.device_name, True)
    if then.device_name == now.device_name:
        yield from _compared("another device of the same kind", then.device_uuid, now.device_uuid)
    if then.cpu_name != then.device_name or now.cpu_name != now.device_name:
        yield from _compared("CPU", then.cpu_name, now.cpu_name, True)


def _measuring(then: Provenance, now: Provenance) -> Iterator[Difference]:
    yield from _compared(
        "files that measure, with their texts (digest)", then.measuring, now.measuring, True
    )


def _versions(then: Host, now: Host) -> Iterator[Difference]:
    for name in _COMPUTING:
        yield from _compared(name, then.versions.get(name), now.versions.get(name), True)
    yield from _compared("driver", then.driver, now.driver, True)
    for name in sorted((then.versions.keys() | now.versions.keys()) - set(_COMPUTING)):
        what = f"variable {name.removeprefix('env.')}" if name.startswith("env.") else name
        yield from _compared(what, then.versions.get(name), now.versions.get(name))


def _limits(then: Host, now: Host) -> Iterator[Difference]:
    yield from _compared("usable CPUs", then.cpus, now.cpus)
    yield from _compared("memory, bytes", then.memory_bytes, now.memory_bytes)
    yield from _compared("device memory, bytes", then.device_memory_bytes, now.device_memory_bytes)
    yield from _compared("Python", then.python, now.python)
    yield from _compared("system", then.os, now.os)


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


def _commit(then: Provenance, now: Provenance) -> Iterator[Difference]:
    yield from _compared("commit", then.commit, now.commit)
    yield from _compared("changes on top of it (digest)", then.changes, now.changes)
