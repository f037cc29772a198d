"""``python -m bench advise SWEEP``: which configuration to take, and how sure that is."""

from pathlib import Path

from bench.analysis.advice import Limits, UseName, has_energy
from bench.analysis.comparison import Comparison
from bench.errors import ConfigError
from bench.report.advice import as_json, print_advice
from bench.report.terminal import compared


def advise(
    folder: Path, limits: Limits, goal: UseName | None, price_per_hour: float | None, is_json: bool
) -> int:
    """Print the answers; returns the exit code.

    Args:
        price_per_hour: of the machine; None: as the sweep was run with.

    Raises:
        ConfigError: when the sweep does not have what the goal is about.
        StoreError: when the folder is not a sweep's.
    """
    comparison = compared(folder, price_per_hour)
    _check(comparison, goal)
    if is_json:
        print(as_json(comparison, limits, goal))
    else:
        print_advice(comparison, limits, goal)
    return 0


def _check(comparison: Comparison, goal: UseName | None) -> None:
    if goal == "cost" and comparison.sweep.price_per_hour is None:
        raise ConfigError(
            ["--goal cost: this sweep has no price; add what an hour costs, --price-per-hour 2.50"]
        )
    if goal == "battery" and not has_energy(comparison.plausible):
        raise ConfigError(
            [
                "--goal battery: no cell of this sweep has energy; want measure=standard on an"
                " NVIDIA GPU, or a CPU that lets us read RAPL (`python -m bench doctor` says how)"
            ]
        )
