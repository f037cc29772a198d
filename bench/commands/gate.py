"""``python -m bench gate CURRENT --baseline RUN_OR_SWEEP``: has something become slower? The
verdict is the exit code: 0 no worse, 1 worse, 4 when the data cannot tell."""

from pathlib import Path

from bench.analysis.differences import hosts
from bench.analysis.two_sweeps import Standing, overall, slowdowns
from bench.commands.compare import side
from bench.commands.parsers import command_parser
from bench.commands.quantities import share
from bench.errors import ConfigError, StoreError
from bench.paths import from_here
from bench.report.gated import gate_lines
from bench.store.files import sweep_folder

_EXIT_CODES: dict[Standing, int] = {"no worse": 0, "worse": 1, "cannot tell": 4}


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = command_parser(
        "gate",
        "Has something become slower? Exit code 0: no worse, 1: worse, 4: the data cannot tell.",
    )
    parser.add_argument(
        "current", help="folder of a sweep or of one of its cells, or a sweep's name in DIR/sweeps"
    )
    parser.add_argument(
        "--baseline", required=True, metavar="RUN_OR_SWEEP", help="what to compare with; likewise"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.05,
        help="largest slowdown to accept (default 0.05: 5%%)",
    )
    given = parser.parse_args(arguments)
    current, baseline = (
        sweep_folder(name, given.output_dir) for name in (given.current, given.baseline)
    )
    try:
        return gate(current, baseline, given.threshold)
    except StoreError as error:
        raise ConfigError([str(error)]) from error  # exit code 1 is for regressions


def gate(current: Path, baseline: Path, threshold: float) -> int:
    """Print what has become slower by more than ``threshold`` (0.05: 5 %), and what cannot be told;
    returns the exit code.

    Args:
        current, baseline: folders of a sweep, or of one of its cells.
    Raises:
        StoreError: when one of them is not a sweep's or run's, or no cell is in both.
    """
    then, now = side(baseline), side(current)
    changes = slowdowns(now, then, threshold)
    if not changes:
        raise StoreError(
            f"no cell of {from_here(baseline)} that has a number is in {from_here(current)}:"
            " nothing to compare"
        )
    elsewhere = hosts(then.results[0].host, now.results[0].host) if now.results else []
    if elsewhere:
        print("the two ran on different machines or versions:", "; ".join(map(str, elsewhere)))
    is_damaged = bool(then.damaged or now.damaged)
    for line in gate_lines(changes, threshold, is_damaged):
        print(line)
    return _EXIT_CODES[overall(changes, is_damaged)]
